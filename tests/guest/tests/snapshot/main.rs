//! Snapshots as a user takes them: `mvmctl vm snapshot` and `mvmctl vm restore` with real guests.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod frozen;
mod network;
mod served;
mod story;
mod thawed;
mod unannounced;

use mvm_client::{Deadlines, Endpoint, Error as ClientError, Session};
use mvm_guest_tests::{MACHINE_ID, SOON};
use mvm_protocol::Timestamp;
use mvm_protocol::answer::ErrorCode;
use mvm_protocol::lifecycle::{Entropy, Outcome, SleepPrep, Step, Wake};
use mvm_protocol::request::{Check, CheckKind};
use mvm_vmm::qemu::arguments::QMP_SOCKET;
use mvm_vmm::qemu::qmp::Qmp;
use mvm_vmm::suspend::{self, RestoreSpec};
use mvm_vmm::{Deadline, Error};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::thread::sleep;
use std::time::{Duration, Instant};
use story::{Story, a_minute, left_at, lines, lines_of, name, numbers};

/// How far a guest's wall clock may be off.
const CLOCK: i64 = 500;

/// How long a guest stays in its snapshot, for its clock to be off by more than that: six times.
const PAUSE: Duration = Duration::from_secs(3);

/// What is promised of the clock holds after a pause of this length.
const LONG_PAUSE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn two_clones_of_a_golden_guest() {
    let Some(story) = Story::new().await else {
        return;
    };
    assert_eq!(story.value("golden", "machine-id"), MACHINE_ID);
    let before = story.json(&["vm", "inspect", "golden"]);
    story.seed().await;
    let place = story.place("snapshot");
    let taken = story.json(&["vm", "snapshot", "golden", "--to", &place]);
    assert_eq!(
        (&taken["stopped"], &taken["vm"]),
        (&false.into(), &"golden".into())
    );
    let room = taken["disk_bytes"].as_u64().unwrap();
    let some = 10 << 20..80 << 20;
    assert!(some.contains(&room), "pages of zeros take no room: {room}");

    sleep(LONG_PAUSE);
    let mut drawn = Vec::new();
    for clone in ["one", "two"] {
        story
            .mvmctl
            .ok(&["vm", "restore", &place, "--name", clone, "--clone"]);
        // At once, before the kernel draws a new seed by itself.
        drawn.push(story.random(clone));
    }
    let shared = drawn[0].intersection(&drawn[1]).count();
    assert_eq!(shared, 0, "random numbers of two clones");

    let vms = ["golden", "one", "two"];
    for vm in vms {
        let off = story.clock_is_off(vm);
        assert!(off < CLOCK, "{vm} is off by {off} ms");
    }
    for probe in ["machine-id", "hostname", "boot-id"] {
        let values: BTreeSet<String> = vms.iter().map(|vm| story.value(vm, probe)).collect();
        assert_eq!(values.len(), 3, "{probe}: {values:?}");
    }
    assert_eq!(story.value("golden", "machine-id"), MACHINE_ID);
    assert_eq!(story.value("golden", "hostname"), "story");

    // Each ran its own restore commands, once; what was before is the same for all.
    let expected = [
        lines("checkpoint", ["c", "b", "a"]),
        lines("restore", ["a", "b", "c"]),
    ];
    for vm in vms {
        assert_eq!(story.log(vm), expected.concat(), "{vm}");
        let wait = ["vm", "wait", vm, "--for", "healthy", "--timeout", "20s"];
        story.mvmctl.ok(&wait);
        let after = story.json(&["vm", "inspect", vm]);
        assert_eq!(after["lifecycle"], "running");
        assert_eq!(after["agent"]["pid"], before["agent"]["pid"], "{vm}");
        // A clone was not booted: it tells of the boot that its snapshot goes back to.
        assert!(after["boot"]["ready_secs"].is_f64(), "{vm}: {after}");
        assert_eq!(after["boot"], before["boot"], "{vm}");
        // It has run for as long as the guest has, whatever its clock was set to.
        let ran = |inspect: &Value| {
            let agent = seconds(&inspect["now"]) - seconds(&inspect["agent"]["started_at"]);
            inspect["uptime_secs"].as_f64().unwrap() - agent
        };
        let drift = ran(&after) - ran(&before);
        assert!(drift.abs() < 0.5, "{vm}: by {drift} s");
        // Golden was woken as well, though not from a snapshot.
        let woken = match &after["snapshot"]["last_wake"] {
            Value::Null => seconds(&before["now"]),
            woken => seconds(woken),
        };
        for (old, new) in before["integrations"]
            .as_array()
            .unwrap()
            .iter()
            .zip(after["integrations"].as_array().unwrap())
        {
            assert_eq!(new["health"], "healthy", "{vm}: {new}");
            assert_eq!(
                new["first_healthy_secs"], old["first_healthy_secs"],
                "{vm}: {new}"
            );
            assert!(seconds(&new["since"]) > woken - 1.0, "{vm}: {new}");
            assert!(
                new["checks"].as_u64() >= old["checks"].as_u64(),
                "{vm}: {new}"
            );
            assert_eq!(new["failures"], 0, "{vm}: {new}");
        }
    }
    assert_eq!(story.value("one", "generation"), "1");
}

fn seconds(time: &Value) -> f64 {
    let time = Timestamp::parse(time.as_str().unwrap()).unwrap();
    time.0 as f64 / 1000.0
}

/// What the test above would see if nothing were done about it.
#[tokio::test]
async fn clones_that_are_not_woken_share_their_random_numbers_and_their_clocks_lag() {
    let Some(story) = Story::new().await else {
        return;
    };
    story.seed().await;
    let snapshot = story.snapshot_by_hand();
    sleep(PAUSE);
    let mut drawn: Vec<BTreeSet<String>> = Vec::new();
    // Two would do, but for a clone in which the kernel was faster than the probe.
    for clone in ["one", "two", "three", "four", "five"] {
        // With the address that it had: by another one it would notice, and help itself.
        let spec = RestoreSpec::default();
        let restored =
            suspend::restore(&story.home(), &name(clone), &snapshot, &spec, a_minute()).unwrap();
        let endpoint = Endpoint::unix(restored.socket());
        let session = Session::connect(&endpoint, &Deadlines::default()).await;
        let check = Check {
            kind: CheckKind::Probe,
            name: "random".into(),
        };
        let checked = session.unwrap().check(check).await.unwrap();
        let own = numbers(checked.probe.unwrap().value.as_str().unwrap());
        drop(restored);
        let off = story.clock_is_off(clone);
        assert!(off > CLOCK, "{clone} is off by {off} ms");
        // One may have drawn some more than another before.
        let shares = |other: &BTreeSet<String>| own.intersection(other).count() > 200;
        if drawn.iter().any(shares) {
            return;
        }
        drawn.push(own);
    }
    panic!("no two of them share their random numbers: the test of clones shows nothing");
}

#[tokio::test]
async fn a_snapshot_that_fails_leaves_no_folder_and_the_vm_runs_on() {
    let Some(story) = Story::new().await else {
        return;
    };
    let place = story.place("snapshot");

    // A checkpoint fails, the first, the second or the last: what was begun is rolled back.
    for (failing, log) in [
        ("c", lines_of(&["checkpoint c", "restore c"])),
        (
            "b",
            lines_of(&["checkpoint c", "checkpoint b", "restore b", "restore c"]),
        ),
        (
            "a",
            [
                lines("checkpoint", ["c", "b", "a"]),
                lines("restore", ["a", "b", "c"]),
            ]
            .concat(),
        ),
    ] {
        story.sh("golden", &format!(": >/run/fail-{failing}")).await;
        let refused = story.sleep_prep().await.unwrap_err();
        let ClientError::Refused(answer) = &refused else {
            panic!("{refused:?}");
        };
        assert_eq!(answer.code, ErrorCode::SleepPrepFailed);
        let steps = answer.steps.as_deref().unwrap();
        let failed = |step: &&Step| step.outcome == Outcome::Failed;
        let culprits: Vec<_> = steps.iter().filter(failed).collect();
        let [culprit] = culprits[..] else {
            panic!("{steps:?}");
        };
        assert_eq!(culprit.integration.as_deref(), Some(failing));
        let detail = culprit.detail.as_deref();
        assert_eq!(detail, Some("exit code 3: the disk is on fire"));
        assert_eq!(story.log("golden"), log, "{failing}");

        let failed = story
            .mvmctl
            .run(&["vm", "snapshot", "golden", "--to", &place]);
        assert_eq!(failed.code, Some(1), "{failed:?}");
        for word in [
            &format!("checkpoint of `{failing}` failed"),
            "the disk is on fire",
            "no snapshot was taken",
        ] {
            assert!(failed.stderr.contains(word), "{word}: {failed:?}");
        }
        // It can only be asked for because the VM runs on.
        assert_eq!(story.log("golden"), [&log[..], &log].concat(), "{failing}");
        assert_eq!(left_at(&place), [""; 0]);
        story.mend().await;
    }

    // The disk is full. Only mvmctl sees this one; the VMM is handed an open file.
    let full = Command::new("unshare")
        .args(["--mount", "--map-root-user", "sh", "-c"])
        .arg("mount -t tmpfs -o size=4m none /mnt && exec \"$0\" vm snapshot golden --to /mnt/s")
        .arg(story.mvmctl.program())
        .env("MVM_HOME", story.mvmctl.home())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&full.stderr);
    assert_eq!(full.status.code(), Some(1), "{said}");
    assert!(said.contains("the migration is failed"), "{said}");
    assert!(
        said.contains("no snapshot was taken, and the VM runs on"),
        "{said}"
    );
    let rolled_back = [
        lines("checkpoint", ["c", "b", "a"]),
        lines("restore", ["a", "b", "c"]),
    ];
    assert_eq!(story.log("golden"), rolled_back.concat());

    // It is broken off while its state is being written.
    let cancelled = AtomicBool::new(true);
    let to = PathBuf::from(&place);
    let (mut session, snapshot_dir) =
        suspend::take(&story.home(), &name("golden"), Some(&to)).unwrap();
    let begun = Deadline::new(Duration::from_mins(1), Some(&cancelled));
    let error = session.freeze(snapshot_dir, begun).unwrap_err();
    assert!(matches!(error, Error::Interrupted), "{error}");
    let asleep = story.mvmctl.run(&["vm", "ping", "golden"]);
    let paused = "the VM is paused: a snapshot of it is being taken";
    assert!(asleep.stderr.contains(paused), "{asleep:?}");
    session
        .run_on(Deadline::new(Duration::from_mins(1), None))
        .unwrap();
    drop(session);
    story.mvmctl.ok(&["vm", "ping", "golden"]);
    assert_eq!(left_at(&place), [""; 0]);

    // The program is killed in the middle: the next command has the VM run on.
    story.mend().await;
    let mut killed = story
        .mvmctl
        .start(&["vm", "snapshot", "golden", "--to", &place]);
    let until = Instant::now() + SOON;
    while story.state("golden") != "asleep" {
        assert!(Instant::now() < until, "it is not frozen");
        sleep(Duration::from_millis(2));
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert_eq!(left_at(&place).len(), 1, "the folder that was begun");
    let mended = story.mvmctl.ok(&["vm", "wake", "golden"]);
    assert!(mended.stderr.contains("was broken off"), "{mended:?}");
    assert_eq!(left_at(&place), [""; 0]);
    assert_eq!(story.log("golden"), rolled_back.concat());

    // It is killed when it has asked the guest for its vsock device, and the guest has not let go.
    story.mend().await;
    story.sleep_prep().await.unwrap();
    let (mut session, snapshot_dir) =
        suspend::take(&story.home(), &name("golden"), Some(&to)).unwrap();
    let mut qmp = Qmp::connect(&story.mvmctl.file("golden", ""), QMP_SOCKET);
    let stop = qmp.as_mut().unwrap().as_mut().unwrap();
    stop.execute("stop", &serde_json::json!({})).unwrap();
    drop(qmp);
    let soon = Deadline::new(Duration::from_millis(200), None);
    session.freeze(snapshot_dir, soon).unwrap_err();
    drop(session);
    let mended = story.mvmctl.ok(&["vm", "wake", "golden"]);
    assert!(mended.stderr.contains("was broken off"), "{mended:?}");
    assert_eq!(story.log("golden"), rolled_back.concat());

    // And after all that a snapshot can be taken.
    story
        .mvmctl
        .ok(&["vm", "snapshot", "golden", "--to", &place]);
    assert_eq!(left_at(&place), ["snapshot"]);
}

#[tokio::test]
async fn a_vm_is_suspended_and_resumed_under_its_name() {
    let Some(story) = Story::new().await else {
        return;
    };
    let who = |probe| story.value("golden", probe);
    let identity = ["machine-id", "hostname", "boot-id"];
    let before = identity.map(who);
    let taken = story.json(&["vm", "snapshot", "golden", "--stop"]);
    let place = taken["snapshot"].as_str().unwrap();
    let own = story.mvmctl.file("golden", "snapshots");
    assert!(place.starts_with(own.to_str().unwrap()), "{place}");
    assert!(story.mvmctl.pids("golden").is_empty());
    assert_eq!(story.state("golden"), "asleep");
    let dialled = story.mvmctl.run(&["vm", "ping", "golden"]);
    assert!(dialled.stderr.contains("the VM is asleep"), "{dialled:?}");
    assert!(!story.mvmctl.file("golden", "v.sock").exists());

    // A state that was altered starts nothing, and changes nothing.
    let state = PathBuf::from(place).join("state");
    let good = fs::read(&state).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    fs::write(&state, bad).unwrap();
    let refused = story
        .mvmctl
        .run(&["vm", "restore", place, "--name", "golden"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("SHA-256"), "{refused:?}");
    assert_eq!(story.state("golden"), "asleep");
    fs::write(&state, good).unwrap();

    sleep(PAUSE);
    story
        .mvmctl
        .ok(&["vm", "restore", place, "--name", "golden"]);
    assert!(story.clock_is_off("golden") < CLOCK);
    assert_eq!(identity.map(who), before);
    let expected = [
        lines("checkpoint", ["c", "b", "a"]),
        lines("restore", ["a", "b", "c"]),
    ];
    assert_eq!(story.log("golden"), expected.concat());

    // A guest that does not take its wake: the VM stays, so that one can look at it.
    let manifest = PathBuf::from(place).join("manifest.json");
    let mut other: Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
    other["token"] = "another".into();
    fs::write(&manifest, other.to_string()).unwrap();
    let left = story
        .mvmctl
        .run(&["vm", "restore", place, "--name", "left"]);
    assert_eq!(left.code, Some(1), "{left:?}");
    assert!(left.stderr.contains("could not be woken"), "{left:?}");
    assert_eq!(story.json(&["vm", "status", "left"])["lifecycle"], "ready");
    story.mvmctl.ok(&["vm", "wake", "left"]);
    assert_eq!(
        story.json(&["vm", "status", "left"])["lifecycle"],
        "running"
    );
}

/// What a guest has of things that can leak: descriptors of its agent, processes, and KiB of the
/// agent's memory.
fn holdings(story: &Story) -> [u64; 3] {
    let count = |probe| story.value("golden", probe).parse().unwrap();
    let inspect = story.json(&["vm", "inspect", "golden"]);
    let memory = inspect["agent"]["rss_bytes"].as_u64().unwrap() >> 10;
    [count("agent-descriptors"), count("processes"), memory]
}

/// A check may run at the one time and not at the other, and the allocator takes some hundred
/// cycles to have all that it will ever need. What is lost each time is lost a hundred times.
fn assert_no_leak(before: [u64; 3], after: [u64; 3]) {
    let slack = [8, 8, 128];
    let grown = (0..3).any(|i| after[i] > before[i] + slack[i]);
    assert!(!grown, "before {before:?}, after {after:?}");
}

#[tokio::test]
async fn a_hundred_sleeps_and_twenty_clones_leave_nothing_behind() {
    let Some(story) = Story::new().await else {
        return;
    };
    let endpoint = Endpoint::unix(story.mvmctl.file("golden", "v.sock"));
    let session = async || {
        let session = Session::connect(&endpoint, &Deadlines::default()).await;
        session.unwrap()
    };
    let sleep_and_wake = async || {
        let ready = session().await.sleep_prep(SleepPrep::default()).await;
        let wake = Wake {
            token: Some(ready.unwrap().token),
            entropy: Entropy::new(vec![7; 64]),
            ..Wake::default()
        };
        let awake = session().await.wake(wake).await.unwrap();
        let failed = |step: &&Step| step.outcome != Outcome::Ok && step.outcome != Outcome::Skipped;
        assert_eq!(awake.steps.iter().find(failed), None);
        awake.generation
    };
    for _ in 0..10 {
        sleep_and_wake().await;
    }
    let before = holdings(&story);
    for generation in 11..=110 {
        assert_eq!(sleep_and_wake().await, generation);
    }
    assert_no_leak(before, holdings(&story));
    // Three checkpoints and three restores each time.
    assert_eq!(story.value("golden", "log-lines"), "660");

    let place = story.place("snapshot");
    story
        .mvmctl
        .ok(&["vm", "snapshot", "golden", "--to", &place]);
    for number in 0..20 {
        let clone = format!("clone-{number}");
        let restore = ["vm", "restore", &place, "--name", &clone, "--clone"];
        story.mvmctl.ok(&restore);
        story.mvmctl.ok(&["vm", "ping", &clone]);
        story.mvmctl.ok(&["vm", "rm", "--force", &clone]);
    }
    assert_no_leak(before, holdings(&story));
    let mut pids = story.mvmctl.pids("golden");
    pids.sort_unstable();
    assert_eq!(processes_in(story.mvmctl.home()), pids);
}

/// The processes that run in a folder or below it: a VM's run in its own.
fn processes_in(folder: &Path) -> Vec<i64> {
    let folder = fs::canonicalize(folder).unwrap();
    let mut pids: Vec<i64> = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|process| {
            fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(&folder))
        })
        .filter_map(|process| process.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    pids
}
