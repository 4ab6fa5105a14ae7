//! A VM whose CPUs are made to stand still, and run on, its memory staying where it is.
//!
//! ```text
//!            pause()                                resume()
//! running ──────────► paused: vm.json, then the VMM ──────────► running: the VMM, then vm.json
//! ```
//!
//! `vm.json` says `paused` from before the CPUs stand still until they surely run: a VM that stands
//! still must not be dialled. If this program is killed in between, the VM runs and is told to be
//! paused, and [`resume`] makes that true as it does for any other: it asks the VMM what is so.
//!
//! The guest is not told. Its clocks may stand still with it, and nothing of it is on a disk: a VM that
//! is paused is lost if this machine goes down.

use crate::deadline::Deadline;
use crate::driver::{self, Driver};
use crate::error::Error;
use crate::launch::VmProcesses;
use mvm_registry::{
    Alive, Error as RegistryError, Home, Pause, Recorded, VmFolder, VmName, VmState,
};
use rustix::process::Signal;
use std::time::Duration;

/// How long it is waited between the record and the VMM. Whoever has read `running` just before dials
/// now, and a CONNECT to a VM that stands still can wedge its vsock backend for good. What a dial takes
/// on a busy machine.
const DIALLING: Duration = Duration::from_millis(100);

/// How long a VM that stands still may take to run on, so that it can be asked to stop.
const RUN_ON: Duration = Duration::from_secs(5);

/// Who has a VM stand still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// Whoever called `vm pause`: the fleet leaves it so.
    User,
    /// The fleet, which lets it run on when it is needed.
    Fleet,
}

/// Has a VM stand still that runs. If the VMM refuses, it runs on.
///
/// # Errors
///
/// Those of the VMM, and what is in the way: it does not run, or something is being done to it.
pub fn pause(home: &Home, name: &VmName, by: By, deadline: Deadline<'_>) -> Result<(), Error> {
    let folder = home.vm(name);
    // Looked at before the lock is made, which would stay for a VM that never was.
    folder.record()?;
    let _lock = home.lock(name)?;
    let record = folder.record()?;
    let driver = driver::by_name(&record.backend)?;
    match folder.vm().map_or(VmState::Stopped, |vm| vm.state) {
        VmState::Running => {}
        VmState::Ended(ending) => return Err(RegistryError::Ended(ending).into()),
        state => return Err(RegistryError::NotRunning { state }.into()),
    }
    let mut processes = VmProcesses::attach(folder.clone(), record);
    driver.check_pause()?;
    processes.set_paused(Some(by == By::Fleet))?;
    std::thread::sleep(DIALLING);
    let paused = driver.pause(&folder, deadline);
    if paused.is_err() {
        // It may stand still all the same; then it stays what the record says.
        driver.resume(&folder, deadline.anew(DIALLING * 50))?;
        processes.set_paused(None)?;
    }
    paused
}

/// Lets a VM run on that [`pause`] has made stand still.
///
/// # Errors
///
/// Those of the VMM, and what is in the way: it is not paused, or something is being done to it.
pub fn resume(home: &Home, name: &VmName, deadline: Deadline<'_>) -> Result<(), Error> {
    let folder = home.vm(name);
    folder.record()?;
    let _lock = home.lock(name)?;
    let record = folder.record()?;
    let driver = driver::by_name(&record.backend)?;
    match folder.vm().map_or(VmState::Stopped, |vm| vm.state) {
        VmState::Paused(_) if record.state == Recorded::Paused => {}
        VmState::Ended(ending) => return Err(RegistryError::Ended(ending).into()),
        VmState::Running if driver.is_paused(&folder, deadline)? => {
            let state = VmState::Paused(Pause::Other);
            return Err(RegistryError::NotRunning { state }.into());
        }
        VmState::Running => {
            return Err(Error::NotPaused {
                name: name.to_string(),
            });
        }
        state => return Err(RegistryError::NotRunning { state }.into()),
    }
    driver.resume(&folder, deadline)?;
    let mut processes = VmProcesses::attach(folder, record);
    processes.set_paused(None)
}

/// Lets a VM run on that stands still, whoever has it do so: the record knows of ours alone.
pub(crate) fn let_run(
    driver: &dyn Driver,
    folder: &VmFolder,
    main: &Alive,
    is_recorded: bool,
    at_most: Duration,
) -> Result<(), Error> {
    // First, since a VMM that stands still itself does not say whether its VM does.
    if main.is_stopped().is_ok_and(|is_stopped| is_stopped) {
        main.signal(Signal::CONT)
            .map_err(Error::io("continue the VMM of", folder.path()))?;
    }
    let deadline = || Deadline::new(RUN_ON.min(at_most), None);
    if is_recorded || driver.is_paused(folder, deadline())? {
        driver.resume(folder, deadline())?;
    }
    Ok(())
}
