//! A restore, or a wake, that does not come to its end: `mvmctl` is killed in it, or the VMM is.

use crate::test_host::{Backend, LONG, TestHost};
use std::time::{Duration, Instant};

const RESTORE: &str = "vm restore s --name new";

/// How often a restore is killed, at moments spread over its whole duration.
const KILLS: u32 = 20;

/// How soon it is noticed that a VMM has died.
const AT_ONCE: Duration = Duration::from_secs(5);

pub(crate) fn a_restore_that_is_killed_leaves_nothing_that_rm_does_not_find(backend: &Backend) {
    let host = TestHost::with_web(backend);
    host.ok("vm snapshot web --to s");
    host.ok("vm rm --force web");
    let begun = Instant::now();
    host.ok(RESTORE);
    let whole = begun.elapsed();
    host.ok("vm rm --force new");
    for kill in 0..KILLS {
        let mut restoring = host.begin(RESTORE);
        std::thread::sleep(whole * kill / KILLS);
        restoring.kill().unwrap();
        restoring.wait().unwrap();
        if host.file("new", "vm.json").exists() {
            host.ok("vm rm --force new");
        }
        let until = Instant::now() + LONG;
        // A process that has not become the VMM yet ends by itself.
        while !host.processes().is_empty() {
            let left = host.processes();
            assert!(Instant::now() < until, "{left:?} after {kill} of {KILLS}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// What it slept in is not lost sight of, whatever is done about what is left.
pub(crate) fn a_restore_that_is_killed_leaves_a_suspended_vm_asleep(backend: &Backend) {
    let host = TestHost::with_web(backend);
    host.ok("vm snapshot web --to s --stop");
    let mut broken_off = 0;
    for parts in 0..3 {
        let mut restoring = host.begin("vm restore s --name web");
        let until = Instant::now() + LONG;
        while host.state() != "starting" {
            assert!(Instant::now() < until, "{}", host.state());
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(5) * parts);
        restoring.kill().unwrap();
        restoring.wait().unwrap();
        if host.state() != "starting" {
            // It runs: its guest may not have been told.
            host.ok("vm wake web");
            std::fs::remove_dir_all(host.path("s")).unwrap();
            host.ok("vm snapshot web --to s --stop");
            continue;
        }
        broken_off += 1;
        host.ok("vm stop web");
        let hint = host.run("vm status web");
        assert!(hint.stderr.contains("mvmctl vm restore"), "{}", hint.stderr);
        assert_eq!(host.state(), "asleep");
    }
    assert!(broken_off > 0, "it was too fast to be killed in the middle");
    host.ok("vm restore s --name web");
    assert_eq!(host.lifecycle("web"), "running");
}

pub(crate) fn a_vmm_that_dies_while_its_guest_is_woken_is_told_at_once(backend: &Backend) {
    let host = TestHost::with_web(backend);
    let begin = |line: &str, hangs: &str| {
        host.inject(&format!("{hangs} hang"));
        let waiting = host.begin(line);
        host.await_call(&format!("{hangs} fault hang"));
        let begun = Instant::now();
        host.kill("web");
        let ended = waiting.wait_with_output().unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        assert!(begun.elapsed() < AT_ONCE, "{:?}: {said}", begun.elapsed());
        assert_eq!(ended.status.code(), Some(3), "{said}");
        assert!(said.contains("the VM has ended by itself"), "{said}");
        assert!(!said.contains("the VM runs"), "{said}");
        host.forget_calls();
    };
    begin("vm snapshot web --to s", "guest wake aborted, time");
    host.ok("vm stop web");
    begin(
        "vm restore s --name web",
        "guest wake restored, time, entropy",
    );
    host.ok("vm stop web");
}
