//! A VM from start to removal, as a user does it.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use mvm_guest_tests::{Mvmctl, Parts, Run, build_dev_image, build_image, eventually};
use mvm_vmm::Deadline;
use mvm_vmm::build::Built;
use mvm_vmm::qemu::arguments::{Accelerator, QMP_SOCKET};
use mvm_vmm::qemu::kvm::{Verdict, boots};
use mvm_vmm::qemu::qmp::Qmp;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::TempDir;

struct Image {
    folder: TempDir,
    built: Built,
}

impl Image {
    fn new(parts: &Parts) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let built = build_image(parts, folder.path());
        Self { folder, built }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("image")
    }
}

fn is_there(pid: i64) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A zombie has ended, whether its parent looks or not.
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

#[test]
fn a_vm_is_started_seen_stopped_and_removed() {
    let Some(parts) = Parts::find() else { return };
    let image = Image::new(&parts);
    let image = image.path();
    let image = image.to_str().unwrap();
    let mvmctl = Mvmctl::new();
    let start = ["vm", "start", "web", "--image", image, "--backend", "qemu"];
    let started = mvmctl.ok(&[&start[..], &["--timings", "--json"]].concat());
    let timings: serde_json::Value = serde_json::from_str(&started.stdout).unwrap();
    let timings = &timings["timings"];
    let host = ["vmm_started_ms", "agent_listens_ms", "agent_answers_ms"];
    let host = host.map(|what| timings["host"][what].as_u64().unwrap());
    assert!(host.is_sorted(), "{timings}");
    let guest = [
        "process_started_secs",
        "agent_started_secs",
        "drop_ins_loaded_secs",
    ];
    let guest = guest.map(|what| timings["guest"][what].as_f64().unwrap());
    assert!(guest[0] > 0.0 && guest.is_sorted(), "{timings}");
    let pids = mvmctl.pids("web");
    assert!(
        pids.len() == 3 && pids.iter().all(|pid| is_there(*pid)),
        "{pids:?}"
    );

    let again = mvmctl.run(&["vm", "start", "web"]);
    assert_eq!(again.code, Some(1));
    assert!(again.stderr.contains("running already"), "{again:?}");
    mvmctl.ok(&["vm", "ping", "web"]);
    // One of its checks hangs: whether the exit code says so yet is a matter of time.
    let status = mvmctl.run(&["vm", "status", "web", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&status.stdout).unwrap();
    assert_eq!(
        (&status["vm"], &status["lifecycle"]),
        (&"web".into(), &"running".into())
    );
    let refused = mvmctl.run(&["vm", "rm", "web"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let logs = mvmctl.start(&["vm", "logs", "--follow", "web"]);

    let stopped = mvmctl.ok(&["vm", "stop", "web"]);
    assert!(
        stopped.stderr.contains("web has stopped"),
        "of its own accord: {stopped:?}"
    );
    assert!(!pids.into_iter().any(is_there));
    assert!(!mvmctl.file("web", "v.sock").exists());
    let followed = logs.wait_with_output().unwrap();
    let followed = String::from_utf8_lossy(&followed.stdout).into_owned();
    assert!(
        followed.contains("mvm-guest-agent: listening on vsock:52"),
        "{followed}"
    );
    assert!(
        followed.contains("reboot: Power down"),
        "to its end: {followed}"
    );
    let logs = mvmctl.ok(&["vm", "logs", "web"]);
    assert_eq!(logs.stdout, followed);
    let again = mvmctl.ok(&["vm", "stop", "web"]);
    assert!(again.stderr.contains("was not running"), "{again:?}");

    mvmctl.ok(&["vm", "rm", "web"]);
    assert!(!mvmctl.home().join("vms/web").exists());
    assert_eq!(mvmctl.run(&["vm", "stop", "web"]).code, Some(3));
}

/// How long a follower may take to notice, on a busy machine. vhost-device-vsock outlives its QEMU, and
/// keeps connections open: without being told it takes 15 s until three heartbeats are missing.
const AT_ONCE: Duration = Duration::from_secs(5);

/// A follower that has seen the guest.
fn follow(mvmctl: &Mvmctl, arguments: &[&str]) -> Child {
    let mut follower = mvmctl.start(arguments);
    let mut lines = BufReader::new(follower.stdout.as_mut().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("running"));
    follower
}

#[test]
fn a_vm_that_ended_by_itself_says_how() {
    let Some(parts) = Parts::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    build_dev_image(&parts, folder.path());
    let image = folder.path().join("image");
    let mvmctl = Mvmctl::new();
    mvmctl.ok(&[
        "vm",
        "start",
        "web",
        "--image",
        image.to_str().unwrap(),
        "--backend",
        "qemu",
    ]);
    for (deed, in_short, words) in [
        (
            Some("poweroff"),
            "ended (powered off)",
            "its guest powered off",
        ),
        (
            Some("echo c >/proc/sysrq-trigger"),
            "ended (panicked)",
            "Kernel panic - not syncing: sysrq triggered crash",
        ),
        (None, "ended (killed?)", "neither console nor log says why"),
    ] {
        let events = follow(&mvmctl, &["vm", "events", "web"]);
        // One of its checks hangs: it is never healthy.
        let waits = mvmctl.start(&["vm", "wait", "web", "--for", "healthy"]);
        let qemu = mvmctl.vmm_pid("web");
        let asked = deed.map(|deed| mvmctl.start(&["vm", "exec", "web", "--", "sh", "-c", deed]));
        if asked.is_none() {
            let killed = Command::new("kill")
                .args(["-KILL", &qemu.to_string()])
                .status();
            assert!(killed.unwrap().success());
        }
        let until = Instant::now() + Duration::from_secs(30);
        while is_there(qemu) {
            assert!(Instant::now() < until, "QEMU runs on");
            sleep(Duration::from_millis(5));
        }
        let ended = Instant::now();
        for follower in [events, waits] {
            let run = Run::from(follower.wait_with_output().unwrap());
            assert_eq!(run.code, Some(3), "{run:?}");
            assert!(run.stderr.contains(words), "{run:?}");
        }
        assert!(ended.elapsed() < AT_ONCE, "{:?}", ended.elapsed());
        eprintln!("{in_short}: told after {:?}", ended.elapsed());
        if let Some(mut asked) = asked {
            // It was in the guest when that ended.
            let _ = asked.kill();
            asked.wait().unwrap();
        }
        let begun = Instant::now();
        for line in [["vm", "status", "web"], ["vm", "ping", "web"]] {
            let run = mvmctl.run(&line);
            assert_eq!(run.code, Some(3), "{run:?}");
            assert!(run.stderr.contains(words), "{run:?}");
        }
        let run = mvmctl.run(&["vm", "exec", "web", "--", "true"]);
        assert_eq!(run.code, Some(3), "{run:?}");
        assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
        let listed = mvmctl.run(&["vm", "ls"]).stdout;
        assert!(listed.contains(in_short), "{listed}");
        mvmctl.ok(&["vm", "start", "web"]);
    }
}

#[test]
fn one_that_qemu_s_monitor_paused_is_not_dialled() {
    let Some(parts) = Parts::find() else { return };
    let image = Image::new(&parts);
    let image = image.path();
    let mvmctl = Mvmctl::new();
    mvmctl.ok(&[
        "vm",
        "start",
        "web",
        "--image",
        image.to_str().unwrap(),
        "--backend",
        "qemu",
    ]);
    let folder = mvmctl.file("web", "");
    let monitor = |command: &str| {
        let mut qmp = Qmp::connect(&folder, QMP_SOCKET).unwrap().unwrap();
        qmp.execute(command, &serde_json::json!({})).unwrap();
    };
    monitor("stop");
    for line in [["vm", "ping", "web"], ["vm", "status", "web"]] {
        let run = mvmctl.run(&line);
        assert_eq!(run.code, Some(3), "{run:?}");
        assert!(
            run.stderr.contains("it was not mvmctl that paused it"),
            "{run:?}"
        );
    }
    // Somebody who sits at the monitor may have paused it as well as not.
    let held = Qmp::connect(&folder, QMP_SOCKET).unwrap().unwrap();
    let run = mvmctl.run(&["vm", "ping", "web", "--timeout", "500ms", "--json"]);
    let told: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(told["error"]["code"], "vmm-silent", "{run:?}");
    drop(held);
    monitor("cont");
    // Its vsock backend was not dialled while it stood still, and works.
    mvmctl.ok(&["vm", "ping", "web"]);
}

#[test]
fn a_guest_that_does_not_boot_shows_why_and_leaves_nothing() {
    let Some(parts) = Parts::find() else { return };
    let image = Image::new(&parts);
    fs::write(image.path().join("initrd"), "this is no initrd").unwrap();
    let mvmctl = Mvmctl::new();
    let failed = mvmctl.run(&[
        "vm",
        "start",
        "bad",
        "--image",
        image.path().to_str().unwrap(),
    ]);
    let ended = "QEMU ended before the VM was up";
    assert_eq!(failed.code, Some(1));
    assert!(failed.stderr.contains("Kernel panic"), "{failed:?}");
    assert!(failed.stderr.contains(ended), "{failed:?}");
    nothing_is_left(&mvmctl, "bad");
    // QEMU itself refuses that, and its connections break off before it has ended.
    fs::write(
        image.path().join("vmlinuz"),
        "this is no kernel".repeat(1000),
    )
    .unwrap();
    let image = image.path();
    let start = ["vm", "start", "bad", "--image", image.to_str().unwrap()];
    let failed = mvmctl.run(&[&start[..], &["--backend", "qemu"]].concat());
    assert_eq!(failed.code, Some(1));
    assert!(failed.stderr.contains(ended), "{failed:?}");
    assert!(failed.stderr.contains("the end of vmm.log"), "{failed:?}");
}

#[test]
fn an_image_with_a_fault_starts_nothing() {
    let Some(parts) = Parts::find() else { return };
    let image = Image::new(&parts);
    let path = image.path();
    let manifest = fs::read_to_string(path.join("manifest.json")).unwrap();
    let start = |manifest: &str| {
        fs::write(path.join("manifest.json"), manifest).unwrap();
        let mvmctl = Mvmctl::new();
        let failed = mvmctl.run(&["vm", "start", "bad", "--image", path.to_str().unwrap()]);
        assert_eq!(failed.code, Some(1), "{failed:?}");
        assert!(!mvmctl.home().join("vms/bad").exists(), "{failed:?}");
        failed.stderr
    };
    let misspelt = start(&manifest.replace("cmdline", "cmd_line"));
    assert!(misspelt.contains("unknown field `cmd_line`"), "{misspelt}");
    let missing = start(&manifest.replace("\"initrd\": \"initrd\"", "\"initrd\": \"initramfs\""));
    assert!(
        missing.contains("\"initramfs\" as its initrd: No such file"),
        "{missing}"
    );
}

#[tokio::test]
async fn ctrl_c_during_a_start_leaves_nothing() {
    let Some(parts) = Parts::find() else { return };
    let image = Image::new(&parts);
    let mvmctl = Mvmctl::new();
    let starting = mvmctl.start(&[
        "vm",
        "start",
        "web",
        "--image",
        image.path().to_str().unwrap(),
    ]);
    let pids = all_processes(&mvmctl, "web").await;
    signal("INT", i64::from(starting.id()));
    let ended = starting.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(
        String::from_utf8_lossy(&ended.stderr).contains("interrupted"),
        "{ended:?}"
    );
    assert!(!pids.into_iter().any(is_there));
    nothing_is_left(&mvmctl, "web");
}

#[tokio::test]
async fn a_start_that_was_killed_is_cleared_by_the_next() {
    let Some(parts) = Parts::find() else { return };
    let image = Image::new(&parts);
    let image = image.path();
    let image = image.to_str().unwrap();
    let mvmctl = Mvmctl::new();
    let mut starting = mvmctl.start(&["vm", "start", "web", "--image", image]);
    let pids = all_processes(&mvmctl, "web").await;
    let meanwhile = mvmctl.run(&["vm", "start", "web"]);
    assert!(
        meanwhile.stderr.contains("another mvmctl (process ")
            && meanwhile.stderr.contains("is starting"),
        "{meanwhile:?}"
    );
    starting.kill().unwrap();
    starting.wait().unwrap();
    assert!(
        pids.iter().all(|pid| is_there(*pid)),
        "they have a session of their own"
    );
    mvmctl.ok(&["vm", "start", "web"]);
    assert!(!pids.into_iter().any(is_there));
    mvmctl.ok(&["vm", "stop", "--force", "web"]);
    nothing_is_left(&mvmctl, "web");
}

/// Waits until QEMU, the vsock backend and what keeps the console are in `vm.json`, and gives their
/// pids.
async fn all_processes(mvmctl: &Mvmctl, vm: &str) -> Vec<i64> {
    eventually("all processes run", async || {
        Some(mvmctl.pids(vm)).filter(|pids| pids.len() == 3)
    })
    .await
}

fn nothing_is_left(mvmctl: &Mvmctl, vm: &str) {
    assert!(mvmctl.pids(vm).is_empty());
    // A start that came to no VM leaves none.
    if let Ok(record) = fs::read_to_string(mvmctl.file(vm, "vm.json")) {
        assert!(record.contains("\"stopped\""), "{record}");
    }
    let folder = fs::canonicalize(mvmctl.home().join("vms"))
        .unwrap()
        .join(vm);
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let at = fs::read_link(process.path().join("cwd")).unwrap_or_default();
        assert_ne!(at, folder, "{} runs in it", process.path().display());
    }
}

fn signal(name: &str, pid: i64) {
    let sent = Command::new("kill")
        .args(["-s", name, &pid.to_string()])
        .status();
    assert!(sent.unwrap().success());
}

#[test]
fn an_image_is_the_same_bytes_each_time() {
    let Some(parts) = Parts::find() else { return };
    let (one, two) = (Image::new(&parts), Image::new(&parts));
    assert_eq!(one.built.modules, two.built.modules);
    for file in ["initrd", "vmlinuz", "manifest.json"] {
        let read = |image: &Image| fs::read(image.path().join(file)).unwrap();
        assert!(read(&one) == read(&two), "{file} differs");
    }
}

/// The command line that builds an image of these parts.
fn image_build<'a>(parts: &'a Parts, out: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let text = |path: &'a Path| path.to_str().unwrap();
    let mut line = vec!["image", "build", "--out", text(out)];
    line.extend(parts.arguments(&parts.agent).map(text));
    line.extend(more);
    line
}

/// The drop-ins are read by the agent that will read them in the guest.
#[test]
fn a_faulty_drop_in_fails_the_build() {
    let Some(parts) = Parts::find() else { return };
    let etc = tempfile::tempdir().unwrap();
    fs::create_dir(etc.path().join("probes.d")).unwrap();
    let probe = "{\"name\": \"disk\",\n \"comand\": \"df\"}";
    fs::write(etc.path().join("probes.d/disk.json"), probe).unwrap();
    let out = etc.path().join("image");
    let mvmctl = Mvmctl::new();
    let etc = ["--etc", etc.path().to_str().unwrap()];
    let failed = mvmctl.run(&image_build(&parts, &out, &etc));
    assert_eq!(failed.code, Some(1), "{failed:?}");
    assert!(failed.stderr.contains("disk.json:2"), "{failed:?}");
    assert!(failed.stderr.contains("comand"), "{failed:?}");
    assert!(!out.exists());
}

#[test]
fn what_was_built_as_data() {
    let Some(parts) = Parts::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("image");
    let built = Mvmctl::new().run(&image_build(&parts, &out, &["--json"]));
    assert_eq!(built.code, Some(0), "{built:?}");
    let report: serde_json::Value = serde_json::from_str(&built.stdout).unwrap();
    assert_eq!(report["image"], out.to_str().unwrap());
    let manifest = fs::read(out.join("manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(report["agent"], manifest["agent"]);
    let initrd = fs::metadata(out.join("initrd")).unwrap();
    assert_eq!(report["initrd_bytes"], initrd.len());
}

/// Whether KVM is usable is found by a trial. Where there is none, emulation shows that the trial
/// itself can succeed.
#[test]
fn the_trial_of_kvm_knows_a_kernel_that_boots() {
    let Some(parts) = Parts::find() else { return };
    let deadline = Deadline::new(Duration::from_mins(1), None);
    let verdict = boots(Accelerator::Tcg, &parts.qemu, &parts.kernel, deadline);
    assert_eq!(verdict.unwrap(), Verdict::Usable);
}
