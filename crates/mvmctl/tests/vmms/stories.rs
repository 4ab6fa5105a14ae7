//! The stories, each told of each VMM.

use crate::test_host::{Backend, LONG, TestHost};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// A call and what it came to.
fn done(call: &str) -> String {
    format!("{call} 204")
}

pub(crate) fn a_snapshot_keeps_to_the_contract_and_so_does_its_clone(backend: &Backend) {
    let host = TestHost::with_web(backend);
    let taken = host.json("vm snapshot web --to s");
    // The guest first, nothing open when it is frozen, and the guest last.
    let mut expected = vec![
        "guest sleep-prep".to_owned(),
        done(backend.pause),
        done(backend.write),
    ];
    expected.extend(backend.run_on());
    expected.push("guest wake aborted, time".to_owned());
    assert_eq!(host.calls("web"), expected);
    assert_eq!(
        (&taken["stopped"], &taken["vm"]),
        (&false.into(), &"web".into())
    );
    assert_eq!(
        (host.state(), host.lifecycle("web")),
        ("running".into(), "running".into())
    );
    assert_eq!(host.left(), ["s"]);

    let restored = host.json("vm restore s --name one --clone");
    assert_eq!(
        (&restored["was_ready"], &restored["generation"]),
        (&true.into(), &1.into())
    );
    let calls = host.calls("one");
    let woken = "guest wake restored, clone, time, entropy";
    assert_eq!(calls.last().map(String::as_str), Some(woken), "{calls:?}");
    assert_eq!(host.lifecycle("one"), "running");
    // The source is another guest.
    assert_eq!(host.json("vm status web")["lifecycle"], "running");
}

pub(crate) fn a_vm_is_suspended_and_resumed(backend: &Backend) {
    let host = TestHost::with_web(backend);
    host.ok("vm snapshot web --to s --stop");
    assert_eq!(
        host.calls("web"),
        [
            "guest sleep-prep".to_owned(),
            done(backend.pause),
            done(backend.write)
        ]
    );
    assert_eq!(host.state(), "asleep");
    host.forget_calls();
    host.ok("vm restore s --name web");
    let calls = host.calls("web");
    let woken = "guest wake restored, time, entropy";
    assert_eq!(calls.last().map(String::as_str), Some(woken), "{calls:?}");
    assert_eq!(
        (host.state(), host.lifecycle("web")),
        ("running".into(), "running".into())
    );
}

pub(crate) fn a_guest_that_does_not_get_ready_costs_the_vm_nothing(backend: &Backend) {
    let host = TestHost::with_web(backend);
    host.inject("guest sleep-prep refuse");
    host.fails(
        "vm snapshot web --to s",
        &[
            "the disk is on fire",
            "no snapshot was taken, and the VM runs on",
        ],
    );
    // The VMM was not asked for anything.
    assert_eq!(host.calls("web"), ["guest sleep-prep fault refuse"]);
    assert_eq!((host.state(), host.left()), ("running".into(), vec![]));
}

pub(crate) fn a_snapshot_that_fails_is_undone_and_the_guest_is_told(backend: &Backend) {
    let host = TestHost::with_web(backend);
    for (call, fault) in [
        (backend.pause, "500"),
        (backend.pause, "cut"),
        (backend.write, "500"),
        (backend.write, "cut"),
    ] {
        host.inject(&format!("{call} {fault}"));
        host.fails(
            "vm snapshot web --to s",
            &["no snapshot was taken, and the VM runs on"],
        );
        let calls = host.calls("web");
        assert_eq!(
            calls.last().unwrap(),
            "guest wake aborted, time",
            "{calls:?}"
        );
        assert_eq!(
            (host.state(), host.lifecycle("web")),
            ("running".into(), "running".into())
        );
        assert_eq!(host.left(), [""; 0], "{call} {fault}");
        host.forget_calls();
    }
    host.ok("vm snapshot web --to s");
}

/// Whether the guest sleeps is not known then.
pub(crate) fn a_sleep_whose_answer_is_lost_is_undone(backend: &Backend) {
    let host = TestHost::with_web(backend);
    host.inject("guest sleep-prep cut");
    let failed = host.run("vm snapshot web --to s");
    assert_eq!(failed.code, Some(3), "{failed:?}");
    let told = "no snapshot was taken, and the VM runs on";
    assert!(failed.stderr.contains(told), "{failed:?}");
    assert_eq!(
        host.calls("web"),
        ["guest sleep-prep fault cut", "guest wake aborted, time"]
    );
    assert_eq!(host.lifecycle("web"), "running");
}

pub(crate) fn a_vmm_that_dies_is_told(backend: &Backend) {
    let host = TestHost::with_web(backend);
    host.inject(&format!("{} die", backend.write));
    let failed = host.run("vm snapshot web --to s");
    assert_eq!(failed.code, Some(1), "{failed:?}");
    for words in ["in the middle of the answer", "the VM has ended by itself"] {
        assert!(failed.stderr.contains(words), "{words}: {failed:?}");
    }
    assert!(!failed.stderr.contains("vm wake"), "{failed:?}");
    assert_eq!(host.left(), [""; 0]);
    // As of any other that ended by itself.
    for line in ["vm status web --json", "vm wait web --for ready --json"] {
        let told = host.run(line);
        assert_eq!(told.code, Some(3), "{line}: {told:?}");
        assert!(told.stdout.contains("\"vm-ended\""), "{line}: {told:?}");
    }
    host.ok("vm start web");
}

/// One that hangs for good is given up after a minute, and stays asleep: see the driver's own tests.
pub(crate) fn a_vmm_that_is_too_slow_is_given_up_and_the_vm_runs_on(backend: &Backend) {
    let host = TestHost::with_web(backend);
    host.inject(&format!("{} late", backend.write));
    host.fails(
        "vm snapshot web --to s --timeout 500ms",
        &[
            "not answered within",
            "no snapshot was taken, and the VM runs on",
        ],
    );
    let calls = host.calls("web");
    assert_eq!(
        calls.last().unwrap(),
        "guest wake aborted, time",
        "{calls:?}"
    );
    assert_eq!((host.state(), host.left()), ("running".into(), vec![]));
}

pub(crate) fn the_next_command_mends_what_a_killed_one_has_left(backend: &Backend) {
    let host = TestHost::with_web(backend);
    for next in ["vm wake web", "vm snapshot web --to t", "vm start web"] {
        // It is killed while the state is being written.
        host.inject(&format!("{} wait", backend.write));
        let mut killed = host.begin("vm snapshot web --to s");
        host.await_call(&format!("{} fault wait", backend.write));
        // While it lives nobody takes it for dead.
        let early = host.run("vm wake web");
        assert_eq!(early.code, Some(3), "{early:?}");
        killed.kill().unwrap();
        killed.wait().unwrap();
        host.touch("web", "go");
        assert_eq!(host.state(), "asleep");
        let [partial] = host.left().try_into().unwrap();
        assert!(partial.starts_with(".partial-"), "{partial}");
        let ping = host.run("vm ping web");
        assert_eq!(ping.code, Some(3), "a frozen VM is not dialled: {ping:?}");
        assert!(ping.stderr.contains("mvmctl vm wake web"), "{ping:?}");
        let doctor = host.run("doctor");
        assert!(doctor.stdout.contains("mvmctl vm wake web"), "{doctor:?}");

        let mended = host.ok(next);
        assert!(mended.stderr.contains("was broken off"), "{mended:?}");
        let calls = host.calls("web");
        let at = calls.iter().position(|call| *call == done(backend.resume));
        let woken = calls
            .iter()
            .position(|call| call == "guest wake aborted, time");
        assert!(at < woken && at.is_some(), "{calls:?}");
        assert_eq!(
            (host.state(), host.lifecycle("web")),
            ("running".into(), "running".into())
        );
        let left = host.left();
        assert!(left.is_empty() || left == ["t"], "{left:?}");
        let _ = fs::remove_dir_all(host.path("t"));
        host.forget_calls();
    }

    // Before the VM was frozen, it runs, and its guest sleeps.
    host.inject(&format!("{} wait", backend.pause));
    let mut killed = host.begin("vm snapshot web --to s");
    host.await_call(&format!("{} fault wait", backend.pause));
    killed.kill().unwrap();
    killed.wait().unwrap();
    host.touch("web", "go");
    // What it holds can be ended, too.
    let stopped = host.ok("vm stop web");
    let told = "was ended without being asked to stop, since its snapshot was broken off";
    assert!(stopped.stderr.contains(told), "{stopped:?}");
    assert_eq!((host.state(), host.left()), ("stopped".into(), vec![]));
}

pub(crate) fn the_broken_version_is_refused(backend: &Backend) {
    refused(&TestHost::with_version(backend, Some("1.16.0")));
}

/// The real program of that version.
pub(crate) fn no_snapshot_is_taken_with_it(backend: &Backend) {
    refused(&TestHost::with_web(backend));
}

fn refused(host: &TestHost) {
    host.fails(
        "vm snapshot web --to s",
        &["1.16.0", "loses the guest's vsock"],
    );
    assert_eq!(
        host.calls("web"),
        [""; 0],
        "neither the VM nor its guest noticed"
    );
    assert_eq!((host.state(), host.left()), ("running".into(), vec![]));
}

pub(crate) fn one_that_something_else_paused_is_not_dialled(backend: &Backend) {
    let host = TestHost::with_web(backend);
    host.api("web", backend.pause, backend.paused);
    let begun = Instant::now();
    for line in ["vm status web", "vm ping web", "vm snapshot web --to s"] {
        let run = host.run(line);
        let expected = if line.starts_with("vm snapshot") {
            1
        } else {
            3
        };
        assert_eq!(run.code, Some(expected), "{line}: {run:?}");
        let words = "the VM is paused, and it was not mvmctl that paused it";
        assert!(run.stderr.contains(words), "{line}: {run:?}");
    }
    assert!(begun.elapsed() < LONG);
    let listed = host.json("vm ls");
    assert_eq!(listed[0]["state"], "paused");
    assert_eq!(listed[0]["error"]["code"], "not-running");
    assert_eq!(listed[0]["error"]["retryable"], true);
    let calls = host.calls("web");
    let dialled = calls.iter().any(|call| call.starts_with("guest"));
    assert!(!dialled, "{calls:?}");
    // Whose it is to let it run on is said, and not that it is not paused.
    host.fails("vm resume web", &["it was not mvmctl that paused it"]);
    host.api("web", backend.resume, backend.resumed);
    if backend.cuts_off {
        // Which nobody can mend but by a command.
        let silent = host.run("vm status web --timeout 1s");
        assert_eq!(silent.code, Some(3), "{silent:?}");
        for words in ["is cut off", "paused and resumed", "`mvmctl vm wake web`"] {
            assert!(silent.stderr.contains(words), "{words}: {silent:?}");
        }
        let woken = host.ok("vm wake web --timeout 2s");
        assert!(woken.stderr.contains("reached again"), "{woken:?}");
    }
    assert_eq!(host.lifecycle("web"), "running");
}

/// It would not hear that it is asked.
pub(crate) fn one_that_something_else_paused_is_let_run_to_be_stopped(backend: &Backend) {
    let host = TestHost::with_web(backend);
    host.api("web", backend.pause, backend.paused);
    let stopped = host.ok("vm stop web --timeout 60s");
    assert!(stopped.stderr.contains("web has stopped"), "{stopped:?}");
    host.ok("vm start web");
    host.signal_vmm("web", "-STOP");
    host.fails("vm resume web", &["a signal: CONT"]);
    let stopped = host.ok("vm stop web --timeout 60s");
    assert!(stopped.stderr.contains("web has stopped"), "{stopped:?}");
}

/// The VM runs, and its guest is not awake: whoever has had enough of that is let go.
pub(crate) fn an_interrupt_ends_the_waiting_for_a_guest(backend: &Backend) {
    let host = TestHost::with_web(backend);
    let hangs = "guest wake aborted, time";
    for signal in ["-INT", "-TERM"] {
        host.inject(&format!("{hangs} hang"));
        let waiting = host.begin("vm snapshot web --to s");
        host.await_call(&format!("{hangs} fault hang"));
        let begun = Instant::now();
        TestHost::signal(&waiting, signal);
        let ended = waiting.wait_with_output().unwrap();
        let took = begun.elapsed();
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(1), "{said}");
        assert!(took < Duration::from_secs(3), "{took:?}");
        assert!(said.contains("is complete, but: interrupted"), "{said}");
        assert_eq!(host.state(), "running");
        fs::remove_dir_all(host.path("s")).unwrap();
        host.forget_calls();
        host.ok("vm wake web --aborted");
    }
}

/// A VMM can boot a guest anew that crashes at its restore.
pub(crate) fn a_guest_that_was_not_asleep_was_not_restored(backend: &Backend) {
    let host = TestHost::with_web(backend);
    host.ok("vm snapshot web --to s");
    fs::create_dir_all(host.file("one", "")).unwrap();
    let fault = "guest wake restored, clone, time, entropy afresh";
    fs::write(host.file("one", "fault"), fault).unwrap();
    host.fails(
        "vm restore s --name one --clone",
        &["has booted afresh", "mvmctl vm logs one"],
    );
    // It is there to be looked at.
    assert_eq!(host.lifecycle("one"), "running");
}

pub(crate) fn that_a_vmm_has_no_room_for_a_connection_is_told(backend: &Backend) {
    const LIMIT: usize = 1023;
    // The VM is started with the soft limit that most systems have, which the VMM is not held to.
    let limit = getrlimit(Resource::Nofile);
    let with = |current| Rlimit { current, ..limit };
    setrlimit(Resource::Nofile, with(Some(1024))).unwrap();
    let host = TestHost::with_web(backend);
    setrlimit(Resource::Nofile, with(limit.maximum)).unwrap();
    let socket = host.file("web", "v.sock");
    let mut held = Vec::new();
    while held.len() < LIMIT {
        match UnixStream::connect(&socket) {
            Ok(stream) => held.push(stream),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => panic!("{error}"),
        }
    }
    let run = host.run("vm status web --json");
    assert_eq!(run.code, Some(3), "{run:?}");
    let told: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(told["error"]["code"], "too-many-connections", "{told}");
    for words in ["1023 connections to the guest", "takes no more", "ss -xp"] {
        assert!(run.stderr.contains(words), "{run:?}");
    }
    drop(held);
    assert_eq!(host.lifecycle("web"), "running");
}

/// It may be paused as well as not.
pub(crate) fn one_whose_vmm_does_not_answer_is_not_dialled(backend: &Backend) {
    let host = TestHost::with_web(backend);
    host.inject(&format!("{} hang", backend.ask));
    let run = host.run("vm status web --json --timeout 300ms");
    assert_eq!(run.code, Some(3), "{run:?}");
    let told: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(told["error"]["code"], "vmm-silent", "{told}");
    assert!(run.stderr.contains("within"), "{run:?}");
}

pub(crate) fn a_suspended_vm_is_not_booted_for_nothing(backend: &Backend) {
    let host = TestHost::with_web(backend);
    host.ok("vm snapshot web --to s --stop");
    let folder = host.path("s");
    let restore = format!("`mvmctl vm restore {} --name web`", folder.display());
    host.fails(
        "vm start web",
        &["it is asleep in ", "--discard-state", &restore],
    );
    assert_eq!(host.state(), "asleep");
    let told = host.run("vm status web");
    assert_eq!(told.code, Some(3), "{told:?}");
    assert!(told.stderr.contains(&restore), "{told:?}");
    // It says so as well if the snapshot has gone.
    fs::rename(&folder, host.path("t")).unwrap();
    host.fails("vm start web", &["which is not there any more"]);
    fs::rename(host.path("t"), &folder).unwrap();
    host.ok("vm restore s --name web --label tier=front --pin");
    assert_eq!(host.lifecycle("web"), "running");
    let listed = host.json("vm ls -l tier=front");
    assert_eq!(
        (&listed[0]["vm"], &listed[0]["pinned"]),
        (&"web".into(), &true.into())
    );
    host.ok("vm snapshot web --to u --stop");
    // The other snapshot goes on in its place, and it is said which one that was.
    let run = host.ok("vm restore s --name web");
    let left = format!(
        "web was asleep in {}, which is kept",
        host.path("u").display()
    );
    assert!(run.stderr.contains(&left), "{run:?}");
    host.ok("vm snapshot web --to v --stop");
    std::os::unix::fs::symlink(host.path("v"), host.path("link")).unwrap();
    let run = host.ok("vm restore link --name web");
    assert!(!run.stderr.contains("was asleep"), "{run:?}");
    host.ok("vm snapshot web --to w --stop");
    host.ok("vm start web --discard-state");
    assert_eq!(host.lifecycle("web"), "running");
    host.ok("vm stop web");
    // Nothing of it is left: this is a start as any other.
    host.ok("vm start web");
}

pub(crate) fn a_restore_that_fails_leaves_no_new_vm(backend: &Backend) {
    let host = TestHost::with_web(backend);
    host.ok("vm snapshot web --to s");
    // It does not come up in time.
    let failed = host.run("vm restore s --name new --timeout 1ms");
    assert_ne!(failed.code, Some(0), "{}", failed.stderr);
    assert!(!host.file("new", "").exists(), "{}", failed.stderr);
    assert!(!host.path("home/locks/new").exists(), "its lock is left");
    // One that was there stays as it was.
    host.ok("vm stop web");
    let failed = host.run("vm restore s --name web --timeout 1ms");
    assert_ne!(failed.code, Some(0), "{}", failed.stderr);
    assert_eq!(host.state(), "stopped");
}
