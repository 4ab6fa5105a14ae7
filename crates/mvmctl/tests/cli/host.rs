//! A host with VMs in a folder of its own, and `mvmctl` run on it.

use mvm_fake_agent::{FakeAgent, Peer};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// `$MVM_HOME` and what is in it; gone when dropped.
pub(crate) struct Host {
    agents: Vec<(String, FakeAgent)>,
    home: TempDir,
}

/// What a run of `mvmctl` came to.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Host {
    pub(crate) fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("mvmctl.toml"), "").unwrap();
        Self {
            home,
            agents: Vec::new(),
        }
    }

    /// With one VM whose agent behaves so.
    pub(crate) fn with(name: &str, behaviour: impl Fn(&mut Peer) + Send + Sync + 'static) -> Self {
        Self::new().and(name, behaviour)
    }

    /// With one VM more.
    pub(crate) fn and(
        mut self,
        name: &str,
        behaviour: impl Fn(&mut Peer) + Send + Sync + 'static,
    ) -> Self {
        let agent = FakeAgent::at(&self.socket(name), behaviour);
        self.agents.push((name.to_owned(), agent));
        self
    }

    /// With a record of that content, of a VM that may have an agent as well.
    pub(crate) fn record(self, name: &str, record: &str) -> Self {
        let folder = self.path().join("vms").join(name);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("vm.json"), record).unwrap();
        self
    }

    /// Writes a VM's record anew, whole or not at all, as whoever runs the VM does.
    pub(crate) fn write_record(&self, name: &str, record: &str) {
        let folder = self.path().join("vms").join(name);
        let draft = folder.join("vm.json.new");
        std::fs::write(&draft, record).unwrap();
        std::fs::rename(draft, folder.join("vm.json")).unwrap();
    }

    /// With the record of a VM that mvmctl has started with that backend, and none of whose processes
    /// runs.
    pub(crate) fn own(self, name: &str, backend: &str, state: &str) -> Self {
        let record = serde_json::json!({
            "version": 1, "name": name, "backend": backend, "state": state,
            "image": "/images/web", "cpus": 1, "memory_mib": 128, "port": 52,
            "accelerator": "tcg", "boot_id": "", "processes": [],
        });
        self.record(name, &record.to_string())
    }

    pub(crate) fn path(&self) -> &Path {
        self.home.path()
    }

    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.path().join("vms").join(name).join("v.sock")
    }

    /// How many connections a VM's agent has taken.
    pub(crate) fn accepted(&self, name: &str) -> usize {
        self.agent(name).accepted()
    }

    /// A VM's agent.
    pub(crate) fn agent(&self, name: &str) -> &FakeAgent {
        let agent = self.agents.iter().find(|(agent, _)| agent == name);
        &agent.unwrap().1
    }

    /// The program with these arguments, split at spaces, and nothing of the machine's environment.
    pub(crate) fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mvmctl"));
        command
            .args(arguments.split_whitespace())
            .env_clear()
            .env("MVM_HOME", self.path())
            .env("MVM_CONFIG", self.path().join("mvmctl.toml"))
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn mvmctl(&self, arguments: &str) -> Ran {
        Ran::from(self.command(arguments).output().unwrap())
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let ran = Self {
            code: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        };
        assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
        ran
    }
}

impl Ran {
    /// The code has to be this.
    pub(crate) fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        self
    }

    /// Stderr has to contain this.
    pub(crate) fn says(self, expected: &str) -> Self {
        assert!(
            self.stderr.contains(expected),
            "{expected:?} not in {self:?}"
        );
        self
    }

    /// Stderr has to be empty.
    pub(crate) fn silently(self) -> Self {
        assert_eq!(self.stderr, "");
        self
    }

    /// Stdout as one JSON document.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Takes CONNECT and closes: a VMM in whose guest nobody listens.
pub(crate) fn nobody(peer: &mut Peer) {
    peer.expect_connect();
}

/// Takes connections and says nothing: a VM that is paused.
pub(crate) fn silent(peer: &mut Peer) {
    peer.until_closed();
}

/// An agent that gives each request this answer, with its number.
pub(crate) fn answering(answer: Value) -> impl Fn(&mut Peer) + Send + Sync + 'static {
    move |peer| {
        peer.shake_hands();
        while let Some(request) = peer.request() {
            let mut answer = answer.clone();
            answer["id"] = request["id"].clone();
            peer.answer(&answer);
        }
    }
}
