//! `--backend firecracker`

use crate::both;
use crate::test_host::{Installed, LONG, TestHost, names, told};
use mvm_fake_vmm::Subject;
use mvm_vmm::error::Error;
use mvm_vmm::http::HttpError;
use mvm_vmm::{Deadline, Recorded, Snapshot, Stop, Stopped};
use std::fs;
use std::time::{Duration, Instant};

/// The variable that names the program.
const PROGRAM: &str = "MVM_FIRECRACKER";

const STARTED: [&str; 6] = [
    "GET /version 200",
    "PUT /machine-config 204",
    "PUT /boot-source 204",
    "PUT /vsock 204",
    "PUT /entropy 204",
    "PUT /actions 204",
];

pub(crate) fn starts_and_stops(vmm: &Subject) {
    let host = TestHost::new(vmm);
    // With letters that an id of Firecracker's cannot have.
    let vm = host.vm("web_1.a");
    let record = vm.try_start(LONG).unwrap();
    assert_eq!(vm.calls(), STARTED);
    assert_eq!(record.state, Recorded::Running);
    assert_eq!(record.accelerator.as_deref(), Some("kvm"));
    if !vmm.is_real() {
        assert_eq!(
            fs::read_to_string(vm.folder.file("boot_args")).unwrap(),
            "console=ttyS0 reboot=k panic=1 pci=off init_on_free=1"
        );
    }
    assert!(vm.folder.file("v.sock").exists());
    assert_eq!(vm.stop(Stop::Ask(LONG)), Stopped::Clean);
    assert_eq!(vm.calls(), ["GET / 200", "PUT /actions 204"]);
    assert!(!vm.folder.file("v.sock").exists() && !vm.folder.file("api.sock").exists());
    assert!(!vm.runs());
}

/// KVM can be opened here; whether it boots a kernel is tried in QEMU, whose stand-in goes by what the
/// kernel's file says.
pub(crate) fn is_chosen_if_kvm_boots_the_kernel(vmm: &Subject) {
    let host = TestHost::new(vmm);
    fs::create_dir_all(host.path("home")).unwrap();
    let vm = host.vm("hangs");
    // The next that can do without KVM. That it has no more than the trial is not asked here.
    let error = vm.try_start_with("auto", LONG).unwrap_err();
    assert_eq!(vm.record().backend, "qemu", "{error}");
    let remembered = fs::read_to_string(host.path("home/kvm.json")).unwrap();
    assert!(remembered.contains("failed to set MSR"), "{remembered}");

    fs::write(host.image().join("vmlinux"), "\x7fELF KVM boots this").unwrap();
    let vm = host.vm("boots");
    let record = vm.try_start_with("auto", LONG).unwrap();
    assert_eq!(record.backend, "firecracker");
}

pub(crate) fn has_its_root_file_system(vmm: &Subject) {
    let host = TestHost::new(vmm);
    host.write_manifest(r#"{"file":"rootfs.erofs","type":"erofs"}"#);
    let vm = host.vm("web");
    vm.try_start(LONG).unwrap();
    let calls = vm.calls();
    assert_eq!(calls[3], "PUT /drives/rootfs 204", "{calls:?}");
}

pub(crate) fn starts_again_after_a_crash(vmm: &Subject) {
    both::starts_again_after_a_crash(vmm);
}

pub(crate) fn a_start_that_fails_leaves_no_process(vmm: &Subject) {
    let failing = |fault, at_most| both::failing_start(vmm, fault, at_most);
    let error = failing("PUT /vsock 500", LONG);
    told(&error, &["add the vsock device", "500", "injected"]);
    let error = failing("PUT /boot-source cut", LONG);
    told(&error, &["take the kernel", "in the middle of the answer"]);
    let error = failing("PUT /actions die", LONG);
    told(
        &error,
        &["start the guest", "then it ended", both::killed(vmm)],
    );
    if !vmm.is_real() {
        assert!(error.logs().unwrap().to_string().contains("injected"));
    }
    let soon = Duration::from_millis(700);
    let begun = Instant::now();
    let error = failing("PUT /entropy hang", soon);
    told(&error, &["add the entropy device", "not answered within"]);
    assert!(begun.elapsed() < LONG / 2, "{:?}", begun.elapsed());
    assert!(matches!(
        error,
        Error::Api {
            source: HttpError::TimedOut { .. },
            ..
        }
    ));
}

pub(crate) fn an_answer_with_more_in_it_is_not_taken(vmm: &Subject) {
    let host = TestHost::new(vmm);
    let vm = host.vm("web");
    vm.inject("GET /version extra");
    let error = vm.try_start(LONG).unwrap_err();
    told(&error, &["not what its API promises", "unheard_of"]);
}

pub(crate) fn snapshots_and_runs_on(vmm: &Subject) {
    let host = TestHost::new(vmm);
    let vm = host.vm("web").started();
    let snapshot = vm.snapshot(&host.path("s"), false);
    let mut expected = vec![
        "GET / 200",
        "GET /version 200",
        "GET /version 200",
        "PATCH /vm 204",
        "PUT /snapshot/create 204",
        "GET / 200",
        "GET /version 200",
    ];
    // Where a resume alone would cut the guest off.
    if vmm.version == "1.16.1" {
        expected.push("PUT /snapshot/create 400");
    }
    expected.push("PATCH /vm 204");
    assert_eq!(vm.calls(), expected);
    assert_eq!(
        names(&snapshot.folder),
        ["manifest.json", "memory", "state"]
    );
    assert_eq!(snapshot.manifest.vmm.name, "firecracker");
    assert_eq!(snapshot.manifest.vmm.version, vmm.version);
    assert_eq!(vm.record().state, Recorded::Running);
}

pub(crate) fn suspends_and_resumes(vmm: &Subject) {
    both::suspends_and_resumes(vmm, &["GET /version 200", "PUT /snapshot/load 204"]);
}

/// Each knows fields that those before it do not, and none is asked for more than it knows.
pub(crate) fn every_version_restores_its_own_snapshots(vmm: &Subject) {
    for version in ["1.10.1", "1.13.1", "1.15.1", "1.16.1", "1.17.0-dev"] {
        let _installed = Installed::version(PROGRAM, version);
        let host = TestHost::new(vmm);
        let vm = host.vm("web").started();
        let snapshot = vm.snapshot(&host.path("s"), false);
        assert_eq!(snapshot.manifest.vmm.version, version);
        let clone = host.vm("clone");
        clone.restore(&snapshot, true).unwrap();
        assert!(clone.folder.file("v.sock").exists(), "{version}");
    }
}

/// From 1.13 on. What is in the file is all of the memory, also of a VM that was restored and whose own
/// pages are few.
pub(crate) fn what_nobody_touched_is_not_written(vmm: &Subject) {
    let written = |version: &str| {
        let _installed = Installed::version(PROGRAM, version);
        let host = TestHost::new(vmm);
        let vm = host.vm("web").started();
        fs::write(vm.folder.file("memory-used"), "4").unwrap();
        let first = vm.snapshot(&host.path("first"), false);
        let clone = host.vm("clone");
        clone.restore(&first, true).unwrap();
        let second = clone.snapshot(&host.path("second"), false);
        let asked = fs::read_to_string(vm.folder.file("snapshots.log")).unwrap();
        let memory = |snapshot: &Snapshot| {
            // Without the page that has what the guest remembers.
            fs::read(snapshot.file("memory")).unwrap().split_off(4096)
        };
        (asked, memory(&first), memory(&second))
    };
    let (asked, first, second) = written("1.13.1");
    assert_eq!(asked, "Diff\n");
    assert!(first.iter().any(|byte| *byte != 0));
    assert!(first == second, "what it was restored from is missing");
    let (asked, whole, _) = written("1.12.1");
    assert_eq!(asked, "Full\n");
    assert!(first == whole, "not all of the memory was written");
}

pub(crate) fn another_versions_snapshot_is_refused_before_anything_starts(vmm: &Subject) {
    let host = TestHost::new(vmm);
    let vm = host.vm("web").started();
    let snapshot = vm.snapshot(&host.path("s"), false);
    let other = host.vm("other");
    for version in ["1.15.1", "1.17.0-dev"] {
        let _installed = Installed::version(PROGRAM, version);
        let error = other.restore(&snapshot, true).unwrap_err();
        let expected =
            format!("Firecracker 1.16.1 wrote the snapshot, and this is Firecracker {version}");
        told(&error, &[&expected]);
        assert!(error.hint().contains("MVM_FIRECRACKER"), "{}", error.hint());
        assert_eq!(other.calls(), [""; 0]);
    }
    // One that was put in its place since it was asked is asked again.
    fs::write(other.folder.file("version"), "1.15.1").unwrap();
    let error = other.restore(&snapshot, true).unwrap_err();
    told(&error, &["and this is Firecracker 1.15.1"]);
    assert_eq!(other.calls(), ["GET /version 200"]);
    assert!(!other.runs());
}

pub(crate) fn a_manifest_that_does_not_go_together_is_refused_before_anything_starts(
    vmm: &Subject,
) {
    let host = TestHost::new(vmm);
    let vm = host.vm("web").started();
    let sound = vm.snapshot(&host.path("s"), false);
    let other = host.vm("other");
    let refused = |alter: &dyn Fn(&mut Snapshot), expected: &[&str]| {
        let mut snapshot = sound.clone();
        alter(&mut snapshot);
        let error = other.restore(&snapshot, true).unwrap_err();
        told(&error, expected);
        assert!(!error.hint().is_empty());
        assert_eq!(other.calls(), [""; 0]);
    };
    let vmm = |name: &'static str| {
        move |snapshot: &mut Snapshot| snapshot.manifest.vmm.name = name.into()
    };
    refused(
        &vmm("crosvm"),
        &["was written by \"crosvm\"", "knows firecracker,"],
    );
    // It has files that this one does not write.
    refused(&vmm("cloud-hypervisor"), &["names no file \"config.json\""]);
    refused(
        &|snapshot| snapshot.manifest.files.retain(|file| file.file != "memory"),
        &["manifest.json", "names no file \"memory\""],
    );
    let mib = sound.manifest.memory_mib;
    let more = format!("the guest has {} MiB of memory", mib + 1);
    let bytes = format!("{} bytes", u64::from(mib) << 20);
    refused(
        &|snapshot| snapshot.manifest.memory_mib = mib + 1,
        &[&more, &bytes],
    );
}

/// Where they got into a line of the guest's, the agent was not heard.
pub(crate) fn its_own_words_are_not_in_the_guests_console(vmm: &Subject) {
    let host = TestHost::new(vmm);
    let vm = host.vm("web").started();
    let console = fs::read_to_string(vm.folder.file("console.log")).unwrap();
    if vmm.is_real() {
        assert!(!console.contains("Running Firecracker"), "{console}");
    } else {
        assert_eq!(console, "mvm-guest-agent: listening on vsock port 52\n");
    }
    let log = fs::read_to_string(vm.folder.file("vmm.log")).unwrap();
    let words = format!("Running Firecracker v{}", vmm.version);
    assert!(log.contains(&words), "{log}");
}

pub(crate) fn a_clone_has_sockets_of_its_own(vmm: &Subject) {
    let host = TestHost::new(vmm);
    let vm = host.vm("web").started();
    let snapshot = vm.snapshot(&host.path("s"), false);
    let clones = [host.vm("one"), host.vm("two")];
    for clone in &clones {
        let restored = clone.restore(&snapshot, true).unwrap();
        assert_eq!(restored.socket(), clone.folder.file("v.sock"));
        assert!(restored.socket().exists());
    }
    assert!(vm.runs() && clones.iter().all(super::test_host::Vm::runs));
}

pub(crate) fn a_snapshot_that_fails_leaves_the_vm_running(vmm: &Subject) {
    for (fault, expected, was_paused) in [
        ("PATCH /vm 500", "pause the VM", false),
        // It is paused, and nobody knows.
        ("PATCH /vm cut", "pause the VM", true),
        ("PUT /snapshot/create 500", "write the snapshot", true),
        ("PUT /snapshot/create cut", "write the snapshot", true),
    ] {
        let words = ["Firecracker cannot", expected];
        let resume = "PATCH /vm";
        both::a_snapshot_that_fails_leaves_the_vm_running(vmm, fault, &words, resume, was_paused);
    }
}

pub(crate) fn a_vmm_that_dies_while_snapshotting_is_told(vmm: &Subject) {
    both::a_vmm_that_dies_while_snapshotting_is_told(vmm, "PUT /snapshot/create die");
}

pub(crate) fn a_vmm_that_hangs_while_snapshotting_is_given_up(vmm: &Subject) {
    let host = TestHost::new(vmm);
    let vm = host.vm("web").started();
    vm.inject("PUT /snapshot/create hang");
    let soon = Duration::from_millis(400);
    let (mut session, frozen) = vm.freeze(&host.path("s"), soon);
    told(&frozen.unwrap_err(), &["not answered within 0.4 s"]);
    let error = session.run_on(Deadline::new(soon, None)).unwrap_err();
    told(&error, &["not answered within 0.4 s"]);
    // It may be frozen still: nobody is to dial it.
    assert_eq!(vm.record().state, Recorded::Asleep);
    drop(session);
    assert_eq!(vm.stop(Stop::Force), Stopped::Forced);
    assert!(!vm.runs());
}

/// The one that runs counts, whatever is installed by now.
pub(crate) fn the_broken_version_is_refused(vmm: &Subject) {
    let host = TestHost::new(vmm);
    let vm = host.vm("web");
    fs::write(vm.folder.file("version"), "1.16.0\n").unwrap();
    let vm = vm.started();
    // By the one that runs: the one that is installed is another.
    let error = vm.try_take(&host.path("s")).unwrap_err();
    told(&error, &["1.16.0", "loses the guest's vsock"]);
    assert!(error.hint().contains("1.16.1"));
    let asked = ["GET / 200", "GET /version 200"];
    assert_eq!(vm.calls(), asked, "it was not paused");
    assert_eq!(names(&host.path("")), ["home", "image"]);
    // Nor is a sound snapshot restored with it.
    let other = host.vm("other").started();
    let snapshot = other.snapshot(&host.path("s"), false);
    let clone = host.vm("clone");
    fs::write(clone.folder.file("version"), "1.16.0\n").unwrap();
    let error = clone.restore(&snapshot, true).unwrap_err();
    told(&error, &["loses the guest's vsock"]);
    assert!(!clone.runs());
    let _installed = Installed::version(PROGRAM, "1.16.0");
    clone.forget_calls();
    let error = clone.restore(&snapshot, true).unwrap_err();
    told(&error, &["loses the guest's vsock"]);
    let hint = error.hint();
    assert!(hint.contains("restore the snapshot with it"), "{hint}");
    assert_eq!(clone.calls(), [""; 0]);
}

/// Of the real program of that version.
pub(crate) fn no_snapshot_is_taken_with_it(vmm: &Subject) {
    let host = TestHost::new(vmm);
    let vm = host.vm("web").started();
    let error = vm.try_take(&host.path("s")).unwrap_err();
    told(&error, &["1.16.0", "loses the guest's vsock"]);
    assert_eq!(vm.record().state, Recorded::Running);
}

pub(crate) fn a_load_that_fails_is_told_with_the_end_of_the_process(vmm: &Subject) {
    let host = TestHost::new(vmm);
    let vm = host.vm("web").started();
    let snapshot = vm.snapshot(&host.path("s"), true);
    let memory = snapshot.file("memory");
    let kept = fs::read(&memory).unwrap();
    // After it was checked.
    fs::remove_file(&memory).unwrap();
    let error = vm.restore(&snapshot, false).unwrap_err();
    told(
        &error,
        &["load the snapshot", "then it ended: exit status 1"],
    );
    // On a busy machine the real one may have ended before its answer is out.
    if !(vmm.is_real() && error.to_string().contains("in the middle of the answer")) {
        told(&error, &["400: Load snapshot error:", "No such file"]);
    }
    assert!(!vm.runs());
    assert_eq!(vm.record().state, Recorded::Asleep, "as it was");
    fs::write(&memory, kept).unwrap();
    vm.restore(&snapshot, false).unwrap();
}
