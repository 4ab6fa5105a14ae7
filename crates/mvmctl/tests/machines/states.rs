//! What a VM is, as every command tells it.

use super::{Home, Run, START, end, gone, is_there, signal};
use serde_json::Value;
use std::fs;
use std::io::{BufRead as _, BufReader, Lines};
use std::process::{Child, ChildStdout, Command};
use std::time::{Duration, Instant};

/// How long a follower may take to notice, on a busy machine. Without being told it takes 15 s until
/// three heartbeats are missing.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Begins to follow VMs, and gives the lines that are told.
fn follow(home: &Home, line: &str) -> (Child, Lines<BufReader<ChildStdout>>) {
    let mut follower = home.begin(line);
    let stdout = follower.stdout.take().unwrap();
    (follower, BufReader::new(stdout).lines())
}

fn json(run: &Run) -> Value {
    serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {}", run.stderr))
}

#[test]
fn one_that_was_killed_has_ended_by_itself() {
    let home = Home::new();
    // Whatever this machine has to do, the agent on it is never busy.
    let etc = home.0.path().join("etc");
    fs::create_dir(&etc).unwrap();
    fs::write(etc.join("agent.json"), r#"{"busy_signals": ["inhibit"]}"#).unwrap();
    home.ok(&format!("{START} --etc {}", etc.display()));
    let (events, mut lines) = follow(&home, "vm events web --json");
    // It is watched.
    assert!(lines.next().unwrap().unwrap().contains("\"lifecycle\""));
    let waits = home.begin("vm wait web --for busy");
    let pid = home.pid("web");
    let begun = Instant::now();
    signal("KILL", pid);
    let last: Value = serde_json::from_str(&lines.last().unwrap().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "vm-ended");
    for follower in [events, waits] {
        let run = end(follower);
        assert_eq!(run.code, Some(3), "{}", run.stderr);
        let told = "the VM has ended by itself: its process is gone";
        assert!(run.stderr.contains(told), "{}", run.stderr);
    }
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    gone(pid);
    for line in [
        "vm status web",
        "vm ping web",
        "vm inspect web",
        "vm exec web -- true",
    ] {
        home.fails(line, 3, "the VM has ended by itself");
    }
    let listed = json(&home.run("vm ls --json"));
    assert_eq!(listed[0]["state"], "ended");
    assert_eq!(listed[0]["error"]["retryable"], false);
    // One that was stopped in order has not, and somebody may start it.
    home.ok("vm stop web");
    let status = json(&home.run("vm status web --json"));
    assert_eq!(status["error"]["code"], "not-running");
    assert_eq!(status["error"]["retryable"], true);
}

#[test]
fn events_of_all_are_those_of_vms_that_are_started_later_too() {
    let home = Home::new();
    home.ok(START);
    let (events, mut lines) = follow(&home, "vm events --json");
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    let first = next();
    assert_eq!(
        (&first["vm"], &first["lifecycle"]),
        (&"web".into(), &"running".into())
    );
    for _ in 0..2 {
        home.ok(&START.replace("web", "later"));
        let status = next();
        assert_eq!(
            (&status["vm"], &status["lifecycle"]),
            (&"later".into(), &"running".into())
        );
        signal("KILL", home.pid("later"));
        // That the connection was closed may be told before.
        let told = std::iter::repeat_with(&mut next).find(|told| told["error"]["code"] != "closed");
        let told = told.unwrap();
        assert_eq!(
            (&told["vm"], &told["error"]["code"]),
            (&"later".into(), &"vm-ended".into())
        );
    }
    home.ok("vm rm web --force");
    let removed = std::iter::repeat_with(&mut next).find(|it| it["error"]["code"] == "no-such-vm");
    assert_eq!(removed.unwrap()["vm"], "web");
    // For the one that was killed.
    let run = end(events);
    assert_eq!(run.code, Some(4), "{}", run.stderr);
    assert!(run.stderr.contains("web: it was removed"), "{}", run.stderr);
    assert!(!run.stderr.contains("did you mean"), "{}", run.stderr);
}

#[test]
fn one_that_is_stopped_in_order_is_never_told_to_have_ended_by_itself() {
    let home = Home::new();
    home.ok(START);
    let (events, mut lines) = follow(&home, "vm events web --json");
    assert!(lines.next().unwrap().unwrap().contains("\"lifecycle\""));
    home.ok("vm stop web");
    home.ok("vm rm web");
    let rest: Vec<_> = lines.map(Result::unwrap).collect();
    assert!(
        !rest.iter().any(|line| line.contains("vm-ended")),
        "{rest:?}"
    );
    let run = end(events);
    assert_eq!(run.code, Some(3), "{}", run.stderr);
    let told = "web: it was removed: no VM has that name";
    assert!(run.stderr.contains(told), "{}", run.stderr);
}

#[test]
fn one_that_a_signal_stopped_is_paused_and_not_dialled() {
    let home = Home::new();
    home.ok(START);
    signal("STOP", home.pid("web"));
    home.fails("vm ping web", 3, "the VM is paused");
    home.fails("vm status web", 3, "CONT");
    let listed = json(&home.ok("vm ls --json"));
    assert_eq!(listed[0]["state"], "paused");
    let doctor = json(&home.run("doctor --json"));
    let findings = doctor["findings"].as_array().unwrap();
    let finding = findings
        .iter()
        .find(|one| one["subject"] == "vm web")
        .unwrap();
    let message = finding["message"].as_str().unwrap();
    assert!(message.contains("it is paused"), "{message}");
    signal("CONT", home.pid("web"));
    home.ok("vm ping web");
}

/// As a disk becomes that failed.
#[test]
fn one_in_a_read_only_home_can_be_stopped() {
    let home = Home::new();
    home.ok(START);
    let pid = home.pid("web");
    let read_only = |line: &str| {
        let script = "mount --bind \"$MVM_HOME\" \"$MVM_HOME\" \
                      && mount -o remount,bind,ro \"$MVM_HOME\" && exec \"$@\"";
        let mvmctl = env!("CARGO_BIN_EXE_mvmctl");
        let run = Command::new("unshare")
            .args([
                "--mount",
                "--map-root-user",
                "sh",
                "-c",
                script,
                "sh",
                mvmctl,
            ])
            .args(line.split_whitespace())
            .env("MVM_HOME", home.0.path())
            .output()
            .unwrap();
        String::from_utf8(run.stderr).unwrap()
    };
    let said = read_only("vm start other --backend local");
    assert!(said.contains("Read-only file system"), "{said}");
    assert!(is_there(pid));
    let said = read_only("vm stop web --timeout 30s");
    let told = "it has ended, and that cannot be written down";
    assert!(said.contains(told) && said.contains("Read-only"), "{said}");
    assert!(!is_there(pid));
    let said = read_only("vm stop web");
    assert!(said.contains(told), "{said}");
}

/// No guest can be put to sleep that is not reached.
#[test]
fn one_whose_vsock_device_has_ended_is_not_snapshotted_and_it_is_said_why() {
    let home = Home::new();
    home.ok(START);
    // As QEMU would have it.
    let mut record = home.record("web");
    record["backend"] = "qemu".into();
    let ended = serde_json::json!({"role": "vsock", "pid": home.pid("web"), "start_ticks": 1});
    record["processes"].as_array_mut().unwrap().push(ended);
    let file = home.file("web/vm.json");
    let local = fs::read(&file).unwrap();
    fs::write(&file, record.to_string()).unwrap();
    home.fails("vm snapshot web --to s", 1, "its vsock backend has ended");
    fs::write(&file, local).unwrap();
}

#[test]
fn a_start_whose_mvmctl_was_killed_is_told_as_broken_off() {
    let home = Home::new();
    let agent = home.agent("echo begun; exec sleep 600");
    let mut starting = home.begin(&format!("{START} --agent {agent}"));
    let until = Instant::now() + Duration::from_secs(10);
    let log = home.file("web/console.log");
    let is_up = || fs::read(&log).is_ok_and(|log| log.ends_with(b"\n"));
    while !is_up() || home.main_process("web").is_null() {
        assert!(Instant::now() < until, "the agent does not start");
    }
    let pid = home.pid("web");
    let listed = json(&home.ok("vm ls --json"));
    assert_eq!(listed[0]["state"], "starting");
    home.fails("vm ping web", 3, "the VM is being started");
    starting.kill().unwrap();
    starting.wait().unwrap();
    let listed = home.run("vm ls");
    assert!(
        listed.stdout.contains("start broken off"),
        "{}",
        listed.stdout
    );
    home.fails("vm ping web", 3, "the start of the VM was broken off");
    assert!(is_there(pid));
    // The next start ends what is left of it.
    let own = env!("CARGO_BIN_EXE_mvmctl").replace("mvmctl", "mvm-guest-agent");
    home.ok(&format!("vm start web --agent {own}"));
    assert!(!is_there(pid));
    home.ok("vm ping web");
}

#[test]
fn labels_choose_and_stay() {
    let home = Home::new();
    home.ok("vm start web-1 --backend local --label tier=front --pin");
    home.ok("vm start web-2 --backend local --label tier=back --label pool=other");
    home.ok("vm start db --backend local");
    let names = |line: &str| home.ok(line).stdout;
    assert_eq!(names("vm ls -o name -l pool=web"), "web-1\n");
    assert_eq!(names("vm ls -o name -l tier"), "web-1\nweb-2\n");
    assert_eq!(names("vm ping -o name -l tier!=front"), "db\nweb-2\n");
    assert_eq!(names("vm status -o name -l tier=front,pool=web"), "web-1\n");
    let wide = home.ok("vm ls -o wide").stdout;
    assert!(wide.contains("web    tier=front, pinned"), "{wide}");
    assert!(wide.contains("other  pool=other,tier=back"), "{wide}");
    let listed = json(&home.ok("vm ls --json"));
    assert_eq!(listed[1]["labels"]["tier"], "front");
    assert_eq!(
        (&listed[1]["pool"], &listed[1]["pinned"]),
        (&"web".into(), &true.into())
    );
    assert_eq!(
        (&listed[0]["pool"], &listed[0]["pinned"]),
        (&"db".into(), &false.into())
    );
    // A stopped one has them too, and the next start changes those that are named.
    let stopped = home.ok("vm stop -l tier=front").stderr;
    assert!(stopped.contains("web-1 has stopped"), "{stopped}");
    home.ok("vm ping -l pool=other");
    home.ok("vm start web-1 --label owner=ops --label tier= --unpin");
    assert_eq!(names("vm ls -o name -l owner=ops"), "web-1\n");
    assert_eq!(names("vm ls -o name -l tier=front"), "");
    let none = home.ok("vm rm -l tier=none").stderr;
    assert!(none.contains("no VMs with these labels"), "{none}");
    home.fails("vm rm", 2, "required");
    home.fails("vm stop web-1 -l tier", 2, "cannot be used with");
    home.fails("vm start x --backend local --label pool", 2, "KEY=VALUE");
    assert!(!home.file("x").exists());
}
