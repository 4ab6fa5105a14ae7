//! `vm.json`: what is kept of a VM between two runs of `mvmctl`, and what others write of theirs.
//!
//! This is the one reader and the one writer. What `mvmctl` has written is read strictly: a field
//! that is not known may be one on which everything depends. What others write (to say where an agent
//! is, or that its VM sleeps) is read leniently, and never written.

use crate::files::{open_regular, read_all, write_whole};
use crate::labels::Labels;
use crate::process::{Alive, Process, boot_id};
use crate::trust::{self, ANYBODY_ELSE, THE_WORLD};
use crate::{Error, VmFolder};
use mvm_protocol::Timestamp;
use mvm_protocol::object::{Object, Problem};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The vsock CID of a guest whose record names no other: the first that a guest can have.
pub const GUEST_CID: u32 = 3;

/// The version of `vm.json` that is written and read.
pub const VERSION: u32 = 1;

/// The largest `vm.json` that is read, in bytes.
const MAX_RECORD: u64 = 1 << 20;

/// The state in which `mvmctl` left a VM. What it is now, [`crate::state`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recorded {
    /// It is being started: whoever does holds the VM's lock.
    Starting,
    /// Started.
    Running,
    /// It was asked to stop.
    Stopping,
    /// Its CPUs are made to stand still, its memory stays.
    Paused,
    /// Frozen, for its snapshot, or kept as one.
    Asleep,
    /// Stopped, or never up.
    Stopped,
}

/// What `vm.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// [`VERSION`].
    pub version: u32,
    /// The VM's name.
    pub name: String,
    /// Who runs it: `qemu`, `local`.
    pub backend: String,
    /// As mvmctl left it.
    pub state: Recorded,
    /// Since when. [`VmFolder::save`] sets it when the state becomes another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// When it was started or cloned; a sleep and a wake do not change it. [`VmFolder::save`] sets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// The image folder that it was started from; none with `local`.
    pub image: Option<PathBuf>,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// The vsock port of its agent.
    pub port: u32,
    /// The agent's program, where it runs on this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<PathBuf>,
    /// Its settings and drop-ins, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etc: Option<PathBuf>,
    /// How much of its consoles is kept, in MiB, if it is not the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console_limit_mib: Option<u32>,
    /// By which it is grouped and chosen.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Whether the fleet is to leave it alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pinned: bool,
    /// Whether it was the fleet that paused it, where it is paused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused_by_fleet: bool,
    /// What the backend wants known of how it runs the VM, such as `tcg` or `kvm`.
    pub accelerator: Option<String>,
    /// The guest's vsock address, where it is not the one that most guests have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_cid: Option<u32>,
    /// The folder in which its last snapshot was written before it had a name. If it is still there
    /// and nobody writes into it, that snapshot was broken off.
    #[serde(default, alias = "draft", skip_serializing_if = "Option::is_none")]
    pub snapshot_dir: Option<PathBuf>,
    /// The snapshot in which it is asleep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspended_in: Option<PathBuf>,
    /// The snapshot that it was started from, as long as its guest has not been told: whoever started
    /// it may be killed in between, and until it is told a clone is its twin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unwoken: Option<Unwoken>,
    /// The boot of this machine in which [`Self::processes`] were started.
    pub boot_id: String,
    /// Its processes, in the order in which they were started.
    pub processes: Vec<Process>,
}

/// What a restored guest is still to be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unwoken {
    /// The snapshot's folder, whose manifest has the token.
    pub snapshot: PathBuf,
    /// Whether it is to have an identity of its own.
    pub clone: bool,
    /// Whether it is to be handed a payload, which is kept nowhere.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub payload: bool,
}

impl Record {
    /// Those of its processes that still run and are certainly its own.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn alive(&self) -> Result<Vec<Alive>, Error> {
        let failed = || Error::io("look at a process of", Path::new(&self.name));
        if self.is_of_another_boot().map_err(failed())? {
            return Ok(Vec::new());
        }
        let mut alive = Vec::new();
        for process in &self.processes {
            alive.extend(process.open().map_err(failed())?);
        }
        Ok(alive)
    }

    /// Whether its VMM is gone, or will be within that time: its connections break before it ends, since
    /// the kernel takes the guest's memory back in between.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn has_vmm_ended(&self, within: Duration) -> Result<bool, Error> {
        let ended = Alive::main(&self.alive()?).map_or(Ok(true), |vmm| vmm.wait(within));
        ended.map_err(Error::io("wait for a process of", Path::new(&self.name)))
    }

    /// The same with its times, after what was written before.
    fn dated(self, last: Option<&Self>, now: Timestamp) -> Self {
        let is_same = last.filter(|last| last.state == self.state);
        let since = is_same.map_or(Some(now), |last| last.since);
        let goes_on = last.filter(|last| {
            // A start is a new life, but for that of one that slept.
            self.state != Recorded::Starting
                || matches!(last.state, Recorded::Starting | Recorded::Asleep)
        });
        let started_at = goes_on.map_or(Some(now), |last| last.started_at);
        Self {
            since,
            started_at,
            ..self
        }
    }

    /// Whether the machine was booted anew since its processes were started.
    pub(crate) fn is_of_another_boot(&self) -> io::Result<bool> {
        Ok(self.boot_id != boot_id()?)
    }
}

/// What is read of a `vm.json` that others have written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Foreign {
    pub(crate) backend: Option<String>,
    pub(crate) state: Option<String>,
    /// Where the agent is reached, if not at `v.sock`: `vsock:CID`, or `unix:PATH`.
    pub(crate) address: Option<String>,
    /// The agent's port in the guest, if not 52.
    pub(crate) port: Option<u32>,
    labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    pub(crate) pinned: bool,
}

impl Foreign {
    pub(crate) fn labels(&mut self) -> Labels {
        Labels::lenient(self.labels.take().unwrap_or_default())
    }
}

/// What there is in a VM's folder.
#[derive(Debug)]
pub(crate) enum Found {
    /// Neither a record nor a socket.
    Nothing,
    /// A socket alone.
    Socket,
    /// What `mvmctl` has written.
    Ours(Box<Record>),
    /// What others have written.
    Foreign(Box<Foreign>),
}

impl VmFolder {
    /// Reads `vm.json`, whoever wrote it.
    ///
    /// # Errors
    ///
    /// [`Error::PermissionDenied`], [`Error::BadRecord`], [`Error::NotTrusted`].
    pub(crate) fn look(&self) -> Result<Found, Error> {
        let path = self.file("vm.json");
        let bad = |problem: String| Error::BadRecord {
            path: path.clone(),
            problem,
        };
        let read = || -> io::Result<_> {
            let file = open_regular(&path)?;
            Ok((file.metadata()?, read_all(&file, MAX_RECORD)?))
        };
        let (metadata, content) = match read() {
            Ok(read) => read,
            Err(error) => {
                return match error.kind() {
                    ErrorKind::NotFound | ErrorKind::NotADirectory => {
                        Ok(match self.socket().symlink_metadata() {
                            Ok(_) => Found::Socket,
                            Err(_) => Found::Nothing,
                        })
                    }
                    ErrorKind::PermissionDenied => Err(Error::PermissionDenied { path }),
                    _ => Err(bad(error.to_string())),
                };
            }
        };
        // Before it is parsed: it may be half of one, and even what is wrong with it is another's word.
        trust::check(&path, &metadata, THE_WORLD)?;
        let found = parse(&content).map_err(bad)?;
        if matches!(found, Found::Ours(_)) {
            trust::check(&path, &metadata, ANYBODY_ELSE)?;
            self.check_trust()?;
        }
        Ok(found)
    }

    /// What `mvmctl` has written of the VM.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchVm`], also of a folder with nothing of a VM in it; [`Error::NotOurs`] if
    /// something else runs it; those of reading.
    pub fn record(&self) -> Result<Record, Error> {
        match self.look()? {
            Found::Ours(record) => Ok(*record),
            Found::Socket | Found::Foreign(_) => Err(Error::not_ours(self.socket())),
            Found::Nothing => Err(Error::NoSuchVm {
                name: self.name().to_string(),
                vms: self.path().parent().unwrap_or(self.path()).to_owned(),
                nearest: None,
                unreadable: Vec::new(),
            }),
        }
    }

    /// The same, or nothing if there is no such VM yet.
    ///
    /// # Errors
    ///
    /// Those of [`VmFolder::record`] but [`Error::NoSuchVm`].
    pub fn last_record(&self) -> Result<Option<Record>, Error> {
        match self.record() {
            Ok(record) => Ok(Some(record)),
            Err(Error::NoSuchVm { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes `vm.json`: whole or not at all. Since when the VM is what the record says, and when it
    /// was started, is told by what is written already and the time, whatever the record has.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn save(&self, record: &Record) -> Result<(), Error> {
        let path = self.file("vm.json");
        let last = self.last_record().ok().flatten();
        let dated = record.clone().dated(last.as_ref(), now());
        let mut content = serde_json::to_vec_pretty(&dated)
            .map_err(|error| Error::io("write", &path)(error.into()))?;
        content.push(b'\n');
        write_whole(&path, &content)
    }
}

/// This host's time.
fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let ms = since.unwrap_or_default().as_millis();
    Timestamp(i64::try_from(ms).unwrap_or(i64::MAX))
}

fn told(problem: &Problem) -> String {
    format!("line {}: {}", problem.line, problem.message)
}

/// Half a record of mvmctl's is not another's: it says its version, or has processes.
fn parse(content: &[u8]) -> Result<Found, String> {
    let object = || Object::parse(content).map_err(|problem| told(&problem));
    let mut probe = object()?;
    let mut has = |field| probe.take::<IgnoredAny>(field).map(|value| value.is_some());
    let ours = has("version").unwrap_or(true) || has("processes").unwrap_or(true);
    if !ours {
        let foreign = serde_json::from_slice(content).map_err(|error| error.to_string())?;
        return Ok(Found::Foreign(foreign));
    }
    // The version is looked at before all else: in another version other fields may be known.
    match object()?
        .take("version")
        .map_err(|problem| told(&problem))?
    {
        Some(VERSION) => {}
        Some(other) => {
            return Err(format!(
                "it has version {other}, this mvmctl knows version {VERSION}"
            ));
        }
        None => return Err("it says no version".into()),
    }
    let record = object()?.into_shape().map_err(|problem| told(&problem))?;
    Ok(Found::Ours(Box::new(record)))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{Home, VmName};
    use std::os::unix::fs::PermissionsExt as _;

    pub(crate) fn record() -> Record {
        Record {
            version: VERSION,
            name: "web".into(),
            backend: "qemu".into(),
            state: Recorded::Running,
            since: None,
            started_at: None,
            image: Some("/images/web".into()),
            cpus: 1,
            memory_mib: 256,
            port: 52,
            agent: None,
            etc: None,
            console_limit_mib: None,
            labels: Labels::default(),
            pinned: false,
            paused_by_fleet: false,
            accelerator: Some("tcg".into()),
            guest_cid: None,
            snapshot_dir: None,
            suspended_in: None,
            unwoken: None,
            boot_id: boot_id().unwrap(),
            processes: Vec::new(),
        }
    }

    fn folder() -> (tempfile::TempDir, VmFolder) {
        let home = tempfile::tempdir().unwrap();
        let folder = Home::at(home.path()).vm(&VmName::new("web").unwrap());
        (home, folder)
    }

    #[test]
    fn what_was_saved_is_read_back_and_is_for_its_owner_alone() {
        let (_home, folder) = folder();
        assert!(matches!(folder.record(), Err(Error::NoSuchVm { .. })));
        folder.create().unwrap();
        assert!(matches!(folder.record(), Err(Error::NoSuchVm { .. })));
        let saved = Record {
            labels: Labels::default()
                .with(&["pool=web".parse().unwrap()])
                .unwrap(),
            pinned: true,
            suspended_in: Some("/s".into()),
            // As earlier ones wrote it, which did not say whether there was a payload.
            unwoken: serde_json::from_str(r#"{"snapshot":"/s","clone":true}"#).unwrap(),
            ..record()
        };
        folder.save(&saved).unwrap();
        let read = folder.record().unwrap();
        assert!(read.since.is_some() && read.since == read.started_at);
        let saved = Record {
            since: read.since,
            started_at: read.started_at,
            ..saved
        };
        assert_eq!(read, saved);
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(folder.path()), 0o700);
        assert_eq!(mode(&folder.file("vm.json")), 0o600);
        let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(names.len(), 1, "no temporary file is left");
    }

    #[test]
    fn times_are_those_of_changes_and_a_sleep_ends_no_life() {
        use Recorded::{Asleep, Running, Starting, Stopped, Stopping};
        let mut last: Option<Record> = None;
        for (second, state, since, started_at) in [
            (1, Starting, 1, 1),
            (2, Starting, 1, 1),
            (3, Running, 3, 1),
            (4, Running, 3, 1),
            (5, Asleep, 5, 1),
            (6, Starting, 6, 1),
            (7, Running, 7, 1),
            (8, Stopping, 8, 1),
            (9, Stopped, 9, 1),
            (10, Starting, 10, 10),
            // It was killed, and is started anew.
            (11, Running, 11, 10),
            (12, Starting, 12, 12),
        ] {
            let dated = Record { state, ..record() }.dated(last.as_ref(), Timestamp(second));
            let expected = (Some(Timestamp(since)), Some(Timestamp(started_at)));
            assert_eq!((dated.since, dated.started_at), expected, "second {second}");
            last = Some(dated);
        }
    }

    #[test]
    fn a_record_that_cannot_be_trusted_is_refused() {
        let (_home, folder) = folder();
        folder.create().unwrap();
        let sound = serde_json::to_string(&record()).unwrap();
        for (content, words) in [
            ("{\"version\":".to_owned(), "EOF"),
            (
                sound.replace("\"version\":1", "\"version\":2"),
                "it has version 2",
            ),
            (sound.replace("\"running\"", "\"hovering\""), "hovering"),
            (
                sound.replace("\"cpus\"", "\"gpus\""),
                "unknown field `gpus`",
            ),
            (
                sound.replace("\"cpus\":1", "\"cpus\":1,\"cpus\":2"),
                "given twice",
            ),
            // Half of one of mvmctl's is not another's.
            (
                r#"{"version":1,"state":"stopped"}"#.to_owned(),
                "missing field",
            ),
            (r#"{"processes":[]}"#.to_owned(), "no version"),
            ("x".repeat(2 << 20), "more than 1048576 bytes"),
        ] {
            std::fs::write(folder.file("vm.json"), &content).unwrap();
            let error = folder.record().unwrap_err();
            assert!(matches!(error, Error::BadRecord { .. }), "{error:?}");
            assert!(error.to_string().contains(words), "{words}: {error}");
        }
    }

    #[test]
    fn what_others_have_started_is_theirs() {
        let (_home, folder) = folder();
        folder.create().unwrap();
        let is_theirs = || matches!(folder.record(), Err(Error::NotOurs { .. }));
        std::fs::write(folder.file("v.sock"), "").unwrap();
        assert!(is_theirs());
        for record in ["{}", r#"{"state":"running","owner":"nomad"}"#] {
            std::fs::write(folder.file("vm.json"), record).unwrap();
            assert!(is_theirs(), "{record}");
        }
    }

    #[test]
    fn processes_of_another_boot_are_not_ours() {
        let own = crate::process::ProcessId::own().unwrap();
        let mut record = record();
        record.processes.push(Process {
            role: crate::Role::Vmm,
            pid: own.pid,
            start_ticks: own.start_ticks,
        });
        assert_eq!(record.alive().unwrap().len(), 1);
        record.boot_id = "another".into();
        assert!(record.alive().unwrap().is_empty());
    }
}
