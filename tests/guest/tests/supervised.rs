//! A real microVM under a supervisor: `mvmctl vm run`, a notify socket, signals and the exit code.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use mvm_guest_tests::{Mvmctl, Parts, Run, build_sleeper};
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// A boot and a restore, emulated, on a busy machine.
const PATIENCE: Duration = Duration::from_mins(2);

/// Begins a run, and waits until it has said that it is ready.
fn ready(mvmctl: &Mvmctl, image: &str) -> Child {
    let path = mvmctl.home().join("notify");
    let _ = std::fs::remove_file(&path);
    let socket = UnixDatagram::bind(&path).unwrap();
    let child = mvmctl
        .command(&["vm", "run", "web", "--image", image, "--backend", "qemu"])
        .args(["--on-term", "sleep", "--notify", "healthy"])
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "6000000")
        .spawn()
        .unwrap();
    let until = Instant::now() + PATIENCE;
    let mut told = String::new();
    let mut buffer = [0; 4096];
    while !told.lines().any(|line| line == "READY=1") {
        let left = until.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "{told}");
        socket.set_read_timeout(Some(left)).unwrap();
        let Ok(count) = socket.recv(&mut buffer) else {
            continue;
        };
        told.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
        told.push('\n');
    }
    let healthy = told.find("STATUS=running, healthy");
    assert!(healthy < told.find("READY=1"), "{told}");
    child
}

fn end(child: Child, signal: &str) -> Run {
    let signalled = Command::new("kill")
        .args([signal, &child.id().to_string()])
        .status();
    assert!(signalled.unwrap().success());
    Run::from(child.wait_with_output().unwrap())
}

fn probe(mvmctl: &Mvmctl, name: &str) -> String {
    let checked = mvmctl.ok(&["vm", "check", "web", name, "--json"]);
    let checked: serde_json::Value = serde_json::from_str(&checked.stdout).unwrap();
    checked["probe"]["last_check"]["output"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[test]
fn a_guest_sleeps_when_its_service_is_stopped_and_goes_on_when_that_is_started() {
    let Some(parts) = Parts::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    build_sleeper(&parts, folder.path());
    let image = folder.path().join("image");
    let image = image.to_str().unwrap();
    let mvmctl = Mvmctl::new();

    let first = ready(&mvmctl, image);
    let boot_id = probe(&mvmctl, "boot-id");
    assert_eq!(probe(&mvmctl, "log"), "");
    let ended = end(first, "-TERM");
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(
        ended
            .stdout
            .contains("mvm-guest-agent: listening on vsock:52"),
        "{ended:?}"
    );
    assert_eq!(mvmctl.pids("web"), [0; 0], "nothing of it runs");

    // Its supervisor is killed, the VM runs on, and is taken over.
    let second = ready(&mvmctl, image);
    assert_eq!(probe(&mvmctl, "boot-id"), boot_id, "it was not booted anew");
    let log = probe(&mvmctl, "log");
    for step in ["checkpoint a", "restore a", "checkpoint c", "restore c"] {
        assert!(log.contains(step), "{step}: {log}");
    }
    let pids = mvmctl.pids("web");
    assert_eq!(end(second, "-KILL").code, None);
    let third = ready(&mvmctl, image);
    assert_eq!(mvmctl.pids("web"), pids);
    let ended = end(third, "-TERM");
    assert_eq!(ended.code, Some(0), "{ended:?}");

    // One that powers off by itself is done.
    let fourth = ready(&mvmctl, image);
    assert_eq!(probe(&mvmctl, "boot-id"), boot_id);
    mvmctl.ok(&["vm", "stop", "web"]);
    let ended = Run::from(fourth.wait_with_output().unwrap());
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stdout.contains("reboot: Power down"), "{ended:?}");
}
