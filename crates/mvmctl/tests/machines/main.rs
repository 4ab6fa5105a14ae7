//! VMs from start to removal with `--backend local`: all that is common to the backends, without a
//! guest. Stories with real ones are in `tests/guest`.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod console;
mod killed;
mod states;
mod told;
mod trust;

use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// `$MVM_HOME` of one test. VMs that are left in it are removed.
struct Home(TempDir);

struct Run {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn begin(&self, line: &str) -> Child {
        Command::new(env!("CARGO_BIN_EXE_mvmctl"))
            .args(line.split_whitespace())
            .env("MVM_HOME", self.0.path())
            .env_remove("MVM_AGENT")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// To the end of its output: a VM that held the pipes would keep it from ending.
    fn run(&self, line: &str) -> Run {
        end(self.begin(line))
    }

    fn ok(&self, line: &str) -> Run {
        let run = self.run(line);
        assert_eq!(run.code, Some(0), "{line}: {}", run.stderr);
        run
    }

    /// A run that fails with that code, and says so.
    fn fails(&self, line: &str, code: i32, message: &str) {
        let run = self.run(line);
        assert_eq!(run.code, Some(code), "{line}: {}", run.stderr);
        assert!(run.stderr.contains(message), "{line}: {}", run.stderr);
    }

    fn file(&self, path: &str) -> PathBuf {
        self.0.path().join("vms").join(path)
    }

    /// What is in a folder of it.
    fn names(&self, folder: &str) -> Vec<std::ffi::OsString> {
        let entries = fs::read_dir(self.0.path().join(folder)).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect()
    }

    fn record(&self, vm: &str) -> Value {
        let text = fs::read(self.file(vm).join("vm.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    fn pid(&self, vm: &str) -> i64 {
        self.main_process(vm)["pid"].as_i64().unwrap()
    }

    /// As it was recorded; null before that.
    fn main_process(&self, vm: &str) -> Value {
        let record = self.record(vm);
        let mut processes = record["processes"].as_array().unwrap().iter();
        let main = processes.find(|one| one["role"] != "console");
        main.cloned().unwrap_or_default()
    }

    /// A program in the agent's place.
    fn agent(&self, script: &str) -> String {
        let draft = self.0.path().join("draft");
        let path = self.0.path().join("agent");
        fs::write(&draft, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&draft, fs::Permissions::from_mode(0o755)).unwrap();
        // By another process: what this one has open for writing cannot be run.
        let copied = Command::new("cp").arg(draft).arg(&path).status().unwrap();
        assert!(copied.success());
        path.display().to_string()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        for vm in fs::read_dir(self.0.path().join("vms"))
            .into_iter()
            .flatten()
        {
            let name = vm.unwrap().file_name().into_string().unwrap();
            self.run(&format!("vm rm --force {name}"));
        }
    }
}

fn end(child: Child) -> Run {
    let output = child.wait_with_output().unwrap();
    Run {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn is_there(pid: i64) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A zombie has ended, whether its parent looks or not.
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

fn gone(pid: i64) {
    let until = Instant::now() + Duration::from_secs(10);
    while is_there(pid) {
        assert!(Instant::now() < until, "{pid} is still there");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn signal(name: &str, pid: i64) {
    let sent = Command::new("kill")
        .args(["-s", name, &pid.to_string()])
        .status();
    assert!(sent.unwrap().success());
}

const START: &str = "vm start web --backend local";

#[test]
fn from_start_to_removal() {
    let home = Home::new();
    let started = home.ok(START);
    assert_eq!(started.stdout, "");
    assert!(
        started.stderr.contains("web answers after"),
        "{}",
        started.stderr
    );
    let pid = home.pid("web");
    assert!(is_there(pid));
    assert_eq!(home.record("web")["state"], "running");
    home.ok("vm ping web");
    home.fails(START, 1, "running already");
    home.fails("vm rm web", 1, "it is running (process");
    home.fails("vm rm web", 1, "`mvmctl vm rm --force web`");
    let logs = home.ok("vm logs web").stdout;
    assert!(
        logs.contains("mvm-guest-agent: listening on unix:"),
        "{logs}"
    );
    let follower = home.begin("vm logs --follow web");
    assert!(home.ok("vm stop web").stderr.contains("web has stopped"));
    assert!(!is_there(pid));
    assert!(
        end(follower).stdout.starts_with(&logs),
        "it ends with the VM"
    );
    assert_eq!(home.record("web")["state"], "stopped");
    assert!(home.ok("vm stop web").stderr.contains("was not running"));
    home.fails("vm ping web", 3, "stopped");
    home.ok("vm start web");
    home.fails("vm rm web db", 4, "db: no VM has that name");
    home.ok("vm rm --force web");
    assert!(!home.file("web").exists());
}

/// Nothing can be written here, as on a disk that is full. What fills it may be the VM's.
#[test]
fn on_a_full_disk_a_vm_is_stopped_and_removed() {
    let home = Home::new();
    let full = |line: &str| {
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg("ulimit -f 0; exec \"$0\" \"$@\"")
            .arg(env!("CARGO_BIN_EXE_mvmctl"))
            .args(line.split_whitespace())
            .env("MVM_HOME", home.0.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        end(command.spawn().unwrap())
    };
    home.ok(START);
    let pid = home.pid("web");
    let run = full("vm stop web");
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    let said = "it has ended, and that cannot be written down: cannot write";
    assert!(run.stderr.contains(said), "{}", run.stderr);
    assert!(!is_there(pid));
    // It may be started again, and forced.
    home.ok("vm start web");
    let pid = home.pid("web");
    let run = full("vm rm --force web");
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(!is_there(pid) && !home.file("web").exists());
    // One that cannot even be begun is not there.
    let run = full(START);
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    for folder in ["vms", "locks"] {
        assert_eq!(home.names(folder), [""; 0], "{folder}");
    }
}

#[test]
fn of_two_that_start_at_once_one_wins() {
    let home = Home::new();
    let both = [home.begin(START), home.begin(START)];
    let mut codes: Vec<_> = both.map(end).iter().map(|run| run.code.unwrap()).collect();
    codes.sort_unstable();
    assert_eq!(codes, [0, 1]);
    home.ok("vm ping web");
}

#[test]
fn an_agent_that_ends_at_once_shows_what_it_said() {
    let home = Home::new();
    let agent = home.agent("echo 'no such vsock \x1b[2J' >&2; exit 7");
    let run = home.run(&format!("{START} --agent {agent}"));
    assert_eq!(run.code, Some(1));
    assert!(run.stderr.contains("no such vsock"), "{}", run.stderr);
    assert!(!run.stderr.contains('\x1b'), "{}", run.stderr);
    assert!(run.stderr.contains("exit status 7"), "{}", run.stderr);
    assert_eq!(home.record("web")["state"], "stopped");
}

#[test]
fn one_that_does_not_come_up_is_ended() {
    let home = Home::new();
    let agent = home.agent("echo $$ >pid; exec sleep 600");
    home.fails(
        &format!("{START} --agent {agent} --timeout 500ms"),
        1,
        "after 0.5 s the agent's line on the console is still missing",
    );
    let pid = fs::read_to_string(home.file("web/pid")).unwrap();
    assert!(!is_there(pid.trim().parse().unwrap()));
}

#[test]
fn one_that_says_it_listens_and_does_not_is_ended() {
    let home = Home::new();
    let agent =
        home.agent("echo $$ >pid; echo 'mvm-guest-agent: listening on nothing'; exec sleep 600");
    home.fails(
        &format!("{START} --agent {agent} --timeout 500ms"),
        1,
        "says that it listens, and does not answer",
    );
    let pid = fs::read_to_string(home.file("web/pid")).unwrap();
    assert!(!is_there(pid.trim().parse().unwrap()));
}

#[test]
fn who_is_interrupted_leaves_nothing() {
    for (script, awaits) in [
        ("echo begun; exec sleep 600", "its line"),
        (
            "echo 'mvm-guest-agent: listening on nothing'; exec sleep 600",
            "an answer",
        ),
    ] {
        let home = Home::new();
        let agent = home.agent(script);
        let starting = home.begin(&format!("{START} --agent {agent}"));
        let until = Instant::now() + Duration::from_secs(10);
        let log = home.file("web/console.log");
        let is_up = || fs::read(&log).is_ok_and(|log| log.ends_with(b"\n"));
        while !is_up() || home.main_process("web").is_null() {
            assert!(Instant::now() < until, "the agent does not start");
        }
        let pid = home.pid("web");
        signal("INT", i64::from(starting.id()));
        let run = end(starting);
        assert_eq!(run.code, Some(1), "{awaits}: {}", run.stderr);
        assert!(
            run.stderr.contains("interrupted"),
            "{awaits}: {}",
            run.stderr
        );
        assert!(!is_there(pid), "{awaits}");
    }
}

#[test]
fn one_that_does_not_stop_when_asked_to_is_ended() {
    let home = Home::new();
    // It wakes once a second, so that it leaves nothing behind when it is killed.
    let agent = home.agent("trap '' TERM; echo ready; while :; do sleep 1; done");
    home.ok(&format!("{START} --agent {agent} --no-wait"));
    let pid = home.pid("web");
    let until = Instant::now() + Duration::from_secs(10);
    while home.ok("vm logs web").stdout != "ready\n" {
        assert!(Instant::now() < until, "the agent does not start");
    }
    let stopped = home.ok("vm stop --timeout 200ms web");
    assert!(
        stopped.stderr.contains("did not stop when asked to"),
        "{}",
        stopped.stderr
    );
    assert!(!is_there(pid));
}

#[test]
fn one_that_crashed_is_told_and_cleared_by_the_next_start() {
    let home = Home::new();
    home.ok(START);
    let pid = home.pid("web");
    signal("KILL", pid);
    gone(pid);
    let doctor = home.run("doctor --json");
    let report: Value = serde_json::from_str(&doctor.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap();
    let finding = findings.iter().find(|f| f["subject"] == "vm web").unwrap();
    let message = "it has ended by itself: its process is gone, and neither console nor log says why \
                   (killed?)";
    assert_eq!(finding["message"], message);
    assert_eq!(finding["fix"], "mvmctl vm stop web");
    home.ok("vm start web");
    assert_ne!(home.pid("web"), pid);
    home.ok("vm ping web");
}

#[test]
fn a_process_that_got_the_pid_of_one_of_ours_is_left_alone() {
    let home = Home::new();
    home.ok(START);
    home.ok("vm stop web");
    let mut other = Command::new("sleep").arg("600").spawn().unwrap();
    let mut record = home.record("web");
    record["state"] = "running".into();
    record["processes"] = serde_json::json!([
        {"role": "agent", "pid": other.id(), "start_ticks": 1}
    ]);
    fs::write(home.file("web/vm.json"), record.to_string()).unwrap();
    assert!(home.ok("vm stop web").stderr.contains("was not running"));
    home.ok("vm start web");
    home.ok("vm rm --force web");
    assert!(other.try_wait().unwrap().is_none(), "it was killed");
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn drop_ins_come_from_the_folder_that_is_named() {
    let home = Home::new();
    let etc = home.0.path().join("etc");
    fs::create_dir_all(etc.join("integrations.d")).unwrap();
    let check = r#"{"name": "true", "health_cmd": "true"}"#;
    fs::write(etc.join("integrations.d/true.json"), check).unwrap();
    home.ok(&format!("{START} --etc {}", etc.display()));
    let status = home.run("vm status web --json").stdout;
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["integrations"][0]["name"], "true");
    home.ok("vm stop web");
    home.fails(
        &format!("{START} --etc {}/none", etc.display()),
        1,
        "is no folder",
    );
}

/// A socket's path may have 107 bytes, a home's more.
#[test]
fn a_long_path_is_no_obstacle() {
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("x".repeat(120));
    fs::create_dir(&deep).unwrap();
    let home = Home(tempfile::tempdir_in(deep).unwrap());
    home.ok(START);
    home.ok("vm ping web");
    home.ok("vm stop web");
}

/// The agent is started in a folder of its own, where a path that is relative to ours leads nowhere.
#[test]
fn a_home_may_be_named_relative_to_where_we_are() {
    let home = Home::new();
    let run = |line: &str| {
        let run = Command::new(env!("CARGO_BIN_EXE_mvmctl"))
            .args(line.split_whitespace())
            .current_dir(home.0.path().parent().unwrap())
            .env("MVM_HOME", home.0.path().file_name().unwrap())
            .env_remove("MVM_AGENT")
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&run.stderr);
        assert_eq!(run.status.code(), Some(0), "{line}: {stderr}");
    };
    run(START);
    run("vm ping web");
    run("vm stop web");
}

/// An agent on this machine has no part in the image, nor in its port.
#[test]
fn an_image_with_a_port_of_its_own_does_not_move_the_agent() {
    let home = Home::new();
    let image = home.0.path().join("image");
    fs::create_dir(&image).unwrap();
    let manifest = r#"{"version":1,"kernel":"vmlinux","initrd":null,"rootfs":null,"cmdline":"",
        "agent":{"version":"0.1.0","profile":"prod","port":1052}}"#;
    fs::write(image.join("manifest.json"), manifest).unwrap();
    fs::write(image.join("vmlinux"), "").unwrap();
    home.ok(&format!(
        "{START} --image {} --timeout 10s",
        image.display()
    ));
    home.ok("vm ping web");
    assert_eq!(home.record("web")["port"], 52);
}
