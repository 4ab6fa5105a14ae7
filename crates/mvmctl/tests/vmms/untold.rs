//! A restore that is broken off before its guest was told of it: whoever comes next tells it, as what
//! it is.

use crate::test_host::{Backend, LONG, TestHost};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::Value;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Output};
use std::thread::sleep;
use std::time::{Duration, Instant};

const CLONE: &str = "guest wake restored, clone, time, entropy";

fn with_snapshot(backend: &Backend) -> TestHost {
    let host = TestHost::with_web(backend);
    host.ok("vm snapshot web --to s");
    fs::write(host.path("p.json"), r#"{"role":"web"}"#).unwrap();
    fs::create_dir_all(host.file("one", "")).unwrap();
    host
}

/// A `vm restore` of a VM `one` that runs, and whose guest is not reached.
fn restoring(backend: &Backend, options: &str) -> (TestHost, Child) {
    waking(backend, &format!("vm restore s --name one {options}"))
}

/// The same of any command that restores it.
fn waking(backend: &Backend, line: &str) -> (TestHost, Child) {
    let host = with_snapshot(backend);
    fs::write(host.file("one", "guest-health"), "silent").unwrap();
    let restoring = host.begin(line);
    await_record(&host, |record| {
        record["state"] == "running" && !record["unwoken"].is_null()
    });
    (host, restoring)
}

/// The same after that was killed, with a guest that is reached by now.
fn killed(backend: &Backend, options: &str) -> TestHost {
    let (host, restoring) = restoring(backend, options);
    end(&host, restoring, "-KILL");
    host
}

fn end(host: &TestHost, restoring: Child, signal: &str) -> Output {
    TestHost::signal(&restoring, signal);
    let output = restoring.wait_with_output().unwrap();
    fs::remove_file(host.file("one", "guest-health")).unwrap();
    assert_eq!(host.lifecycle("one"), "ready", "it was not told");
    output
}

/// Waits until `one`'s record is so.
fn await_record(host: &TestHost, is_so: impl Fn(&Value) -> bool) {
    let until = Instant::now() + LONG;
    let record = || {
        let text = fs::read(host.file("one", "vm.json")).unwrap_or_default();
        serde_json::from_slice::<Value>(&text).unwrap_or_default()
    };
    while !is_so(&record()) {
        assert!(Instant::now() < until, "{}", record());
        sleep(Duration::from_millis(5));
    }
}

fn is_told(host: &TestHost, how: &str) {
    let calls = host.calls("one");
    let wakes: Vec<_> = calls
        .iter()
        .filter(|call| call.starts_with("guest wake"))
        .collect();
    assert_eq!(wakes, [how], "{calls:?}");
    await_record(host, |record| record["unwoken"].is_null());
    assert_eq!(host.lifecycle("one"), "running");
}

pub(crate) fn the_next_wake_makes_a_clone_of_it(backend: &Backend) {
    let host = killed(backend, "--clone");
    let doctor = host.run("doctor").stdout;
    let words = "vm one: its guest was not told that it was restored";
    assert!(doctor.contains(words), "{doctor}");
    assert!(doctor.contains("mvmctl vm wake one\n"), "{doctor}");
    // It would be the twin of the one that the snapshot was taken of.
    host.fails("vm wake one --aborted", &["was started from a snapshot"]);
    host.fails(
        "vm wake one --retry",
        &["nothing to try again", "without --retry it is woken"],
    );
    host.ok("vm wake one");
    is_told(&host, CLONE);
    // From now on it is a wake like any other.
    host.ok("vm wake one");
    let calls = host.calls("one");
    assert_eq!(
        calls.last().unwrap(),
        "guest wake restored, time, entropy",
        "{calls:?}"
    );
    // What was not to be a clone is none, and its snapshot is not needed.
    let host = killed(backend, "");
    fs::rename(host.path("s"), host.path("t")).unwrap();
    host.ok("vm wake one");
    is_told(&host, "guest wake restored, time, entropy");
}

/// The payload is kept nowhere, so that it has to be given again.
pub(crate) fn what_it_was_to_be_handed_is_asked_for(backend: &Backend) {
    let host = killed(backend, "--clone --payload p.json");
    let doctor = host.run("doctor").stdout;
    assert!(
        doctor.contains("mvmctl vm wake one --payload FILE\n"),
        "{doctor}"
    );
    host.fails("vm wake one", &["payload", "--payload FILE"]);
    let calls = host.calls("one");
    assert!(
        !calls.iter().any(|call| call.starts_with("guest wake")),
        "{calls:?}"
    );
    host.ok("vm wake one --payload p.json");
    is_told(&host, &format!("{CLONE}, payload"));
}

pub(crate) fn the_next_run_tells_it_before_it_takes_it_over(backend: &Backend) {
    for (options, run, how) in [
        ("--clone", "vm run one", CLONE.to_owned()),
        (
            "--clone --payload p.json",
            "vm run one --payload p.json",
            format!("{CLONE}, payload"),
        ),
    ] {
        let host = killed(backend, options);
        if options.contains("--payload") {
            host.fails(
                "vm run one",
                &["payload", "mvmctl vm wake one --payload FILE"],
            );
            assert_eq!(host.lifecycle("one"), "ready");
        }
        let running = host.begin(run);
        await_record(&host, |record| record["unwoken"].is_null());
        is_told(&host, &how);
        TestHost::signal(&running, "-TERM");
        let ended = running.wait_with_output().unwrap();
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    }
    // One that cannot be told is as if it had not been restored.
    for (options, state) in [("--clone", "stopped"), ("", "asleep")] {
        let host = killed(backend, options);
        fs::write(host.file("one", "guest-health"), "silent").unwrap();
        let failed = host.run("vm run one --timeout 1s");
        assert!(failed.code.is_some_and(|code| code != 0), "{failed:?}");
        await_record(&host, |record| record["state"] == state);
    }
}

pub(crate) fn who_interrupts_it_is_told_how_to_wake_the_guest(backend: &Backend) {
    for (options, hint) in [
        ("--clone", "`mvmctl vm wake one` "),
        (
            "--clone --payload p.json",
            "`mvmctl vm wake one --payload FILE` ",
        ),
    ] {
        let (host, restoring) = restoring(backend, options);
        let ended = end(&host, restoring, "-INT");
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(1), "{said}");
        assert!(said.contains("interrupted"), "{said}");
        assert!(said.contains(hint), "{said}");
        assert!(
            !said.contains("frozen") && !said.contains("--retry"),
            "{said}"
        );
    }
}

pub(crate) fn what_loading_took_of_the_timeout_is_not_there_for_the_wake(backend: &Backend) {
    let timeout = Duration::from_secs(4);
    let host = with_snapshot(backend);
    fs::write(host.file("one", "guest-health"), "silent").unwrap();
    fs::write(host.file("one", "fault"), format!("{} wait", backend.load)).unwrap();
    let begun = Instant::now();
    let restoring = host.begin("vm restore s --name one --clone --timeout 4s");
    // It is time itself that is to pass.
    sleep(timeout * 3 / 4);
    host.touch("one", "go");
    let ended = restoring.wait_with_output().unwrap();
    let took = begun.elapsed();
    fs::remove_file(host.file("one", "guest-health")).unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(said.contains("its guest could not be woken"), "{said}");
    assert!(took < timeout * 3 / 2, "{took:?}: {said}");
}

/// Has a program that runs find the disk full from here on, or not any more.
fn fill_disk(run: &Child, full: bool) {
    let limit = Rlimit {
        current: full.then_some(0),
        maximum: None,
    };
    prlimit(Some(Pid::from_child(run)), Resource::Fsize, limit).unwrap();
}

/// It has begun to work: nobody ends it for that, or has it sleep on as it was.
pub(crate) fn one_that_is_awake_runs_on_whether_that_can_be_noted_or_not(backend: &Backend) {
    let words = "one: its guest is awake, and that cannot be written down";
    let is_up = |host: &TestHost| {
        await_record(host, |record| {
            record["state"] == "running" && !record["unwoken"].is_null()
        });
        assert_eq!(host.lifecycle("one"), "running");
    };
    for line in [
        "vm restore s --name one --clone",
        "vm run one --snapshot s --clone",
    ] {
        let (host, mut waking) = waking(backend, line);
        fill_disk(&waking, true);
        fs::remove_file(host.file("one", "guest-health")).unwrap();
        let stderr = BufReader::new(waking.stderr.take().unwrap()).lines();
        let mut said = stderr.map_while(Result::ok);
        let heard: Vec<_> = said
            .by_ref()
            .take_while(|line| !line.contains(words))
            .collect();
        fill_disk(&waking, false);
        let heard = heard.join("\n");
        if line.starts_with("vm run") {
            is_up(&host);
            TestHost::signal(&waking, "-TERM");
        }
        let said: Vec<_> = said.collect();
        let ended = waking.wait().unwrap();
        assert_eq!(ended.code(), Some(0), "{line}: {heard} … {said:?}");
        if line.starts_with("vm restore") {
            is_up(&host);
            // As the warning says.
            host.ok("vm wake one");
            await_record(&host, |record| record["unwoken"].is_null());
        }
        let calls = host.calls("one");
        let told = calls.iter().filter(|call| *call == CLONE).count();
        let tells = if line.starts_with("vm run") { 1 } else { 2 };
        assert_eq!(told, tells, "{calls:?}");
    }
}

pub(crate) fn one_that_could_not_be_personalized_and_runs_is_tried_again(backend: &Backend) {
    for (payload, how) in [
        ("", CLONE.to_owned()),
        (" --payload p.json", format!("{CLONE}, payload")),
    ] {
        let host = with_snapshot(backend);
        fs::write(host.file("one", "fault"), format!("{how} unfrozen")).unwrap();
        let failed = host.run(&format!("vm restore s --name one --clone{payload}"));
        assert_eq!(failed.code, Some(1), "{failed:?}");
        for words in ["was not frozen, and runs", "mvmctl vm wake one --retry"] {
            assert!(failed.stderr.contains(words), "{failed:?}");
        }
        assert!(!failed.stderr.contains("is frozen"), "{failed:?}");
        assert_eq!(host.lifecycle("one"), "running");
        if !payload.is_empty() {
            host.fails("vm wake one --retry", &["payload", "--payload FILE"]);
        }
        host.ok(&format!("vm wake one --retry{payload}"));
        let calls = host.calls("one");
        assert_eq!(*calls.last().unwrap(), how, "{calls:?}");
        await_record(&host, |record| record["unwoken"].is_null());
        host.fails("vm wake one --retry", &["nothing to try again"]);
    }
}
