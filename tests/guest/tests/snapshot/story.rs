//! What the stories have in common: a VM, and what is read of it.

use mvm_client::{Deadlines, Endpoint, Error as ClientError, Session};
use mvm_guest_tests::{Mvmctl, Parts, SOON, build_sleeper, eventually, remote};
use mvm_protocol::lifecycle::{Ready, SleepPrep, Token};
use mvm_vmm::build::Built;
use mvm_vmm::suspend;
use mvm_vmm::{Deadline, Home, Snapshot, VmName};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tempfile::TempDir;
use tokio::time::timeout;

/// A running VM `golden`, all of whose checks have run.
pub(crate) struct Story {
    pub(crate) mvmctl: Mvmctl,
    folder: TempDir,
}

impl Story {
    pub(crate) async fn new() -> Option<Self> {
        Self::with(build_sleeper).await
    }

    /// With a guest of another image, which is built in a folder.
    pub(crate) async fn with(build: impl FnOnce(&Parts, &Path) -> Built) -> Option<Self> {
        Self::run_by(Mvmctl::new(), build).await
    }

    /// With an `mvmctl` that has settings of its own.
    pub(crate) async fn run_by(
        mvmctl: Mvmctl,
        build: impl FnOnce(&Parts, &Path) -> Built,
    ) -> Option<Self> {
        Some(Self::of(&Parts::find()?, mvmctl, build).await)
    }

    /// With a guest made of those parts.
    pub(crate) async fn of(
        parts: &Parts,
        mvmctl: Mvmctl,
        build: impl FnOnce(&Parts, &Path) -> Built,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        build(parts, folder.path());
        let image = folder.path().join("image");
        let image = image.to_str().unwrap();
        let start = ["vm", "start", "golden", "--image", image, "--backend"];
        mvmctl.ok(&[&start[..], &["qemu", "--memory", "128"]].concat());
        let story = Self { mvmctl, folder };
        eventually("all checks have run once", async || {
            let inspect = story.json(&["vm", "inspect", "golden"]);
            let lists = ["integrations", "probes"].map(|list| inspect[list].as_array().unwrap());
            let all = lists
                .into_iter()
                .flatten()
                .all(|one| one["health"] == "unchecked" || !one["last_check"].is_null());
            all.then_some(())
        })
        .await;
        story
    }

    /// A place for a snapshot.
    pub(crate) fn place(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let run = self.mvmctl.ok(&[arguments, &["--json"]].concat());
        serde_json::from_str(&run.stdout).unwrap()
    }

    /// What a probe of a VM prints now.
    pub(crate) fn value(&self, vm: &str, probe: &str) -> String {
        let checked = self.json(&["vm", "check", vm, probe]);
        checked["probe"]["value"].as_str().unwrap().to_owned()
    }

    /// Lets checkpoints succeed, and begins the log anew.
    pub(crate) async fn mend(&self) {
        self.sh("golden", "rm -f /run/fail-* /run/log").await;
    }

    pub(crate) fn log(&self, vm: &str) -> Vec<String> {
        self.value(vm, "log").lines().map(str::to_owned).collect()
    }

    /// Lets the guest's random generator have its seed for a while. The kernel gives it a new one by
    /// itself when that is older than half the guest's uptime; what a test does with clones takes
    /// about a second, or some on a busy machine.
    pub(crate) async fn seed(&self) {
        eventually("the guest is old enough", async || {
            let status = self.json(&["vm", "status", "golden"]);
            (status["uptime_secs"].as_f64().unwrap() > 10.0).then_some(())
        })
        .await;
        self.sh("golden", "guest-probe reseed").await;
    }

    /// By how much a VM's clock is off at least, in milliseconds.
    pub(crate) fn clock_is_off(&self, vm: &str) -> i64 {
        let now = || {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            i64::try_from(since.as_millis()).unwrap()
        };
        let before = now();
        let guest: i64 = self.value(vm, "clock").parse().unwrap();
        (before - guest).max(guest - now()).max(0)
    }

    /// Runs a script in a VM whose image has the service for it, whatever its agent is doing.
    pub(crate) async fn sh(&self, vm: &str, script: &str) -> String {
        let socket = self.mvmctl.file(vm, "v.sock");
        timeout(SOON, remote::run(&socket, script)).await.unwrap()
    }

    /// A conversation with a VM's agent.
    pub(crate) async fn session(&self, vm: &str) -> Session {
        let endpoint = Endpoint::unix(self.mvmctl.file(vm, "v.sock"));
        let session = Session::connect(&endpoint, &Deadlines::default()).await;
        session.unwrap()
    }

    /// Asks `golden` to get ready.
    pub(crate) async fn sleep_prep(&self) -> Result<Ready, ClientError> {
        let mut session = self.session("golden").await;
        session.sleep_prep(SleepPrep::default()).await
    }

    pub(crate) fn random(&self, vm: &str) -> BTreeSet<String> {
        numbers(&self.value(vm, "random"))
    }

    /// Ends `golden` and keeps its state, of which it is not told.
    pub(crate) fn snapshot_by_hand(&self) -> Snapshot {
        let place = PathBuf::from(self.place("snapshot"));
        let (mut session, snapshot_dir) =
            suspend::take(&self.home(), &name("golden"), Some(&place)).unwrap();
        let pending = session.freeze(snapshot_dir, a_minute()).unwrap();
        session.stop(&place).unwrap();
        drop(session);
        let token = Token::new("none").unwrap();
        pending.publish(token, "none".into()).unwrap();
        Snapshot::open(&place).unwrap()
    }

    /// As its record has it.
    pub(crate) fn state(&self, vm: &str) -> String {
        let record = fs::read(self.mvmctl.file(vm, "vm.json")).unwrap();
        let record: Value = serde_json::from_slice(&record).unwrap();
        record["state"].as_str().unwrap().to_owned()
    }

    pub(crate) fn home(&self) -> Home {
        Home::at(self.mvmctl.home())
    }
}

/// For a step that takes seconds.
pub(crate) fn a_minute() -> Deadline<'static> {
    Deadline::new(Duration::from_mins(1), None)
}

/// What there is of a snapshot at that place, a part of it included.
pub(crate) fn left_at(place: &str) -> Vec<String> {
    let place = Path::new(place);
    let own = place.file_name().unwrap().to_str().unwrap();
    let entries = fs::read_dir(place.parent().unwrap()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names
        .filter(|name| name == own || name.starts_with(".partial"))
        .collect()
}

/// 300 numbers of 12 digits each.
pub(crate) fn numbers(text: &str) -> BTreeSet<String> {
    let digits: Vec<char> = text.chars().collect();
    let numbers: BTreeSet<String> = digits.chunks(12).map(String::from_iter).collect();
    assert_eq!(numbers.len(), 300, "{text}");
    numbers
}

pub(crate) fn name(text: &str) -> VmName {
    VmName::new(text).unwrap()
}

pub(crate) fn lines_of(lines: &[&str]) -> Vec<String> {
    lines.iter().map(|&line| line.to_owned()).collect()
}

/// The lines of the guest's log for each of the three integrations.
pub(crate) fn lines(what: &str, order: [&str; 3]) -> Vec<String> {
    order.map(|name| format!("{what} {name}")).into()
}
