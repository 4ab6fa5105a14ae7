//! The seam between a VM and the program that runs it.
//!
//! # Adding a backend
//!
//! One file with a [`Driver`], and one line in [`DRIVERS`]. What is common to all stays outside: the
//! folder, the lock, `vm.json`, waiting for the agent, ending processes that do not go by
//! themselves. An image of `mvmctl image build` has the kernel as the distribution ships it, which
//! is what QEMU takes; a VMM that wants it uncompressed (Firecracker on x86) unpacks it in its
//! driver's `launch`.

use crate::cloud_hypervisor::CloudHypervisor;
use crate::deadline::Deadline;
use crate::error::Error;
use crate::firecracker::Firecracker;
use crate::image::Image;
use crate::launch::VmProcesses;
use crate::local::Local;
use crate::locate::{Program, QEMU};
use crate::qemu::Qemu;
use crate::qemu::kvm::{self, Verdict};
use crate::snapshot::{Snapshot, SnapshotError, Vmm};
use mvm_registry::Alive;
use mvm_registry::{AskVmm, Home, Record, Unreachable, VmFolder};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// All backends, in the order in which `auto` tries them.
pub const DRIVERS: &[&dyn Driver] = &[&Firecracker, &CloudHypervisor, &Qemu, &Local];

/// What is to be started.
#[derive(Debug, Clone)]
pub struct Launch<'a> {
    /// `$MVM_HOME`, for what is remembered across VMs.
    pub home: &'a Home,
    /// The image, checked.
    pub image: Option<&'a Image>,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// The agent's program, where it runs on this machine.
    pub agent: Option<PathBuf>,
    /// A folder with `agent.json`, `integrations.d` and `probes.d`, where the agent runs on this
    /// machine.
    pub etc: Option<PathBuf>,
    /// How long the start may take.
    pub deadline: Deadline<'a>,
}

impl<'a> Launch<'a> {
    /// The image, without which there is no guest.
    pub(crate) fn need_image(&self, backend: &'static str) -> Result<&'a Image, Error> {
        self.image.ok_or_else(|| Error::Unsupported {
            backend,
            reason: "no image was given".into(),
            hint: "give --image DIR; `mvmctl image build --out DIR` makes one".into(),
        })
    }
}

/// What is to be started from a snapshot.
#[derive(Debug, Clone)]
pub struct Restore<'a> {
    /// The snapshot, checked.
    pub snapshot: &'a Snapshot,
    /// The image of the VM that it was taken of, checked.
    pub image: &'a Image,
    /// Whether other VMs may run from the same snapshot.
    pub clone: bool,
    /// How long the start may take.
    pub deadline: Deadline<'a>,
}

/// How one VMM starts and stops a VM.
pub trait Driver: Sync + fmt::Debug {
    /// By which it is known on the command line and in `vm.json`.
    fn name(&self) -> &'static str;

    /// Whether it runs a guest. `auto` takes no other: a test aid that runs programs on this machine
    /// must have been asked for.
    fn runs_a_guest(&self) -> bool;

    /// Whether it runs guests by KVM alone.
    fn needs_kvm(&self) -> bool {
        false
    }

    /// Whether it can start a VM here; an error says what is missing.
    fn check(&self) -> Result<(), Error>;

    /// Starts the processes. Returns when the VM runs; its agent need not be up yet. What was
    /// started is ended by the caller if this fails.
    fn launch(&self, launch: &Launch<'_>, processes: &mut VmProcesses) -> Result<(), Error>;

    /// Asks the VM to stop of its own accord and does not wait for it.
    fn request_stop(&self, folder: &VmFolder, processes: &[Alive]) -> Result<(), Error>;

    /// Whether the CPUs of a VM stand still that has been started. Its VMM is asked, by the deadline.
    fn is_paused(&self, _: &VmFolder, _: Deadline<'_>) -> Result<bool, Error> {
        Ok(false)
    }

    /// Whether it can have VMs stand still. Asked before anything is noted of it.
    fn check_pause(&self) -> Result<(), Error> {
        Err(no_pause(self.name()))
    }

    /// Has the CPUs of a running VM stand still. One that stands still already is left so.
    fn pause(&self, _: &VmFolder, _: Deadline<'_>) -> Result<(), Error> {
        Err(no_pause(self.name()))
    }

    /// Lets them run on. One that runs is left so.
    fn resume(&self, _: &VmFolder, _: Deadline<'_>) -> Result<(), Error> {
        Err(no_pause(self.name()))
    }

    /// Whether it can keep VMs as snapshots. Asked before the guest is told to sleep; where the
    /// answer is no, none of the following is called.
    fn check_snapshots(&self) -> Result<(), Error> {
        Err(no_snapshots(self.name()))
    }

    /// Whether the very VM that runs can be kept: the program that runs it may be another version than
    /// the one that is installed. Asked before its guest is told to sleep, too.
    fn check_running(&self, _: &VmProcesses) -> Result<(), Error> {
        Ok(())
    }

    /// Freezes a running VM and writes its state into a folder, which is there and empty. The guest
    /// is asleep and no connection to it is open. Whether it succeeds or not, [`Driver::run_on`]
    /// follows, or the VM's end.
    fn freeze(&self, _: &mut VmProcesses, _into: &Path, _: Deadline<'_>) -> Result<Vmm, Error> {
        Err(no_snapshots(self.name()))
    }

    /// Lets a VM run on that was frozen, or was to be and is now half-way. When it returns the
    /// guest may be dialled.
    fn run_on(&self, _: &mut VmProcesses, _: Deadline<'_>) -> Result<(), Error> {
        Err(no_snapshots(self.name()))
    }

    /// Why the guest of a VM that runs is not reached, where its VMM has to do with it. To be asked
    /// when it was not; the VMM is asked, by the deadline.
    fn unreachable(&self, _: &VmFolder, _: &[Alive], _: Deadline<'_>) -> Option<Unreachable> {
        None
    }

    /// Has a guest be reached again that its VMM may have cut off; whether this VMM does such a thing.
    /// It breaks the connections to the guest. Where it fails the VM may stand still:
    /// [`Driver::run_on`] has to follow.
    fn reconnect(&self, _: &mut VmProcesses, _: Deadline<'_>) -> Result<bool, Error> {
        Ok(false)
    }

    /// Whether the program that is installed can restore that snapshot, by its manifest: told before
    /// anything is started.
    fn check_snapshot(&self, _: &Home, _: &Snapshot) -> Result<(), Error> {
        Err(no_snapshots(self.name()))
    }

    /// Whether the CPUs of a VM that is restored from that snapshot are emulated.
    fn is_emulated(&self, _: &Snapshot) -> bool {
        false
    }

    /// Starts a VM where a snapshot was taken. When it returns the VM runs and its guest, which is
    /// asleep, may be dialled. What was started is ended by the caller if this fails.
    fn restore(&self, _: &Restore<'_>, _: &mut VmProcesses) -> Result<(), Error> {
        Err(no_snapshots(self.name()))
    }
}

/// All VMMs, for the registry to ask.
#[derive(Debug)]
pub struct Vmms;

impl AskVmm for Vmms {
    fn is_paused(
        &self,
        record: &Record,
        folder: &VmFolder,
        at_most: Duration,
    ) -> Result<bool, String> {
        by_name(&record.backend)
            .and_then(|driver| driver.is_paused(folder, Deadline::new(at_most, None)))
            .map_err(|error| error.to_string())
    }
}

/// Why the guest of a VM that mvmctl has started, and that runs, is not reached, where its VMM has to
/// do with it. It blocks for at most that long.
pub fn unreachable(record: &Record, folder: &VmFolder, at_most: Duration) -> Option<Unreachable> {
    let driver = by_name(&record.backend).ok()?;
    let alive = record.alive().ok()?;
    driver.unreachable(folder, &alive, Deadline::new(at_most, None))
}

fn no_pause(backend: &'static str) -> Error {
    Error::Unsupported {
        backend,
        reason: "it cannot have a VM stand still".into(),
        hint: "start the VM with a backend that can: `mvmctl vm start NAME --backend qemu`".into(),
    }
}

fn no_snapshots(backend: &'static str) -> Error {
    Error::Unsupported {
        backend,
        reason: "it has no snapshots".into(),
        hint: "start the VM with a backend that has: `mvmctl vm start NAME --backend qemu`".into(),
    }
}

/// The backend that restores a snapshot here, by its manifest.
pub fn of_snapshot(home: &Home, snapshot: &Snapshot) -> Result<&'static dyn Driver, Error> {
    let wrote = &snapshot.manifest.vmm.name;
    let Ok(driver) = by_name(wrote) else {
        return Err(SnapshotError::OtherVmm {
            folder: snapshot.folder.clone(),
            vmm: wrote.clone(),
            known: names().join(", "),
        }
        .into());
    };
    driver.check()?;
    driver.check_snapshot(home, snapshot)?;
    Ok(driver)
}

/// The one version of a VMM does not restore what the other wrote.
pub(crate) fn other_version(
    backend: &'static str,
    vmm: &str,
    (own, wrote): (&str, &str),
    program: &Program,
) -> Error {
    Error::Unsupported {
        backend,
        reason: format!("{vmm} {wrote} wrote the snapshot, and this is {vmm} {own}"),
        hint: format!(
            "restore it with the version that wrote it: {} names the program",
            program.variable
        ),
    }
}

/// The backend of that name.
pub fn by_name(name: &str) -> Result<&'static dyn Driver, Error> {
    DRIVERS
        .iter()
        .copied()
        .find(|driver| driver.name() == name)
        .ok_or_else(|| no_backend(name))
}

/// The first backend that runs a guest here; if there is none, what the last of them lacks, which is
/// the one that asks least of the machine.
///
/// That KVM can be opened does not say that it boots a guest. Where QEMU is there, which could do
/// without, the kernel that is to run is tried in it first.
pub fn auto(
    home: &Home,
    kernel: Option<&Path>,
    deadline: Deadline<'_>,
) -> Result<&'static dyn Driver, Error> {
    let mut lacking = no_backend("auto");
    for driver in DRIVERS.iter().filter(|driver| driver.runs_a_guest()) {
        match driver.check() {
            Ok(()) if driver.needs_kvm() => match kvm_fails(home, kernel, deadline)? {
                None => return Ok(*driver),
                Some(reason) => {
                    lacking = Error::Unsupported {
                        backend: driver.name(),
                        reason: format!("KVM boots no guest here: {reason}"),
                        hint: "`mvmctl doctor` says more; --backend qemu can do without".into(),
                    };
                }
            },
            Ok(()) => return Ok(*driver),
            Err(error) => lacking = error,
        }
    }
    Err(lacking)
}

/// Why KVM does not boot that kernel, as far as it can be tried.
fn kvm_fails(
    home: &Home,
    kernel: Option<&Path>,
    deadline: Deadline<'_>,
) -> Result<Option<String>, Error> {
    let (Some(kernel), Ok(()), Ok(qemu)) = (kernel, Qemu.check(), QEMU.find()) else {
        return Ok(None);
    };
    match kvm::verdict(home, &qemu, kernel, deadline)? {
        Verdict::Usable => Ok(None),
        Verdict::Unusable(reason) => Ok(Some(reason)),
    }
}

fn no_backend(name: &str) -> Error {
    Error::NoSuchBackend {
        name: name.to_owned(),
        known: names().join(", "),
    }
}

/// The names of all backends.
pub fn names() -> Vec<&'static str> {
    DRIVERS.iter().map(|driver| driver.name()).collect()
}
