//! Taking a snapshot of a VM, and starting a VM from one, whichever backend runs it.
//!
//! ```text
//!            take()                 freeze()              stop()
//! running ──────────► (guest sleeps) ──────► asleep, frozen ──────► asleep
//!    ▲                                         │                      │ restore()
//!    └─────────────────────────────────────────┘◄─────────────────────┘
//!                       run_on()
//! ```
//!
//! `vm.json` says `asleep` from the moment at which the VM may be frozen until it surely runs: nobody
//! dials it meanwhile, whatever becomes of this program. The VM's lock is held throughout, by
//! [`SnapshotSession`] and [`Restored`].
//!
//! A program that is killed in between leaves all that as it is, but for the lock; [`mend`] then has
//! the VM run on.
//!
//! What the guest is told, and when, is the caller's part: this crate does not speak with agents.

use crate::console::ConsoleKeeper;
use crate::deadline::Deadline;
use crate::driver::{self, Driver, Restore};
use crate::emulated;
use crate::error::Error;
use crate::image::Image;
use crate::launch::VmProcesses;
use crate::machine::{end_all, forget, remove_sockets, replace_stopped_vm};
use crate::snapshot::{self, Manifest, Snapshot, SnapshotDir, SnapshotPlace, Vmm};
use mvm_protocol::Timestamp;
use mvm_protocol::lifecycle::Token;
use mvm_registry::{
    Alive, Error as RegistryError, Home, Label, Lock, Pause, Record, Recorded, Vm, VmName, VmState,
    record::{self, Unwoken},
};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// How long a VMM that is dying may take to be gone.
const DYING: Duration = Duration::from_secs(1);

/// How long a VMM may take to say whether its VM is paused.
const ASKED: Duration = Duration::from_secs(10);

/// A VM of which a snapshot is being taken.
#[derive(Debug)]
pub struct SnapshotSession {
    driver: &'static dyn Driver,
    processes: VmProcesses,
    image: PathBuf,
    _lock: Lock,
    /// The folder of a snapshot that could not be written.
    given_up: Option<SnapshotDir>,
}

/// A VM's state, written and without a name yet. It is gone if this is dropped.
#[derive(Debug)]
pub struct PendingSnapshot {
    snapshot_dir: SnapshotDir,
    record: Record,
    image: PathBuf,
    vmm: Vmm,
    created: Timestamp,
}

/// Begins a snapshot of a running VM; the VM is not touched yet. `to` is the folder that it will be
/// in, which must not be there; by default it is one of the VM's own, named by the time.
pub fn take(
    home: &Home,
    name: &VmName,
    to: Option<&Path>,
) -> Result<(SnapshotSession, SnapshotDir), Error> {
    let folder = home.vm(name);
    // Looked at before the lock is made, which would stay for a VM that never was.
    folder.record()?;
    let lock = home.lock(name)?;
    let record = folder.record()?;
    let driver = driver::by_name(&record.backend)?;
    driver.check_snapshots()?;
    let vm = folder.vm();
    let state = vm.as_ref().map_or(VmState::Stopped, |vm| vm.state.clone());
    match state {
        VmState::Running => {
            // One that cannot be reached could not be told.
            if let Some(Err(unreachable)) = vm.as_ref().map(Vm::endpoint) {
                return Err(unreachable.into());
            }
            if driver.is_paused(&folder, Deadline::new(ASKED, None))? {
                let state = VmState::Paused(Pause::Other);
                return Err(RegistryError::NotRunning { state }.into());
            }
        }
        VmState::Ended(ending) => return Err(RegistryError::Ended(ending).into()),
        state => return Err(RegistryError::NotRunning { state }.into()),
    }
    let Some(image) = record.image.clone() else {
        return Err(Error::Unsupported {
            backend: driver.name(),
            reason: "the VM has no image".into(),
            hint: "start it with --image DIR".into(),
        });
    };
    let mut processes = VmProcesses::attach(folder, record);
    driver.check_running(&processes)?;
    let own = || processes.folder().file("snapshots").join(stamp(now()));
    let place = SnapshotPlace::beside(&to.map_or_else(own, Path::to_owned))?;
    // First: nobody would know of a folder that this program made right before it was killed.
    processes.set_snapshot_dir(Some(place.folder()))?;
    let snapshot_dir = place.make(home)?;
    let session = SnapshotSession {
        driver,
        processes,
        image,
        _lock: lock,
        given_up: None,
    };
    Ok((session, snapshot_dir))
}

/// Whether a snapshot of the VM was broken off, going by its record alone: its program was killed,
/// or is at it just now, which only the VM's lock tells. The VM may be frozen, or its guest asleep.
pub fn may_be_broken_off(record: &Record) -> Result<bool, Error> {
    let runs = Alive::main(&record.alive()?).is_some();
    let frozen = record.state == Recorded::Asleep;
    let left = record
        .snapshot_dir
        .as_deref()
        .is_some_and(snapshot::is_left);
    Ok(runs && (frozen || left))
}

/// Mends what a snapshot that was broken off has left: lets the VM run on, and removes what had been
/// written. `None` if there is nothing to mend. The guest is to be woken then, as long as what is
/// returned holds the VM.
pub fn mend(
    home: &Home,
    name: &VmName,
    deadline: Deadline<'_>,
) -> Result<Option<SnapshotSession>, Error> {
    let folder = home.vm(name);
    if !may_be_broken_off(&folder.record()?)? {
        return Ok(None);
    }
    let lock = home.lock(name)?;
    let record = folder.record()?;
    if !may_be_broken_off(&record)? {
        return Ok(None);
    }
    let frozen = record.state == Recorded::Asleep;
    let snapshot_dir = record.snapshot_dir.clone();
    let mut session = SnapshotSession {
        driver: driver::by_name(&record.backend)?,
        image: record.image.clone().unwrap_or_default(),
        processes: VmProcesses::attach(folder, record),
        _lock: lock,
        given_up: None,
    };
    if frozen {
        session.run_on(deadline)?;
    }
    // Only now: until the VM runs on the VMM may be writing there.
    if let Some(snapshot_dir) = snapshot_dir {
        snapshot::discard(&snapshot_dir)?;
        session.processes.set_snapshot_dir(None)?;
    }
    Ok(Some(session))
}

/// Has the guest of a VM that runs be reached again that its VMM may have cut off. `false` if this VMM
/// does no such thing, after which nothing has changed. A program that is killed in between leaves it
/// as a snapshot that was broken off: [`mend`] has it run on.
pub fn reconnect(home: &Home, name: &VmName, deadline: Deadline<'_>) -> Result<bool, Error> {
    let folder = home.vm(name);
    folder.record()?;
    let lock = home.lock(name)?;
    let record = folder.record()?;
    let state = folder.vm().map_or(VmState::Stopped, |vm| vm.state);
    if state != VmState::Running {
        return Err(RegistryError::NotRunning { state }.into());
    }
    let mut session = SnapshotSession {
        driver: driver::by_name(&record.backend)?,
        image: record.image.clone().unwrap_or_default(),
        processes: VmProcesses::attach(folder, record),
        _lock: lock,
        given_up: None,
    };
    session.processes.set_state(Recorded::Asleep)?;
    match session.driver.reconnect(&mut session.processes, deadline) {
        Ok(did) => {
            session.processes.set_state(Recorded::Running)?;
            Ok(did)
        }
        Err(error) => {
            // That it stands still would be worse than that it is not reached.
            session.run_on(deadline)?;
            Err(error)
        }
    }
}

impl SnapshotSession {
    /// The VM's record.
    pub fn record(&self) -> &Record {
        self.processes.record()
    }

    /// The socket at which the agent is reached while the VM is not frozen.
    pub fn socket(&self) -> PathBuf {
        self.processes.folder().file("v.sock")
    }

    /// Freezes the VM and has its state written. The guest has to be asleep, and the connection to
    /// it closed. If this fails the VM may be frozen all the same: [`SnapshotSession::run_on`] has to follow.
    pub fn freeze(
        &mut self,
        snapshot_dir: SnapshotDir,
        deadline: Deadline<'_>,
    ) -> Result<PendingSnapshot, Error> {
        self.processes.set_state(Recorded::Asleep)?;
        let created = now();
        let frozen = self
            .driver
            .freeze(&mut self.processes, snapshot_dir.folder(), deadline);
        let vmm = match frozen {
            Ok(vmm) => vmm,
            Err(error) => {
                self.given_up = Some(snapshot_dir);
                return Err(error);
            }
        };
        Ok(PendingSnapshot {
            snapshot_dir,
            record: self.processes.record().clone(),
            image: self.image.clone(),
            vmm,
            created,
        })
    }

    /// Lets the VM run on. When it returns the guest may be dialled.
    pub fn run_on(&mut self, deadline: Deadline<'_>) -> Result<(), Error> {
        let ran = self.driver.run_on(&mut self.processes, deadline);
        // Only now: until the VM runs on the VMM may be writing there, and leave what is removed.
        self.given_up = None;
        if ran.is_ok() {
            self.processes.set_suspended(None)?;
            self.processes.set_state(Recorded::Running)?;
        } else if self.processes.record().has_vmm_ended(DYING)? {
            // As any that ended by itself: told as what it is, and cleaned up by the next stop or start.
            self.processes.set_suspended(None)?;
            self.processes.set_state(Recorded::Running)?;
            if let Some(vm) = self.processes.folder().vm() {
                vm.endpoint()?;
            }
        }
        // Otherwise it is frozen still, and can be let go of or ended by hand.
        ran
    }

    /// Ends the frozen VM, which lives on in that snapshot of it alone.
    pub fn stop(&mut self, snapshot: &Path) -> Result<(), Error> {
        // Before its end: if this program is killed in the middle, the VM has not died.
        self.processes.set_suspended(Some(snapshot))?;
        self.end()
    }

    fn end(&mut self) -> Result<(), Error> {
        let processes = self.processes.record().processes.clone();
        for process in processes.iter().rev() {
            self.processes.terminate(process.role)?;
        }
        remove_sockets(self.processes.folder())
    }
}

impl PendingSnapshot {
    /// Has all of it on the disk, and gives the folder its name.
    pub fn publish(self, token: Token, agent_version: String) -> Result<Snapshot, Error> {
        let record = self.record;
        self.snapshot_dir.publish(Manifest {
            version: snapshot::VERSION,
            vm: record.name,
            vmm: self.vmm,
            image: self.image,
            cpus: record.cpus,
            memory_mib: record.memory_mib,
            port: record.port,
            token,
            agent_version,
            created: self.created,
            files: Vec::new(),
        })
    }
}

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
/// Those of the record, and [`RegistryError::Locked`] if somebody is at it just now.
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
    let lock = home.lock(name)?;
    let folder = home.vm(name);
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
        replace_stopped_vm(name, last, &folder)?;
    }
    let is_new = last.is_none() && !folder.path().exists();
    let left_behind = last
        .as_ref()
        .and_then(|last| last.suspended_in.clone())
        .filter(|slept_in| snapshot::is_another_folder(slept_in, &snapshot.folder));
    folder.create()?;
    remove_sockets(&folder)?;
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
    match started {
        Ok(()) => {
            let record = processes.keep()?;
            Ok(Restored {
                processes: VmProcesses::attach(folder, record),
                _lock: lock,
                _turn: turn,
                left_behind,
            })
        }
        Err(error) => {
            let error = processes.explained(error);
            drop(processes);
            if let Some(last) = last {
                end_all(name, &folder.record()?.alive()?)?;
                folder.save(&Record {
                    processes: Vec::new(),
                    ..last
                })?;
            } else if is_new {
                forget(&folder)?;
            }
            Err(error)
        }
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// A time as a folder's name: in order, and without colons, which paths in lists do not take.
fn stamp(time: Timestamp) -> String {
    time.to_string().replace(':', "-")
}
