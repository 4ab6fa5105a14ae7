//! `--backend cloud-hypervisor`

use crate::both;
use crate::test_host::{Installed, LONG, TestHost, names, told};
use mvm_fake_vmm::Subject;
use mvm_vmm::{Deadline, Recorded, Snapshot, Stop, Stopped};
use serde_json::Value;
use std::fs;
use std::time::Duration;

/// The variable that names the program.
const PROGRAM: &str = "MVM_CLOUD_HYPERVISOR";

fn api(calls: &[&str]) -> Vec<String> {
    let path = |call: &&str| {
        let (method, rest) = call.split_once(' ').unwrap();
        format!("{method} /api/v1/{rest}")
    };
    calls.iter().map(path).collect()
}

pub(crate) fn starts_and_stops(vmm: &Subject) {
    let host = TestHost::new(vmm);
    let vm = host.vm("web");
    let record = vm.try_start(LONG).unwrap();
    assert_eq!(
        vm.calls(),
        api(&["GET vmm.ping 200", "PUT vm.create 204", "PUT vm.boot 204"])
    );
    assert_eq!(record.state, Recorded::Running);
    assert_eq!(record.accelerator.as_deref(), Some("kvm"));
    if vmm.is_real() {
        // The bare guest does not listen to the button.
        assert_eq!(vm.stop(Stop::Ask(LONG / 20)), Stopped::Forced);
    } else {
        assert_eq!(
            fs::read_to_string(vm.folder.file("boot_args")).unwrap(),
            "console=ttyS0 init_on_free=1"
        );
        assert_eq!(vm.stop(Stop::Ask(LONG)), Stopped::Clean);
    }
    assert_eq!(
        vm.calls(),
        api(&["GET vm.info 200", "PUT vm.power-button 204"])
    );
    assert!(!vm.folder.file("v.sock").exists() && !vm.folder.file("api.sock").exists());
}

pub(crate) fn has_its_root_file_system(vmm: &Subject) {
    let host = TestHost::new(vmm);
    host.write_manifest(r#"{"file":"rootfs.erofs","type":"erofs"}"#);
    let vm = host.vm("web").started();
    if !vmm.is_real() {
        assert_eq!(
            fs::read_to_string(vm.folder.file("boot_args")).unwrap(),
            "console=ttyS0 root=/dev/vda ro init_on_free=1"
        );
    }
    let snapshot = vm.snapshot(&host.path("s"), false);
    let disk = &config(&snapshot)["disks"][0];
    assert_eq!(
        disk["path"],
        host.image().join("rootfs.erofs").to_str().unwrap()
    );
    assert_eq!(disk["readonly"], true);
}

/// Those from 52 on ask for it, and those before 51 do not know it.
pub(crate) fn a_disk_has_its_type_where_the_version_asks_for_it(vmm: &Subject) {
    for (version, expected) in [
        ("48.0.0", Value::Null),
        ("51.2.0", Value::Null),
        ("52.0.0", "Raw".into()),
        ("53.0.0", "Raw".into()),
    ] {
        let _installed = Installed::version(PROGRAM, version);
        let host = TestHost::new(vmm);
        host.write_manifest(r#"{"file":"rootfs.erofs","type":"erofs"}"#);
        let vm = host.vm("web").started();
        let snapshot = vm.snapshot(&host.path("s"), false);
        assert_eq!(
            config(&snapshot)["disks"][0]["image_type"],
            expected,
            "{version}"
        );
    }
}

pub(crate) fn a_later_versions_snapshot_is_refused_before_anything_starts(vmm: &Subject) {
    let host = TestHost::new(vmm);
    let vm = host.vm("web").started();
    let snapshot = vm.snapshot(&host.path("s"), false);
    let later = host.vm("later");
    let installed = Installed::version(PROGRAM, "53.0.0");
    later.restore(&snapshot, true).unwrap();
    drop(installed);
    let _installed = Installed::version(PROGRAM, "47.0.0");
    let earlier = host.vm("earlier");
    let error = earlier.restore(&snapshot, true).unwrap_err();
    told(
        &error,
        &[
            "Cloud Hypervisor 48.0.0 wrote the snapshot",
            "this is Cloud Hypervisor 47.0.0",
        ],
    );
    assert!(
        error.hint().contains("MVM_CLOUD_HYPERVISOR"),
        "{}",
        error.hint()
    );
    assert_eq!(earlier.calls(), [""; 0]);
}

pub(crate) fn starts_again_after_a_crash(vmm: &Subject) {
    both::starts_again_after_a_crash(vmm);
}

pub(crate) fn a_start_that_fails_leaves_no_process(vmm: &Subject) {
    let failing = |fault, at_most| both::failing_start(vmm, fault, at_most);
    let error = failing("PUT /api/v1/vm.create 500", LONG);
    told(&error, &["take the VM", "500", "injected"]);
    let error = failing("PUT /api/v1/vm.boot cut", LONG);
    told(&error, &["boot the guest", "in the middle of the answer"]);
    let error = failing("PUT /api/v1/vm.boot die", LONG);
    told(&error, &["then it ended", both::killed(vmm)]);
    let error = failing("PUT /api/v1/vm.boot hang", Duration::from_millis(700));
    told(&error, &["boot the guest", "not answered within"]);
}

pub(crate) fn an_answer_with_more_in_it_is_not_taken(vmm: &Subject) {
    let host = TestHost::new(vmm);
    let vm = host.vm("web").started();
    let (mut session, snapshot_dir) = vm.take(&host.path("s"));
    vm.inject("GET /api/v1/vm.info extra");
    let frozen = session.freeze(snapshot_dir, Deadline::new(LONG, None));
    told(
        &frozen.unwrap_err(),
        &["not what its API promises", "unheard_of"],
    );
    session.run_on(Deadline::new(LONG, None)).unwrap();
}

fn config(snapshot: &Snapshot) -> Value {
    let content = fs::read(snapshot.file("config.json")).unwrap();
    serde_json::from_slice(&content).unwrap()
}

pub(crate) fn snapshots_and_runs_on(vmm: &Subject) {
    let host = TestHost::new(vmm);
    let vm = host.vm("web").started();
    let snapshot = vm.snapshot(&host.path("s"), false);
    assert_eq!(
        vm.calls(),
        api(&[
            "GET vm.info 200",
            "GET vmm.ping 200",
            "GET vm.info 200",
            "PUT vm.pause 204",
            "PUT vm.snapshot 204",
            "GET vm.info 200",
            "PUT vm.resume 204",
        ])
    );
    assert_eq!(
        names(&snapshot.folder),
        [
            "config.json",
            "manifest.json",
            "memory-ranges",
            "state.json"
        ]
    );
    assert_eq!(snapshot.manifest.vmm.name, "cloud-hypervisor");
    let version = &snapshot.manifest.vmm.version;
    // A build that is no release's says more of itself.
    let release = vmm.version.split('-').next().unwrap();
    assert!(version.starts_with(release), "{version}");
    assert_eq!(vm.record().state, Recorded::Running);
}

pub(crate) fn suspends_and_resumes(vmm: &Subject) {
    let restored = api(&[
        "GET vmm.ping 200",
        "PUT vm.restore 204",
        "PUT vm.resume 204",
    ]);
    both::suspends_and_resumes(vmm, &restored);
}

/// Also one whose sockets are somewhere else altogether.
pub(crate) fn a_restore_leaves_the_snapshot_as_it_was(vmm: &Subject) {
    let host = TestHost::new(vmm);
    let vm = host.vm("web").started();
    let (session, frozen) = vm.freeze(&host.path("s"), LONG);
    let pending = frozen.unwrap();
    let partial = names(&host.path(""));
    let partial = partial.iter().find(|name| name.starts_with(".partial-"));
    let path = host.path(partial.unwrap()).join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["vsock"]["socket"] = "/nonexistent/v.sock".into();
    config["serial"]["file"] = "/nonexistent/console".into();
    fs::write(&path, config.to_string()).unwrap();
    let token = mvm_protocol::lifecycle::Token::new("t0ken").unwrap();
    let snapshot = pending.publish(token, "0.1.0".into()).unwrap();
    drop(session);
    let clone = host.vm("clone");
    clone.restore(&snapshot, true).unwrap();
    assert!(clone.folder.file("v.sock").exists());
    Snapshot::open(&snapshot.folder).expect("its hashes are as they were");
    let left = names(clone.folder.path());
    assert!(
        !left.iter().any(|name| name.starts_with("restore-")),
        "{left:?}"
    );
}

pub(crate) fn the_first_request_after_a_restore_may_fail(vmm: &Subject) {
    for fault in ["500", "die"] {
        let host = TestHost::new(vmm);
        let vm = host.vm("web").started();
        let snapshot = vm.snapshot(&host.path("s"), true);
        vm.forget_calls();
        vm.inject(&format!("PUT /api/v1/vm.resume {fault}"));
        let restored = vm.restore(&snapshot, false);
        let calls = vm.calls();
        if fault == "die" {
            let error = restored.unwrap_err();
            told(&error, &[both::killed(vmm)]);
            assert!(!vm.runs());
            continue;
        }
        restored.unwrap();
        assert_eq!(
            calls,
            api(&[
                "GET vmm.ping 200",
                "PUT vm.restore 204",
                "PUT vm.resume fault 500",
                "GET vm.info 200",
                "PUT vm.resume 204",
            ])
        );
    }
}

pub(crate) fn a_resume_whose_answer_was_lost_is_not_made_again(vmm: &Subject) {
    let host = TestHost::new(vmm);
    let vm = host.vm("web").started();
    let snapshot = vm.snapshot(&host.path("s"), true);
    vm.forget_calls();
    vm.inject("PUT /api/v1/vm.resume cut");
    vm.restore(&snapshot, false).unwrap();
    assert_eq!(
        vm.calls(),
        api(&[
            "GET vmm.ping 200",
            "PUT vm.restore 204",
            "PUT vm.resume 204 fault cut",
            "GET vm.info 200",
        ])
    );
}

pub(crate) fn a_snapshot_that_fails_leaves_the_vm_running(vmm: &Subject) {
    for (fault, was_paused) in [
        ("PUT /api/v1/vm.pause 500", false),
        ("PUT /api/v1/vm.pause cut", true),
        ("PUT /api/v1/vm.snapshot 500", true),
        ("PUT /api/v1/vm.snapshot cut", true),
    ] {
        let words = ["Cloud Hypervisor cannot"];
        // Resuming what runs would be refused.
        let resume = "PUT /api/v1/vm.resume 204";
        both::a_snapshot_that_fails_leaves_the_vm_running(vmm, fault, &words, resume, was_paused);
    }
}

pub(crate) fn a_vmm_that_dies_while_snapshotting_is_told(vmm: &Subject) {
    both::a_vmm_that_dies_while_snapshotting_is_told(vmm, "PUT /api/v1/vm.snapshot die");
}
