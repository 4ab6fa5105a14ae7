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

mod restoring;

pub use restoring::{RestoreSpec, Restored, restore, unwoken};

use crate::deadline::Deadline;
use crate::driver::{self, Driver};
use crate::error::Error;
use crate::launch::VmProcesses;
use crate::machine::remove_sockets;
use crate::snapshot::{self, Manifest, Snapshot, SnapshotDir, SnapshotPlace, Vmm};
use mvm_protocol::Timestamp;
use mvm_protocol::lifecycle::Token;
use mvm_registry::{
    Alive, Error as RegistryError, Home, Lock, Pause, Record, Recorded, Vm, VmName, VmState,
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
