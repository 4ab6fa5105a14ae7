//! `vms/<name>/`: what is kept of a VM between two runs of `mvmctl`.
//!
//! ```text
//! $MVM_HOME/vms/<name>/   vm.json        how it was started, its state, its processes
//!                         v.sock         the hybrid vsock socket (the VMM's, or the agent's)
//!                         console.log    what the guest wrote to its console
//!                         vmm.log, …     what each process of it wrote
//! $MVM_HOME/locks/<name>  held while a VM is started, stopped or removed
//! ```
//!
//! Locks lie outside the VM's folder: a lock inside one that is being removed protects nothing.

use crate::error::Error;
use crate::process::{Alive, Process, boot_id};
use mvm_protocol::drop_in::Name;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

/// The version of `vm.json` that is written and read.
pub const VERSION: u32 = 1;

/// A VM's name: `[A-Za-z0-9._-]{1,64}`, and neither `.` nor `..`, which would be other folders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmName(Name);

impl VmName {
    /// The name, if it is of the allowed form.
    pub fn new(name: &str) -> Result<Self, Error> {
        Name::new(name)
            .filter(|_| !matches!(name, "." | ".."))
            .map(Self)
            .ok_or_else(|| Error::BadName(name.to_owned()))
    }
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The state in which `mvmctl` left a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Started; its agent may be dialled.
    Running,
    /// Kept as a snapshot. Never dialled.
    Asleep,
    /// Not running, or not yet up. Never dialled.
    Stopped,
}

/// What `vm.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`VERSION`].
    pub version: u32,
    /// The VM's name.
    pub name: String,
    /// Who runs it: `qemu`, `local`.
    pub backend: String,
    /// As mvmctl left it.
    pub state: State,
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
    /// What the backend wants known of how it runs the VM, such as `tcg` or `kvm`.
    pub accelerator: Option<String>,
    /// The folder in which its last snapshot was written before it had a name. If it is still there
    /// and nobody writes into it, that snapshot was broken off.
    #[serde(default, alias = "draft", skip_serializing_if = "Option::is_none")]
    pub snapshot_dir: Option<PathBuf>,
    /// The boot of this machine in which [`Self::processes`] were started.
    pub boot_id: String,
    /// Its processes, in the order in which they were started.
    pub processes: Vec<Process>,
}

/// A `vm.json` that others write for a VM that they start: to say its state, and where its agent is.
/// Without what only mvmctl writes.
#[derive(Debug, Deserialize)]
struct Others {
    state: Option<String>,
    version: Option<serde::de::IgnoredAny>,
    processes: Option<serde::de::IgnoredAny>,
}

/// `$MVM_HOME`.
#[derive(Debug, Clone)]
pub struct Home {
    root: PathBuf,
}

impl Home {
    /// That folder; nothing is made yet.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the VMs are.
    pub fn vms(&self) -> PathBuf {
        self.root.join("vms")
    }

    /// The folder of one VM, whether it is there or not.
    pub fn vm(&self, name: &VmName) -> VmFolder {
        VmFolder {
            path: self.vms().join(name.to_string()),
            name: name.to_string(),
            vms: self.vms(),
        }
    }

    /// Takes the lock on a VM, or says that another process has it. It is given back on drop, and
    /// by the kernel if this process dies.
    pub(crate) fn lock(&self, name: &VmName) -> Result<Lock, Error> {
        let locks = self.root.join("locks");
        make_private(&locks)?;
        let path = locks.join(name.to_string());
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(Error::io("open", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(Lock { _file: file }),
            Err(TryLockError::WouldBlock) => Err(Error::Locked {
                name: name.to_string(),
            }),
            Err(TryLockError::Error(error)) => Err(Error::io("lock", &path)(error)),
        }
    }
}

/// Held while a VM is started, stopped or removed.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

/// The folder of one VM.
#[derive(Debug, Clone)]
pub struct VmFolder {
    path: PathBuf,
    name: String,
    vms: PathBuf,
}

impl VmFolder {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// What the guest wrote to its console.
    pub fn console(&self) -> PathBuf {
        self.file("console.log")
    }

    /// Makes the folder, for its owner alone: who can open `v.sock` owns the guest.
    pub(crate) fn create(&self) -> Result<(), Error> {
        make_private(&self.path)
    }

    /// Reads `vm.json`; a folder without one is told apart from no folder.
    pub fn record(&self) -> Result<Record, Error> {
        let path = self.file("vm.json");
        let content = match std::fs::read(&path) {
            Ok(content) => content,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(if self.file("v.sock").exists() {
                    Error::NotOurs {
                        name: self.name.clone(),
                        may_run: true,
                    }
                } else {
                    Error::NoSuchVm {
                        name: self.name.clone(),
                        vms: self.vms.clone(),
                    }
                });
            }
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        let unusable = |reason: String| Error::Record {
            path: path.clone(),
            reason,
        };
        let record: Record = serde_json::from_slice(&content).map_err(|error| {
            match serde_json::from_slice(&content) {
                Ok(Others {
                    version: None,
                    processes: None,
                    state,
                }) => Error::NotOurs {
                    name: self.name.clone(),
                    may_run: state.is_none_or(|state| state == "running"),
                },
                _ => unusable(error.to_string()),
            }
        })?;
        if record.version == VERSION {
            Ok(record)
        } else {
            Err(unusable(format!(
                "it has version {}, this mvmctl knows version {VERSION}",
                record.version
            )))
        }
    }

    /// What `vm.json` says, or nothing if there is no such VM yet.
    pub(crate) fn last_record(&self) -> Result<Option<Record>, Error> {
        match self.record() {
            Ok(record) => Ok(Some(record)),
            Err(Error::NoSuchVm { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes `vm.json`: whole or not at all.
    pub(crate) fn save(&self, record: &Record) -> Result<(), Error> {
        let path = self.file("vm.json");
        let mut content = serde_json::to_vec_pretty(record)
            .map_err(|error| Error::io("write", &path)(error.into()))?;
        content.push(b'\n');
        write_whole(&path, &content)
    }
}

impl Record {
    /// Those of its processes that still run and are certainly its own.
    pub fn alive(&self) -> Result<Vec<Alive>, Error> {
        if self.boot_id != boot_id()? {
            return Ok(Vec::new());
        }
        let mut alive = Vec::new();
        for process in &self.processes {
            let opened = process
                .open()
                .map_err(Error::io("look at a process of", Path::new(&self.name)))?;
            alive.extend(opened);
        }
        Ok(alive)
    }
}

/// Writes a file so that a reader sees the old content or the new, never a part.
pub(crate) fn write_whole(path: &Path, content: &[u8]) -> Result<(), Error> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let write = || {
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(content)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    write().map_err(Error::io("write", path))
}

/// Makes a folder, and those above it, for their owner alone. One that is there is left as it is.
pub(crate) fn make_private(path: &Path) -> Result<(), Error> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(Error::io("make the folder", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    pub(crate) fn record() -> Record {
        Record {
            version: VERSION,
            name: "web".into(),
            backend: "qemu".into(),
            state: State::Running,
            image: Some("/images/web".into()),
            cpus: 1,
            memory_mib: 256,
            port: 52,
            agent: None,
            etc: None,
            accelerator: Some("tcg".into()),
            snapshot_dir: None,
            boot_id: boot_id().unwrap(),
            processes: Vec::new(),
        }
    }

    fn this_process() -> Process {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        Process {
            role: "vmm".into(),
            pid: std::process::id().try_into().unwrap(),
            start_ticks: fields.split(' ').nth(19).unwrap().parse().unwrap(),
        }
    }

    #[test]
    fn names_that_are_other_folders_are_refused() {
        for bad in ["", ".", "..", "a/b", "a b", "ü", &"x".repeat(65)] {
            assert!(matches!(VmName::new(bad), Err(Error::BadName(_))), "{bad}");
        }
        assert!(VmName::new("web-1_a.b").is_ok());
        assert!(VmName::new("...").is_ok());
    }

    #[test]
    fn what_was_saved_is_read_back_and_is_for_its_owner_alone() {
        let home = tempfile::tempdir().unwrap();
        let folder = Home::at(home.path()).vm(&VmName::new("web").unwrap());
        assert!(matches!(folder.record(), Err(Error::NoSuchVm { .. })));
        folder.create().unwrap();
        assert!(matches!(folder.record(), Err(Error::NoSuchVm { .. })));
        folder.save(&record()).unwrap();
        assert_eq!(folder.record().unwrap(), record());
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(folder.path()), 0o700);
        assert_eq!(mode(&folder.file("vm.json")), 0o600);
        let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(names.len(), 1, "no temporary file is left");
    }

    #[test]
    fn a_record_that_cannot_be_trusted_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let folder = Home::at(home.path()).vm(&VmName::new("web").unwrap());
        folder.create().unwrap();
        std::fs::write(folder.file("vm.json"), "{\"version\":").unwrap();
        assert!(matches!(folder.record(), Err(Error::Record { .. })));
        let newer = Record {
            version: 2,
            ..record()
        };
        folder.save(&newer).unwrap();
        let error = folder.record().unwrap_err().to_string();
        assert!(error.contains("it has version 2"), "{error}");
    }

    #[test]
    fn what_others_have_started_is_theirs() {
        let home = tempfile::tempdir().unwrap();
        let folder = Home::at(home.path()).vm(&VmName::new("web").unwrap());
        folder.create().unwrap();
        let may_run = || match folder.record() {
            Err(Error::NotOurs { may_run, .. }) => may_run,
            other => panic!("{other:?}"),
        };
        std::fs::write(folder.file("v.sock"), "").unwrap();
        assert!(may_run());
        for (record, expected) in [
            ("{}", true),
            (r#"{"state":"running","address":"vsock:7"}"#, true),
            (r#"{"state":"asleep"}"#, false),
            (r#"{"state":"stopped","owner":"nomad"}"#, false),
        ] {
            std::fs::write(folder.file("vm.json"), record).unwrap();
            assert_eq!(may_run(), expected, "{record}");
        }
        // Half of one of mvmctl's is not another's.
        std::fs::write(folder.file("vm.json"), r#"{"version":1,"state":"stopped"}"#).unwrap();
        assert!(matches!(folder.record(), Err(Error::Record { .. })));
    }

    #[test]
    fn processes_of_another_boot_are_not_ours() {
        let mut record = record();
        record.processes.push(this_process());
        assert_eq!(record.alive().unwrap().len(), 1);
        record.boot_id = "another".into();
        assert!(record.alive().unwrap().is_empty());
    }

    #[test]
    fn one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path());
        let web = VmName::new("web").unwrap();
        let held = home.lock(&web).unwrap();
        assert!(matches!(home.lock(&web), Err(Error::Locked { .. })));
        assert!(home.lock(&VmName::new("db").unwrap()).is_ok());
        drop(held);
        assert!(home.lock(&web).is_ok());
    }
}
