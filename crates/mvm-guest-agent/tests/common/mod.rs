//! An agent as a plain process, and a host that talks to it over its Unix socket.

#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    unreachable_pub,
    reason = "a test fails by panicking"
)]

pub mod dev;
#[cfg(feature = "dev")]
pub mod files;

use mvm_protocol::frame::{Decoder, Frame, encode_json};
use mvm_protocol::handshake::{connect_line, ok_line};
use mvm_protocol::{MAX_BODY, PORT};
use serde_json::{Value, json};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Far more than anything here takes.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What dev builds alone serve: by name, and not by the list that the agent itself goes by.
pub const DEV_REQUESTS: [&str; 7] = [
    "exec",
    "put",
    "get",
    "jobs",
    "attach",
    "job-signal",
    "forward",
];

/// The answer has to be a refusal with that code, and these words in its message.
#[track_caller]
pub fn assert_refused(answer: &Value, code: &str, words: &str) {
    let message = answer["message"].as_str().unwrap_or_default();
    assert!(
        answer["code"] == code && message.contains(words),
        "not {code} with {words:?}: {answer}"
    );
}

/// Who the agent runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum As {
    /// As whoever runs the tests: with root, cgroups do the killing.
    Tester,
    /// As nobody, who may write no cgroup: groups, subreaper and marks do the killing.
    Nobody,
}

/// The user and group id of nobody.
pub const NOBODY: u32 = 65534;

/// An agent in a folder of its own, ended when dropped.
pub struct Agent {
    pub process: Child,
    pub dir: TempDir,
    settings: Settings,
}

/// How to start it.
#[derive(Clone)]
pub struct Settings {
    pub user: As,
    pub flags: Vec<String>,
    /// What a shell does before it becomes the agent, such as `ulimit -n 20`.
    pub first: Option<&'static str>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            user: As::Tester,
            flags: Vec::new(),
            first: None,
        }
    }
}

impl Settings {
    pub fn user(user: As) -> Self {
        Self {
            user,
            ..Self::default()
        }
    }

    pub fn flags(flags: &[&str]) -> Self {
        Self {
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            ..Self::default()
        }
    }
}

/// A folder with drop-ins: the integrations and the probes, as JSON.
pub fn folder(integrations: &[Value], probes: &[Value]) -> TempDir {
    let dir = TempDir::new().unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    for (sub, entries) in [
        ("integrations.d", integrations),
        ("probes.d", probes),
        ("run", &[]),
    ] {
        std::fs::create_dir(dir.path().join(sub)).unwrap();
        for entry in entries {
            let file = format!("{sub}/{}.json", entry["name"].as_str().unwrap());
            std::fs::write(dir.path().join(file), entry.to_string()).unwrap();
        }
    }
    std::fs::write(dir.path().join("agent.json"), "{}").unwrap();
    dir
}

impl Agent {
    /// An agent with these integrations and probes.
    pub fn start(integrations: &[Value], probes: &[Value]) -> Self {
        Self::launch(folder(integrations, probes), Settings::default())
    }

    /// An agent that listens once this returns.
    pub fn launch(dir: TempDir, settings: Settings) -> Self {
        // As systemd does it: the agent says when it listens.
        let path = dir.path().join("notify");
        let _ = std::fs::remove_file(&path);
        let notify = UnixDatagram::bind(&path).unwrap();
        notify.set_read_timeout(Some(PATIENCE)).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).unwrap();
        let agent = env!("CARGO_BIN_EXE_mvm-guest-agent");
        let mut command = match settings.first {
            None => Command::new(agent),
            Some(first) => {
                let mut shell = Command::new("/bin/bash");
                shell.args(["-c", &format!("{first}; exec \"$0\" \"$@\""), agent]);
                shell
            }
        };
        command
            .args([
                "--no-system-effects",
                "--config",
                "agent.json",
                "--listen",
                "unix:run/agent.sock",
            ])
            .args([
                "--integrations-dir",
                "integrations.d",
                "--probes-dir",
                "probes.d",
            ])
            .args(["--run-dir", "run"])
            .args(&settings.flags)
            .env("NOTIFY_SOCKET", &path)
            .current_dir(dir.path())
            .stdin(Stdio::null());
        if settings.user == As::Nobody {
            assert!(rustix::process::geteuid().is_root(), "this test needs root");
            for owned in ["run", "integrations.d", "probes.d"] {
                chown(dir.path().join(owned), Some(NOBODY), Some(NOBODY)).unwrap();
            }
            // The tests' own build folder need not be open to others.
            let copy = dir.path().join("agent");
            if !copy.exists() {
                std::fs::copy(agent, &copy).unwrap();
            }
            let mut nobody = Command::new(&copy);
            let (args, vars): (Vec<_>, Vec<_>) =
                (command.get_args().collect(), command.get_envs().collect());
            if settings.first.is_some() {
                nobody = Command::new("/bin/bash");
                nobody.args(&args[..2]).arg(&copy).args(&args[3..]);
            } else {
                nobody.args(args);
            }
            nobody.envs(
                vars.into_iter()
                    .filter_map(|(name, value)| Some((name, value?))),
            );
            nobody
                .current_dir(dir.path())
                .stdin(Stdio::null())
                .uid(NOBODY)
                .gid(NOBODY);
            command = nobody;
        }
        let process = command.spawn().unwrap();
        let agent = Self {
            process,
            dir,
            settings,
        };
        let mut message = [0; 256];
        let count = notify.recv(&mut message).unwrap();
        let message = String::from_utf8_lossy(&message[..count]).into_owned();
        assert!(message.lines().any(|line| line == "READY=1"), "{message}");
        agent
    }

    /// Kills the agent as the kernel would, and starts another in its place, as init does.
    pub fn crash_and_restart(self) -> Self {
        let (dir, settings) = self.crash();
        Self::launch(dir, settings)
    }

    /// Kills the agent as the kernel would.
    pub fn crash(mut self) -> (TempDir, Settings) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        let dir = std::mem::replace(&mut self.dir, TempDir::new().unwrap());
        (dir, self.settings.clone())
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("run/agent.sock")
    }

    /// Sends a signal by name, and nothing else.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Has it no more than so many descriptors from now on; those that it has stay.
    pub fn limit_descriptors(&self, most: u64) {
        use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
        let pid = Pid::from_child(&self.process);
        let limit = Rlimit {
            current: Some(most),
            ..getrlimit(Resource::Nofile)
        };
        prlimit(Some(pid), Resource::Nofile, limit).unwrap();
    }

    pub fn connect(&self) -> UnixStream {
        Self::connect_to(&self.socket())
    }

    fn connect_to(socket: &Path) -> UnixStream {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// A connection after its handshake.
    pub fn connection(&self) -> Connection {
        Self::shake_hands(self.connect())
    }

    /// A connection to another agent's socket in the folder.
    pub fn connection_to(&self, name: &str) -> Connection {
        Self::shake_hands(Self::connect_to(&self.path(name)))
    }

    fn shake_hands(mut stream: UnixStream) -> Connection {
        stream.write_all(connect_line(PORT).as_bytes()).unwrap();
        let mut line = vec![0; ok_line(PORT).len()];
        stream.read_exact(&mut line).unwrap();
        assert_eq!(line, ok_line(PORT).as_bytes());
        Connection {
            stream,
            decoder: Decoder::default(),
        }
    }

    /// The answer to one request on a connection of its own.
    pub fn ask(&self, request: &Value) -> Value {
        self.connection().ask(request)
    }

    pub fn status(&self) -> Value {
        self.ask(&json!({"type": "status"}))
    }

    pub fn inspect(&self) -> Value {
        self.ask(&json!({"type": "inspect"}))
    }

    /// The fresh entry of an integration after a check now.
    pub fn check(&self, name: &str) -> Value {
        let request = json!({"type": "check", "kind": "integration", "name": name});
        self.ask(&request)["integration"].take()
    }

    /// The fresh entry of a probe after a run now.
    pub fn probe(&self, name: &str) -> Value {
        self.ask(&json!({"type": "check", "kind": "probe", "name": name}))["probe"].take()
    }

    /// Waits for the agent's end.
    pub fn wait(&mut self) -> ExitStatus {
        within(|| self.process.try_wait().unwrap())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // TERM first, so that the agent ends what it runs and removes its cgroup.
        if matches!(self.process.try_wait(), Ok(None)) {
            let pid = rustix::process::Pid::from_child(&self.process);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            let until = Instant::now() + Duration::from_secs(5);
            while matches!(self.process.try_wait(), Ok(None)) && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
        remove_cgroups(&self.path("run"));
    }
}

/// Ends what an agent with this run directory has left, and removes its cgroups. One that was killed
/// could not.
fn remove_cgroups(run_dir: &Path) {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mount = mounts
        .lines()
        .find(|line| line.contains(" - cgroup2 "))
        .and_then(|line| line.split_whitespace().nth(4));
    let (Some(own), Some(mount)) = (own, mount) else {
        return;
    };
    let name = run_dir.to_string_lossy().replace('/', "-");
    let root = Path::new(mount)
        .join(own)
        .join(format!("mvm-guest-agent{name}"));
    let _ = std::fs::write(root.join("cgroup.kill"), "1");
    let until = Instant::now() + PATIENCE;
    while root.exists() && Instant::now() < until {
        remove_tree(&root);
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A cgroup's files cannot be removed, and go with it.
fn remove_tree(cgroup: &Path) {
    for entry in std::fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(cgroup);
}

pub struct Connection {
    pub stream: UnixStream,
    pub decoder: Decoder,
}

impl Connection {
    pub fn send(&mut self, request: &Value) {
        let frame = encode_json(request.to_string().as_bytes()).unwrap();
        self.stream.write_all(&frame).unwrap();
    }

    pub fn ask(&mut self, request: &Value) -> Value {
        self.send(request);
        self.answer()
            .unwrap_or_else(|| panic!("closed instead of an answer to {request}"))
    }

    /// The next answer; `None` at the end of the stream.
    pub fn answer(&mut self) -> Option<Value> {
        match self.frame()? {
            Frame::Json(body) => Some(serde_json::from_slice(&body).unwrap()),
            other => panic!("{other:?}"),
        }
    }

    /// The next frame, of either kind; `None` at the end of the stream.
    pub fn frame(&mut self) -> Option<Frame> {
        let mut buffer = vec![0; MAX_BODY];
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Some(frame);
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(count) => self.decoder.push(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// The next event of a watch that has this field.
    pub fn event(&mut self, field: &str) -> Value {
        loop {
            let event = self.answer().unwrap();
            if !event[field].is_null() {
                return event;
            }
        }
    }

    /// Whether nothing has come and the connection is open.
    pub fn is_silent(&mut self) -> bool {
        self.stream.set_nonblocking(true).unwrap();
        let read = self.stream.read(&mut [0; 1]);
        self.stream.set_nonblocking(false).unwrap();
        matches!(read, Err(error) if error.kind() == ErrorKind::WouldBlock)
            && self.decoder.next_frame() == Ok(None)
    }
}

/// Looks until there is something, for what announces itself by no event.
pub fn within<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "nothing within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Processes that are alive with this text in their command line.
pub fn processes(text: &str) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        // A zombie has no command line.
        String::from_utf8_lossy(&line)
            .replace('\0', " ")
            .contains(text)
    })
    .collect()
}

/// How many descriptors a process has open.
pub fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .count()
}

/// The children of a process, zombies among them.
pub fn children(pid: u32) -> Vec<u32> {
    let path = Path::new("/proc")
        .join(pid.to_string())
        .join("task")
        .join(pid.to_string());
    let children = std::fs::read_to_string(path.join("children")).unwrap();
    children
        .split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}
