//! Starting a VM from a snapshot.

use crate::console::ConsoleKeeper;
use crate::deadline::Deadline;
use crate::driver::{self, Restore};
use crate::emulated;
use crate::error::Error;
use crate::image::Image;
use crate::launch::VmProcesses;
use crate::machine::{end_all, remove_sockets, replace_stopped_vm};
use crate::making::under_lock;
use crate::snapshot::{self, Snapshot};
use mvm_registry::record::{self, Unwoken};
use mvm_registry::{Alive, Home, Label, Lock, Record, Recorded, VmFolder, VmName};
use std::path::{Path, PathBuf};

/// A VM that was started from a snapshot, and whose guest has not been told so yet. It stays if
/// this is dropped.
#[derive(Debug)]
pub struct Restored {
    processes: VmProcesses,
    _lock: Lock,
    /// Held until its guest has been told, if it is emulated.
    _turn: Option<Lock>,
    left_behind: Option<PathBuf>,
}

impl Restored {
    /// The VM's record.
    pub fn record(&self) -> &Record {
        self.processes.record()
    }

    /// The socket at which the agent is reached.
    pub fn socket(&self) -> PathBuf {
        self.processes.folder().file("v.sock")
    }

    /// The folder of the snapshot in which a VM of that name slept until now, if that is another one:
    /// it is kept, and no VM's any more.
    pub fn left_behind(&self) -> Option<&Path> {
        self.left_behind.as_deref()
    }

    /// Its guest has been told.
    pub fn woken(mut self) -> Result<(), Error> {
        self.processes.set_woken()
    }
}

/// A VM that was started from a snapshot, and whose guest may not have been told so, since whoever
/// started it was killed; none if there is no such thing to do. It may have been told, and what is
/// missing be the note of that. To be told as [`Record::unwoken`] says.
///
/// # Errors
///
/// Those of the record, and [`Locked`](mvm_registry::Error::Locked) if somebody is at it just now.
pub fn unwoken(home: &Home, name: &VmName) -> Result<Option<Restored>, Error> {
    let folder = home.vm(name);
    let is_unwoken = |record: &Record| {
        record.unwoken.is_some() && record.state == Recorded::Running && is_up(record)
    };
    if !is_unwoken(&folder.record()?) {
        return Ok(None);
    }
    let lock = home.lock(name)?;
    let record = folder.record()?;
    Ok(is_unwoken(&record).then(|| Restored {
        processes: VmProcesses::attach(folder, record),
        _lock: lock,
        _turn: None,
        left_behind: None,
    }))
}

fn is_up(record: &Record) -> bool {
    let alive = record.alive().unwrap_or_default();
    Alive::main(&alive).is_some()
}

/// What a VM is to be that is started from a snapshot.
#[derive(Debug, Default, Clone)]
pub struct RestoreSpec {
    /// Whether other VMs may run from the same snapshot.
    pub clone: bool,
    /// Whether its guest is to be handed a payload: noted until it has been told.
    pub payload: bool,
    /// Labels that are put on those that a VM of that name had.
    pub labels: Vec<Label>,
    /// Whether the fleet is to leave it alone.
    pub pinned: Option<bool>,
    /// What keeps its console within its limit; without it there is none.
    pub console_keeper: Option<ConsoleKeeper>,
}

/// Starts a VM from a snapshot. When it returns the VM runs, its guest still asleep, and may be
/// dialled. If it fails, what was started is ended, and a VM of that
/// name is as it was, or is not there if it was not.
pub fn restore(
    home: &Home,
    name: &VmName,
    snapshot: &Snapshot,
    spec: &RestoreSpec,
    deadline: Deadline<'_>,
) -> Result<Restored, Error> {
    let restored = under_lock(
        home,
        name,
        |_| false,
        |folder| restore_into(home, folder, snapshot, spec, deadline),
    );
    let ((processes, turn, left_behind), lock) = restored?;
    Ok(Restored {
        processes,
        _lock: lock,
        _turn: turn,
        left_behind,
    })
}

/// The same under the VM's lock: the VM's processes, the lock of its turn, and what is left behind.
fn restore_into(
    home: &Home,
    folder: &VmFolder,
    snapshot: &Snapshot,
    spec: &RestoreSpec,
    deadline: Deadline<'_>,
) -> Result<(VmProcesses, Option<Lock>, Option<PathBuf>), Error> {
    let name = folder.name();
    let last = folder.last_record()?;
    let manifest = &snapshot.manifest;
    let driver = driver::of_snapshot(home, snapshot)?;
    let image = Image::open(&manifest.image)?;
    let turn = if driver.is_emulated(snapshot) {
        emulated::turn(home, deadline)?
    } else {
        None
    };
    let record = Record {
        version: record::VERSION,
        name: name.to_string(),
        backend: driver.name().to_owned(),
        state: Recorded::Starting,
        since: None,
        started_at: None,
        image: Some(manifest.image.clone()),
        cpus: manifest.cpus,
        memory_mib: manifest.memory_mib,
        port: manifest.port,
        agent: None,
        etc: None,
        console_limit_mib: last.as_ref().and_then(|last| last.console_limit_mib),
        labels: last
            .as_ref()
            .map(|last| last.labels.clone())
            .unwrap_or_default()
            .with(&spec.labels)?,
        pinned: spec
            .pinned
            .or(last.as_ref().map(|last| last.pinned))
            .unwrap_or(false),
        paused_by_fleet: false,
        accelerator: manifest.vmm.accelerator.clone(),
        guest_cid: None,
        snapshot_dir: None,
        // Until it runs: if this program is killed, nobody boots it anew for nothing.
        suspended_in: last.as_ref().and_then(|last| last.suspended_in.clone()),
        unwoken: Some(Unwoken {
            snapshot: snapshot.folder.clone(),
            clone: spec.clone,
            payload: spec.payload,
        }),
        boot_id: String::new(),
        processes: Vec::new(),
    };
    if let Some(last) = &last {
        replace_stopped_vm(name, last, folder)?;
    }
    let left_behind = last
        .as_ref()
        .and_then(|last| last.suspended_in.clone())
        .filter(|slept_in| snapshot::is_another_folder(slept_in, &snapshot.folder));
    folder.create()?;
    remove_sockets(folder)?;
    let mut processes = VmProcesses::new(folder.clone(), record, spec.console_keeper)?;
    let started = driver.restore(
        &Restore {
            snapshot,
            image: &image,
            clone: spec.clone,
            deadline,
        },
        &mut processes,
    );
    let kept = match started {
        Ok(()) => processes.keep(),
        Err(error) => {
            let error = processes.explained(error);
            drop(processes);
            Err(error)
        }
    };
    match (kept, last) {
        (Ok(record), _) => {
            let processes = VmProcesses::attach(folder.clone(), record);
            Ok((processes, turn, left_behind))
        }
        (Err(error), Some(last)) => {
            end_all(name, &folder.record()?.alive()?)?;
            folder.save(&Record {
                processes: Vec::new(),
                ..last
            })?;
            Err(error)
        }
        (Err(error), None) => Err(error),
    }
}
