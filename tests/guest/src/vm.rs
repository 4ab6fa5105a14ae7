//! `TestVm`: each test's own guest.

use crate::base::{Base, Profile};
use crate::image::NOTIFY_PORT;
use crate::machine::{GUEST_CID, MEMORY_FILE, Machine, logs};
use crate::parts::Parts;
use crate::short_path::ShortPath;
use crate::{SOON, remote};
use mvm_client::{Deadlines, Endpoint, Session};
use mvm_protocol::request::{Check, CheckKind};
use mvm_protocol::status::{IntegrationStatus, ProbeStatus};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::time::timeout;

/// Names each clone's folder so that no path of a socket in it fits into an address, wherever the
/// target folder is: what works only in a short one fails for everybody.
const DEEP: &str =
    "clone-in-a-folder-that-is-named-at-such-length-that-sockets-in-it-have-paths-over-107-bytes-";

/// A clone of the run's guest, up and running. It ends with its owner.
#[derive(Debug)]
pub struct TestVm {
    machine: Machine,
    folder: TempDir,
    _base: Base,
}

impl TestVm {
    /// A guest, or `None` where none can be had and none is required.
    pub fn new() -> Option<Self> {
        Self::of(Profile::Prod)
    }

    /// The same with the agent's dev build.
    pub fn dev() -> Option<Self> {
        Self::of(Profile::Dev)
    }

    fn of(profile: Profile) -> Option<Self> {
        let parts = Parts::find()?;
        let base = Base::of_this_run(&parts, profile);
        let folder = tempfile::Builder::new()
            .prefix(DEEP)
            .tempdir_in(base.folder())
            .expect("make a folder");
        let copied = Command::new("cp")
            .args(["--sparse=always", "--reflink=auto"])
            .arg(base.folder().join(MEMORY_FILE))
            .arg(folder.path())
            .status()
            .expect("run cp");
        assert!(copied.success(), "cannot copy the guest's memory");
        let machine = Machine::resume(&parts, &base.image, folder.path(), &base.state());
        Some(Self {
            machine,
            folder,
            _base: base,
        })
    }

    /// The socket by which the guest is reached.
    pub fn socket(&self) -> PathBuf {
        self.machine.socket()
    }

    /// The same as `mvmctl` takes it for a name.
    pub fn address(&self) -> String {
        format!("unix:{}", self.socket().display())
    }

    /// A conversation with its agent.
    pub async fn session(&self) -> Session {
        let endpoint = Endpoint::unix(self.socket());
        match Session::connect(&endpoint, &Deadlines::default()).await {
            Ok(session) => session,
            Err(error) => panic!("{error}"),
        }
    }

    /// A connection to its agent past the handshake, byte by byte as the protocol has it and without
    /// our own client.
    pub fn raw_connection(&self) -> UnixStream {
        let mut stream = self.dial();
        let mut line = [0; 6];
        stream.read_exact(&mut line).expect("an answer");
        assert_eq!(&line, b"OK 52\n");
        stream
    }

    /// The same before the answer to the handshake, which is a line of six bytes.
    pub fn dial(&self) -> UnixStream {
        let mut stream =
            UnixStream::connect(ShortPath::of(&self.socket()).path()).expect("connect");
        stream.set_read_timeout(Some(SOON)).expect("set a timeout");
        stream.write_all(b"CONNECT 52\n").expect("dial");
        stream
    }

    /// Runs a probe now.
    pub async fn probe(&self, name: &str) -> ProbeStatus {
        let mut session = self.session().await;
        let check = Check {
            kind: CheckKind::Probe,
            name: name.to_owned(),
        };
        let checked = session.check(check).await.expect("check");
        checked.probe.expect("a probe's entry")
    }

    /// What a probe prints now.
    pub async fn value(&self, name: &str) -> String {
        let probe = self.probe(name).await;
        assert!(probe.ok, "{probe:?}");
        match probe.value {
            serde_json::Value::String(text) => text,
            other => panic!("{other:?}"),
        }
    }

    /// Runs a script in the guest, whatever its agent is doing, and gives what it printed.
    pub async fn sh(&self, script: &str) -> String {
        let socket = self.socket();
        let run = remote::run(&socket, script);
        timeout(SOON, run).await.expect("an end of the script")
    }

    /// Runs a health check now.
    pub async fn check(&self, name: &str) -> IntegrationStatus {
        let mut session = self.session().await;
        let check = Check {
            kind: CheckKind::Integration,
            name: name.to_owned(),
        };
        let checked = session.check(check).await.expect("check");
        checked.integration.expect("an integration's entry")
    }

    /// Kills the agent with KILL. A conversation with it ends.
    pub async fn kill_agent(&self) {
        let mut session = self.session().await;
        self.sh("kill -9 $(pidof mvm-guest-agent)").await;
        let answer = session.status().await;
        assert!(answer.is_err(), "it answered: {answer:?}");
    }

    /// Waits until an agent has said on the console that it listens, so often since the guest was
    /// cloned: the one that was cloned said so before.
    pub fn wait_for_agent(&self, times: usize) {
        self.machine.wait_for_agent(times);
    }

    /// What it has written to its console.
    pub fn console(&self) -> String {
        self.machine.console()
    }

    /// Takes the vsock device out of the running guest.
    pub fn unplug(&mut self) {
        self.machine.unplug();
    }

    /// Plugs it in again.
    pub fn plug(&mut self) {
        self.machine.plug(GUEST_CID);
    }

    /// Listens on the host where the agent reports that it is up.
    pub fn listen_for_notice(&self) -> UnixListener {
        let path = self.folder.path().join(format!("v.sock_{NOTIFY_PORT}"));
        UnixListener::bind(ShortPath::of(&path).path()).expect("listen")
    }
}

impl Drop for TestVm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", logs(self.folder.path()));
        }
    }
}
