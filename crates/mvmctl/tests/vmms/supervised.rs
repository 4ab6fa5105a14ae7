//! `mvmctl vm run`, supervised as systemd does it: over a notify socket, with a watchdog, by signals and
//! by the exit code.

use crate::test_host::{Backend, LONG, TestHost};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::Read as _;
use std::os::unix::net::UnixDatagram;
use std::process::Child;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Within how long the watchdog wants to hear something. The guest's heartbeats are a sixth of it.
const WATCHDOG: Duration = Duration::from_millis(1200);

/// Who starts the program and listens to it.
struct Supervisor {
    child: Child,
    socket: UnixDatagram,
    _folder: TempDir,
    /// What it was told so far, and not looked at yet.
    told: Vec<String>,
}

impl Supervisor {
    fn start(host: &TestHost, line: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let child = host
            .command(line)
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string())
            .spawn()
            .unwrap();
        Self {
            child,
            socket,
            _folder: folder,
            told: Vec::new(),
        }
    }

    /// Takes what is told until then.
    fn listen(&mut self, until: Instant) -> bool {
        let left = until.saturating_duration_since(Instant::now());
        let left = left.max(Duration::from_millis(1));
        self.socket.set_read_timeout(Some(left)).unwrap();
        let mut buffer = [0; 4096];
        match self.socket.recv(&mut buffer) {
            Ok(count) => {
                let told = String::from_utf8(buffer[..count].to_vec()).unwrap();
                self.told.extend(told.lines().map(str::to_owned));
                true
            }
            Err(_) => false,
        }
    }

    /// Waits until it is told that, and gives what it was told before that.
    fn await_told(&mut self, words: &str) -> Vec<String> {
        let until = Instant::now() + LONG;
        loop {
            if let Some(at) = self.told.iter().position(|line| line.contains(words)) {
                let rest = self.told.split_off(at + 1);
                return std::mem::replace(&mut self.told, rest);
            }
            if !self.listen(until) {
                let mut stderr = String::new();
                if self.child.try_wait().unwrap().is_some() {
                    let pipe = self.child.stderr.as_mut().unwrap();
                    pipe.read_to_string(&mut stderr).unwrap();
                }
                assert!(Instant::now() < until, "{words}: {:?} {stderr}", self.told);
            }
        }
    }

    /// What it is told in that time.
    fn told_within(&mut self, time: Duration) -> Vec<String> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.listen(until);
        }
        std::mem::take(&mut self.told)
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// The exit code, and what was written.
    fn end(mut self) -> (Option<i32>, String, String) {
        let until = Instant::now() + LONG;
        while self.child.try_wait().unwrap().is_none() {
            self.listen(Instant::now() + Duration::from_millis(20));
            assert!(Instant::now() < until, "it does not end: {:?}", self.told);
        }
        let output = self.child.wait_with_output().unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    }
}

/// The command line for a VM `web` from the image.
fn run(backend: &Backend, options: &str) -> String {
    let name = backend.name;
    format!("vm run web --image image --memory 64 --backend {name} {options}")
}

fn set(host: &TestHost, file: &str, content: &str) {
    fs::create_dir_all(host.file("web", "")).unwrap();
    fs::write(host.file("web", file), content).unwrap();
}

fn pids(host: &TestHost) -> Vec<i64> {
    let record = fs::read(host.file("web", "vm.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    let processes = record["processes"].as_array().unwrap();
    processes
        .iter()
        .map(|process| process["pid"].as_i64().unwrap())
        .collect()
}

pub(crate) fn a_vm_is_ready_when_its_guest_is_and_the_watchdog_is_its_agents(backend: &Backend) {
    let host = TestHost::with_image(backend);
    set(&host, "guest-health", "starting");
    let mut supervisor = Supervisor::start(&host, &run(backend, "--notify healthy"));
    let before = supervisor.await_told("STATUS=running, starting");
    assert!(!before.contains(&"READY=1".to_owned()), "{before:?}");
    // It answers, and is not healthy.
    let before = supervisor.await_told("WATCHDOG=1");
    assert!(!before.contains(&"READY=1".to_owned()), "{before:?}");
    set(&host, "guest-health", "healthy");
    supervisor.await_told("STATUS=running, healthy");
    supervisor.await_told("READY=1");
    supervisor.await_told("WATCHDOG=1");

    set(&host, "guest-health", "silent");
    supervisor.await_told("STATUS=the guest does not answer");
    let told = supervisor.told_within(2 * WATCHDOG);
    assert!(!told.contains(&"WATCHDOG=1".to_owned()), "{told:?}");
    set(&host, "guest-health", "unhealthy");
    supervisor.await_told("STATUS=running, unhealthy");
    supervisor.await_told("WATCHDOG=1");

    // One that something has paused stands still in order.
    host.api("web", backend.pause, backend.paused);
    supervisor.signal(Signal::TERM);
    supervisor.await_told("STOPPING=1");
    let (code, _, stderr) = supervisor.end();
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(host.state(), "stopped");
    assert!(host.processes().is_empty());
}

pub(crate) fn asked_to_end_it_sleeps_and_goes_on_in_the_next_run(backend: &Backend) {
    let host = TestHost::with_image(backend);
    let line = run(backend, "--on-term sleep");
    let mut supervisor = Supervisor::start(&host, &line);
    supervisor.await_told("READY=1");
    host.forget_calls();
    for signal in [Signal::TERM, Signal::INT] {
        supervisor.signal(signal);
        let (code, _, stderr) = supervisor.end();
        assert_eq!(code, Some(0), "{stderr}");
        assert_eq!(host.state(), "asleep");
        assert!(host.processes().is_empty());
        let calls = host.calls("web");
        let slept = calls.iter().rposition(|call| call == "guest sleep-prep");
        let paused = calls
            .iter()
            .rposition(|call| *call == format!("{} 204", backend.pause));
        assert!(slept < paused && slept.is_some(), "{calls:?}");
        assert!(
            !calls.iter().any(|call| call.contains("open connections")),
            "{calls:?}"
        );
        let sleeps = fs::read_dir(host.file("web", "snapshots")).unwrap().count();
        assert_eq!(sleeps, 1, "one sleep, and no older one");

        supervisor = Supervisor::start(&host, &line);
        let before = supervisor.await_told("READY=1");
        assert!(
            before.iter().any(|line| line.contains("going on from")),
            "{before:?}"
        );
        let calls = host.calls("web");
        let woken = "guest wake restored, time, entropy";
        assert!(calls.iter().any(|call| call == woken), "{calls:?}");
        // It has gone on: nobody may go on from there once more.
        let sleeps = fs::read_dir(host.file("web", "snapshots")).unwrap().count();
        assert_eq!(sleeps, 0);
    }
    supervisor.signal(Signal::TERM);
    assert_eq!(supervisor.end().0, Some(0));
    // A guest that cannot be woken sleeps on, and nothing of it runs.
    set(&host, "fault", "guest wake restored, time, entropy hang");
    let failed = host.run(&format!("{line} --timeout 1s"));
    assert_eq!(failed.code, Some(3), "{failed:?}");
    assert_eq!(host.state(), "asleep", "{failed:?}");
    assert!(host.processes().is_empty());
    let mut supervisor = Supervisor::start(&host, &line);
    supervisor.await_told("READY=1");
    supervisor.signal(Signal::TERM);
    assert_eq!(supervisor.end().0, Some(0));
    let mut supervisor = Supervisor::start(&host, &format!("{line} --discard-state"));
    let before = supervisor.await_told("READY=1");
    assert!(
        before.iter().any(|line| line == "STATUS=starting"),
        "{before:?}"
    );
    supervisor.signal(Signal::TERM);
    assert_eq!(supervisor.end().0, Some(0));
}

pub(crate) fn it_begins_from_a_snapshot(backend: &Backend) {
    let host = TestHost::with_web(backend);
    host.ok("vm snapshot web --to s --stop");
    host.forget_calls();
    let line = "vm run job-1 --snapshot s --clone --label pool=jobs --on-term sleep";
    let mut supervisor = Supervisor::start(&host, line);
    supervisor.await_told("READY=1");
    let calls = host.calls("job-1");
    let woken = "guest wake restored, clone, time, entropy";
    assert!(calls.iter().any(|call| call == woken), "{calls:?}");
    supervisor.signal(Signal::TERM);
    assert_eq!(supervisor.end().0, Some(0));
    // It goes on from its own sleep, as the one that it is by now.
    let mut supervisor = Supervisor::start(&host, line);
    supervisor.await_told("READY=1");
    let calls = host.calls("job-1");
    assert_eq!(calls.last().unwrap(), "guest watch", "{calls:?}");
    let woken = "guest wake restored, time, entropy";
    assert!(calls.iter().any(|call| call == woken), "{calls:?}");
    assert!(host.path("s").exists(), "that one is not its own");
    supervisor.signal(Signal::TERM);
    assert_eq!(supervisor.end().0, Some(0));
}

pub(crate) fn the_exit_code_says_how_it_ended(backend: &Backend) {
    for (deed, code, words) in [
        ("power-off", 0, "its guest powered off"),
        ("restart", 1, "its guest restarted"),
        (
            "panic",
            1,
            "Kernel panic - not syncing: sysrq triggered crash",
        ),
        ("kill", 1, "neither console nor log says why"),
    ] {
        let host = TestHost::with_image(backend);
        let mut supervisor = Supervisor::start(&host, &run(backend, ""));
        supervisor.await_told("READY=1");
        if deed == "kill" {
            host.kill("web");
        } else {
            set(&host, "guest-does", deed);
        }
        let (ended, stdout, stderr) = supervisor.end();
        assert_eq!(ended, Some(code), "{deed}: {stderr}");
        assert!(stderr.contains(words), "{deed}: {stderr}");
        // Its console, from the first line to the last.
        assert!(
            stdout.contains("mvm-guest-agent: listening on "),
            "{deed}: {stdout}"
        );
        assert_eq!(
            stdout.contains("reboot: Power down"),
            deed == "power-off",
            "{stdout}"
        );
        assert!(host.processes().is_empty(), "{deed}");
        // The next run begins anew, with a console of its own.
        fs::remove_file(host.file("web", "guest-does")).ok();
        let mut supervisor = Supervisor::start(&host, &run(backend, ""));
        supervisor.await_told("READY=1");
        supervisor.signal(Signal::TERM);
        let (ended, stdout, stderr) = supervisor.end();
        assert_eq!(ended, Some(0), "{stderr}");
        assert_eq!(stdout.matches("listening on ").count(), 1, "{stdout}");
    }
}

pub(crate) fn after_a_crash_the_next_run_takes_over_or_replaces_what_is_left(backend: &Backend) {
    let host = TestHost::with_image(backend);
    let line = run(backend, "");
    let mut supervisor = Supervisor::start(&host, &line);
    supervisor.await_told("READY=1");
    let before = pids(&host);
    // No second one beside it.
    let second = host.run(&line);
    assert_eq!(second.code, Some(1), "{second:?}");
    assert!(
        second
            .stderr
            .contains("another `mvmctl vm run` supervises it"),
        "{second:?}"
    );

    let crash = |supervisor: Supervisor| {
        supervisor.signal(Signal::KILL);
        assert_eq!(supervisor.end().0, None);
    };
    crash(supervisor);
    let mut supervisor = Supervisor::start(&host, &format!("{line} --label a=b"));
    supervisor.await_told("STATUS=it runs already, and is taken over");
    supervisor.await_told("READY=1");
    assert_eq!(pids(&host), before, "the same VM");
    assert_eq!(host.json("vm ls -l a=b")[0]["vm"], "web");

    // What is asked for now is another VM.
    crash(supervisor);
    let mut supervisor = Supervisor::start(&host, &line.replace("64", "128"));
    supervisor.await_told("READY=1");
    let other = pids(&host);
    assert_ne!(other, before);
    assert_eq!(
        host.processes().len(),
        other.len() + 1,
        "with the program itself"
    );

    // A guest that does not answer any more.
    set(&host, "guest-health", "silent");
    crash(supervisor);
    let line = line.replace("64", "128");
    let mut supervisor = Supervisor::start(&host, &format!("{line} --timeout 2s"));
    supervisor.await_told("its guest does not answer");
    set(&host, "guest-health", "healthy");
    supervisor.await_told("READY=1");
    assert_ne!(pids(&host), other);

    // In the middle of a sleep.
    crash(supervisor);
    let mut supervisor = Supervisor::start(&host, &format!("{line} --on-term sleep"));
    supervisor.await_told("READY=1");
    host.inject(&format!("{} wait", backend.write));
    supervisor.signal(Signal::TERM);
    host.await_call(&format!("{} fault wait", backend.write));
    crash(supervisor);
    host.touch("web", "go");
    let mut supervisor = Supervisor::start(&host, &line);
    supervisor.await_told("STATUS=it runs already, and is taken over");
    supervisor.await_told("READY=1");
    assert_eq!(host.lifecycle("web"), "running");

    // In the middle of a start.
    supervisor.signal(Signal::TERM);
    assert_eq!(supervisor.end().0, Some(0));
    host.forget_calls();
    host.inject(&format!("{} wait", backend.boot));
    let supervisor = Supervisor::start(&host, &line);
    host.await_call(&format!("{} fault wait", backend.boot));
    crash(supervisor);
    host.touch("web", "go");
    let mut supervisor = Supervisor::start(&host, &line);
    supervisor.await_told("READY=1");
    assert_eq!(host.processes().len(), pids(&host).len() + 1);
    supervisor.signal(Signal::TERM);
    assert_eq!(supervisor.end().0, Some(0));
    assert!(host.processes().is_empty());
}

pub(crate) fn a_second_signal_ends_it_at_once(backend: &Backend) {
    let host = TestHost::with_image(backend);
    let mut supervisor = Supervisor::start(&host, &run(backend, "--on-term sleep"));
    supervisor.await_told("READY=1");
    host.inject(&format!("{} wait", backend.write));
    supervisor.signal(Signal::TERM);
    host.await_call(&format!("{} fault wait", backend.write));
    let begun = Instant::now();
    supervisor.signal(Signal::TERM);
    let (code, _, stderr) = supervisor.end();
    assert_eq!(code, Some(128 + 15), "{stderr}");
    assert!(begun.elapsed() < Duration::from_secs(10), "{stderr}");
    assert!(host.processes().is_empty());
    // While it is being started, one signal is enough, and nothing is left.
    let host = TestHost::with_image(backend);
    set(&host, "fault", &format!("{} wait", backend.boot));
    let mut supervisor = Supervisor::start(&host, &run(backend, ""));
    host.await_call(&format!("{} fault wait", backend.boot));
    supervisor.signal(Signal::TERM);
    supervisor.await_told("STOPPING=1");
    let (code, _, stderr) = supervisor.end();
    assert_eq!(code, Some(0), "{stderr}");
    assert!(host.processes().is_empty());
}

pub(crate) fn one_that_cannot_sleep_is_stopped_and_that_is_told(backend: &Backend) {
    let host = TestHost::with_image(backend);
    let mut supervisor = Supervisor::start(&host, &run(backend, "--on-term sleep"));
    supervisor.await_told("READY=1");
    host.inject("guest sleep-prep refuse");
    supervisor.signal(Signal::TERM);
    let (code, _, stderr) = supervisor.end();
    assert_eq!(code, Some(1), "{stderr}");
    for words in [
        "could not be put to sleep",
        "it has stopped",
        "the disk is on fire",
    ] {
        assert!(stderr.contains(words), "{words}: {stderr}");
    }
    assert_eq!(host.state(), "stopped");
    assert!(host.processes().is_empty());
}

pub(crate) fn what_others_do_to_it_in_order_is_no_failure(backend: &Backend) {
    let host = TestHost::with_image(backend);
    let line = run(backend, "");
    let mut supervisor = Supervisor::start(&host, &line);
    supervisor.await_told("READY=1");
    // It stands still for a moment, and the watchdog is not alarmed.
    host.ok("vm snapshot web --to s");
    let told = supervisor.told_within(2 * WATCHDOG);
    assert!(told.contains(&"WATCHDOG=1".to_owned()), "{told:?}");
    host.api("web", backend.pause, backend.paused);
    let told = supervisor.told_within(4 * WATCHDOG);
    assert!(told.contains(&"WATCHDOG=1".to_owned()), "{told:?}");
    host.api("web", backend.resume, backend.resumed);
    // Resumed so, Firecracker 1.16.1 cuts its guest off; this is what its user is told to do.
    host.ok("vm wake web");
    host.ok("vm snapshot web --to t --stop");
    let (code, _, stderr) = supervisor.end();
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.contains("asleep"), "{stderr}");
    // The next run goes on from there, and leaves a snapshot that is not its own.
    let mut supervisor = Supervisor::start(&host, &line);
    supervisor.await_told("READY=1");
    assert!(host.path("t").exists());
    host.ok("vm stop web");
    let (code, _, stderr) = supervisor.end();
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.contains("stopped"), "{stderr}");
}
