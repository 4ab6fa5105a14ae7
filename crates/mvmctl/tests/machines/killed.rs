//! A start whose `mvmctl` is killed at any moment leaves nothing that no `mvmctl` knows; one that fails
//! leaves no VM.

use super::{Home, START, end, gone, is_there};
use std::fs;
use std::time::{Duration, Instant};

/// How often a start is killed, at moments spread over its whole duration.
const KILLS: u32 = 60;

/// The processes that were started for a VM of this home, by their environment: those that have ended
/// have none.
fn of(home: &Home) -> Vec<i64> {
    let marker = format!("MVM_HOME={}\0", home.0.path().display());
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_marked = |pid: &i64| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        String::from_utf8_lossy(&environment).contains(&marker)
    };
    pids.filter(is_marked).collect()
}

#[test]
fn a_start_that_is_killed_at_any_moment_leaves_nothing_that_rm_does_not_find() {
    let home = Home::new();
    let begun = Instant::now();
    home.ok(START);
    let whole = begun.elapsed();
    home.ok("vm rm --force web");
    let mut broken_off = 0;
    for kill in 0..KILLS {
        let mut starting = home.begin(START);
        std::thread::sleep(whole * kill / KILLS);
        starting.kill().unwrap();
        starting.wait().unwrap();
        // As long as nothing was written there is no VM.
        if home.file("web/vm.json").exists() {
            let listed = home.run("vm ls").stdout;
            broken_off += u32::from(listed.contains("start broken off"));
            home.ok("vm rm --force web");
        }
        let until = Instant::now() + Duration::from_secs(10);
        // A process that has not become the agent yet ends by itself.
        let mut left = of(&home);
        while !left.is_empty() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
            left = of(&home);
        }
        for pid in &left {
            super::signal("KILL", *pid);
        }
        assert_eq!(left, Vec::<i64>::new(), "after {kill} of {KILLS}");
    }
    assert!(broken_off > 0, "no start was hit in the middle");
}

#[test]
fn one_whose_start_was_broken_off_and_runs_is_removed_by_force_alone() {
    let home = Home::new();
    let agent = home.agent("echo begun; exec sleep 600");
    let mut starting = home.begin(&format!("{START} --agent {agent}"));
    let until = Instant::now() + Duration::from_secs(10);
    while !fs::read(home.file("web/console.log")).is_ok_and(|log| log.ends_with(b"\n")) {
        assert!(Instant::now() < until, "the agent does not start");
    }
    starting.kill().unwrap();
    starting.wait().unwrap();
    let pid = home.pid("web");
    home.fails("vm rm web", 1, "it is running (process");
    home.fails("vm rm web", 1, "mvmctl vm rm --force web");
    assert!(is_there(pid));
    home.ok("vm rm --force web");
    gone(pid);
    assert!(!home.file("web").exists());
}

#[test]
fn a_start_that_fails_by_its_arguments_leaves_no_vm() {
    let home = Home::new();
    for arguments in [
        "--etc /nonexistent",
        "--agent /nonexistent",
        "--image /nonexistent",
    ] {
        let run = home.run(&format!("{START} {arguments}"));
        assert_eq!(run.code, Some(1), "{arguments}: {}", run.stderr);
        assert!(!home.file("web").exists(), "{arguments}");
        assert_eq!(home.names("locks"), [""; 0], "{arguments}");
    }
    // One that was there stays.
    home.ok(START);
    home.ok("vm stop web");
    let run = end(home.begin(&format!("{START} --agent /nonexistent")));
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    assert_eq!(home.record("web")["processes"], serde_json::json!([]));
}

/// Clones come and go under ever new names.
#[test]
fn a_vm_that_is_removed_leaves_nothing_nor_does_one_whose_removal_was_killed() {
    let home = Home::new();
    home.ok(START);
    // What a killed `vm rm` has left, and what a program that runs is at just now.
    let removing = home.0.path().join("removing");
    let going = removing.join(format!("busy.{}", std::process::id()));
    fs::create_dir_all(removing.join("gone.4194305/snapshots")).unwrap();
    fs::create_dir_all(&going).unwrap();
    home.ok("vm rm --force web");
    assert_eq!(home.names("removing"), [going.file_name().unwrap()]);
    assert_eq!(home.names("locks"), [""; 0]);
    assert_eq!(home.names("vms"), [""; 0]);
    home.ok(START);
    home.ok("vm stop web");
}
