//! What is kept of a guest's console.

use super::{Home, START};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

/// What `--console-limit 1` allows, in bytes.
const LIMIT: u64 = 1 << 20;

/// An agent that first prints 20 MB, or what is given, and then is one.
fn printing(home: &Home, script: &str) -> String {
    let own = env!("CARGO_BIN_EXE_mvmctl").replace("mvmctl", "mvm-guest-agent");
    home.agent(&format!("{script}\nexec {own} \"$@\""))
}

/// How much of its consoles is kept, on the disk.
fn kept(home: &Home) -> u64 {
    let entries = fs::read_dir(home.file("web")).unwrap().flatten();
    let consoles = entries.filter(|entry| {
        let name = entry.file_name();
        name.to_string_lossy().starts_with("console.log")
    });
    consoles
        .map(|entry| entry.metadata().map_or(0, |found| found.len()))
        .sum()
}

#[test]
fn a_guest_that_prints_without_end_fills_no_disk() {
    let home = Home::new();
    let agent = printing(&home, "echo the first; seq 3000000; echo the last");
    home.ok(&format!("{START} --console-limit 1 --agent {agent}"));
    assert!(kept(&home) <= LIMIT, "{}", kept(&home));
    let log = home.ok("vm logs web").stdout;
    assert!(log.starts_with("the first\n1\n2\n"), "{}", &log[..100]);
    let (head, rest) = log.split_once("\n--- ").unwrap();
    let (missing, end) = rest.split_once(" bytes are missing here ---\n").unwrap();
    assert!(end.contains("\n2999999\n3000000\nthe last\n"));
    let said: usize = (1..=3_000_000_u32).map(|n| n.to_string().len() + 1).sum();
    let missing: usize = missing.trim().parse().unwrap();
    let (before, after) = (
        "the first\n".len(),
        end.len() - end.find("the last\n").unwrap(),
    );
    assert_eq!(head.len() + missing + end.len() - after, before + said);

    // The next start does not take it away, nor does it let it grow.
    home.ok("vm stop web");
    home.ok(&format!("{START} --agent {agent}"));
    assert!(kept(&home) <= LIMIT, "{}", kept(&home));
    let last = home.ok("vm logs web --previous").stdout;
    assert!(last.starts_with(head) && last.contains("\nthe last\n"));
}

#[test]
fn the_vm_outlives_what_keeps_its_console() {
    let home = Home::new();
    home.ok(START);
    let record = home.record("web");
    let processes = record["processes"].as_array().unwrap().clone();
    let keeper = processes
        .iter()
        .find(|one| one["role"] == "console")
        .unwrap();
    let keeper = keeper["pid"].as_i64().unwrap();
    // Signals at its terminal or of its session are not for it.
    super::signal("TERM", keeper);
    super::signal("HUP", keeper);
    home.ok("vm ping web");
    assert!(super::is_there(keeper));
    super::signal("KILL", keeper);
    let until = Instant::now() + Duration::from_secs(10);
    while super::is_there(keeper) {
        assert!(Instant::now() < until);
    }
    home.ok("vm ping web");
    let doctor = home.run("doctor").stdout;
    assert!(doctor.contains("what its guest prints is lost"), "{doctor}");
    home.ok("vm stop web");
}

#[test]
fn what_lies_in_the_consoles_place_is_not_written_to() {
    let home = Home::new();
    home.ok(START);
    home.ok("vm stop web");
    let theirs = home.file("theirs");
    fs::write(&theirs, "theirs").unwrap();
    let log = home.file("web/console.log");
    fs::remove_file(&log).unwrap();
    std::os::unix::fs::symlink(&theirs, &log).unwrap();
    home.ok(START);
    assert_eq!(fs::read_to_string(&theirs).unwrap(), "theirs");
    let metadata = fs::symlink_metadata(&log).unwrap();
    assert!(metadata.is_file());
    assert_eq!(metadata.mode() & 0o777, 0o600);
    home.ok("vm logs web");
}
