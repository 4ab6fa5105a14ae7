//! How the guest's scripts end a service where the kernel has no cgroups: by its process group. The
//! guests that the other tests boot have them.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use mvm_nix_tests::{Nix, repository};
use std::fs;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitStatus};
use std::thread::{self, JoinHandle};

/// A service of one process, which is waited for as init does.
fn service(state: &std::path::Path, name: &str, command: &str) -> JoinHandle<ExitStatus> {
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .process_group(0)
        .spawn()
        .unwrap();
    fs::write(
        state.join(format!("{name}.pid")),
        format!("{}\n", child.id()),
    )
    .unwrap();
    thread::spawn(move || child.wait().unwrap())
}

#[test]
fn who_does_not_end_is_killed() {
    let Some(nix) = Nix::find() else { return };
    let state = tempfile::tempdir().unwrap();
    let ready = state.path().join("ready");
    let obeys = service(state.path(), "obeys", "exec sleep 1000");
    let defies = format!("trap '' TERM; : >{}; exec sleep 1000", ready.display());
    let defies = service(state.path(), "defies", &defies);
    fs::write(state.path().join("ended.pid"), "").unwrap();
    while !ready.exists() {
        thread::yield_now();
    }
    let script = format!(
        ". {}/packaging/guest/processes
         bb={} cgroups=/nonexistent state={}
         end 1 obeys ended never defies
         echo \"killed:$killed left:$left\"
         for name in obeys ended never defies; do alive $name && echo $name; done",
        repository().display(),
        nix.parts.busybox.display(),
        state.path().display(),
    );
    let ended = Command::new(&nix.parts.busybox)
        .args(["sh", "-c", &script])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ended.stdout);
    assert_eq!(said, "killed: defies left:\n", "{ended:?}");
    assert_eq!(obeys.join().unwrap().signal(), Some(15));
    assert_eq!(defies.join().unwrap().signal(), Some(9));
}
