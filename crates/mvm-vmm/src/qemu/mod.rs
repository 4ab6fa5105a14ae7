//! QEMU, with vsock by vhost-device-vsock.
//!
//! Two processes a VM. vhost-device-vsock is first, since QEMU connects to it; it owns `v.sock`,
//! where a host program reaches the guest as it would with Firecracker. The kernel's own
//! vhost-vsock would do without the second process, but gives the guest an address in the host's
//! `AF_VSOCK`, which no file's permissions guard; it could be chosen in [`Qemu::launch`].

pub mod arguments;
pub mod kvm;
mod memory;
pub mod qmp;
mod snapshot;
pub mod vsock;

use crate::deadline::Deadline;
use crate::driver::{Driver, Launch, Restore};
use crate::error::{Error, QmpFault};
use crate::launch::VmProcesses;
use crate::locate::{QEMU, VHOST_DEVICE_VSOCK};
use crate::snapshot::{Snapshot, Vmm};
use arguments::{Accelerator, Arguments, Begin, Memory, QMP_SOCKET};
use kvm::Verdict;
use memory::GuestMemory;
use mvm_registry::Alive;
use mvm_registry::{Home, Role, VmFolder};
use qmp::Qmp;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

/// `--backend qemu`
#[derive(Debug)]
pub struct Qemu;

const BACKEND: &str = "qemu";

const ROLE: Role = Role::Vmm;

/// What QEMU says itself, in the VM's folder.
const LOG: &str = "vmm.log";

impl Driver for Qemu {
    fn name(&self) -> &'static str {
        BACKEND
    }

    fn runs_a_guest(&self) -> bool {
        true
    }

    fn check(&self) -> Result<(), Error> {
        QEMU.find()?;
        VHOST_DEVICE_VSOCK.find()?;
        Ok(())
    }

    fn launch(&self, launch: &Launch<'_>, processes: &mut VmProcesses) -> Result<(), Error> {
        let image = launch.need_image(BACKEND)?;
        let qemu = QEMU.find()?;
        let kernel = image.kernel();
        let accelerator = match kvm::verdict(launch.home, &qemu, &kernel, launch.deadline)? {
            Verdict::Usable => Accelerator::Kvm,
            Verdict::Unusable(_) => Accelerator::Tcg,
        };
        processes.set_accelerator(accelerator.name());
        vsock::start(processes, launch.deadline)?;
        // There until QEMU has it, which is when it answers.
        let memory = GuestMemory::new(launch.memory_mib)?;
        let arguments = Arguments {
            accelerator,
            cpus: launch.cpus,
            memory_mib: launch.memory_mib,
            memory: Memory::File(memory.path()),
            kernel: &kernel,
            initrd: image.initrd().as_deref(),
            rootfs: image.rootfs().as_deref(),
            cmdline: &image.manifest.cmdline,
            begin: Begin::Boot,
        }
        .to_vec();
        let mut command = Command::new(&qemu);
        processes.spawn_with_console(ROLE, "QEMU", Some(LOG), command.args(arguments))?;
        let folder = processes.folder().path().to_owned();
        processes.wait_for("QEMU's control socket", launch.deadline, || {
            Qmp::connect(&folder, QMP_SOCKET)
        })?;
        Ok(())
    }

    /// Both ways of asking that a PC has: the power button, and Ctrl-Alt-Delete, for which no guest
    /// needs a daemon, and only one whose kernel has `i8042` and `atkbd` as modules needs modules. A
    /// guest acts on what it has an ear for.
    fn request_stop(&self, folder: &VmFolder, _: &[Alive]) -> Result<(), Error> {
        let Some(mut qmp) = Qmp::connect(folder.path(), QMP_SOCKET)? else {
            return Err(Error::Qmp {
                doing: "ask the guest to power off".into(),
                reason: "QEMU does not listen there".into(),
                fault: QmpFault::Gone,
            });
        };
        qmp.execute("system_powerdown", &json!({}))?;
        let keys: Vec<_> = ["ctrl", "alt", "delete"]
            .iter()
            .map(|key| json!({"type": "qcode", "data": key}))
            .collect();
        qmp.execute("send-key", &json!({"keys": keys}))?;
        Ok(())
    }

    fn is_paused(&self, folder: &VmFolder, deadline: Deadline<'_>) -> Result<bool, Error> {
        let doing = "tell whether the VM is paused";
        let failed = |fault, reason: &str| Error::Qmp {
            doing: doing.into(),
            fault,
            reason: reason.into(),
        };
        let qmp = Qmp::connect_within(folder.path(), QMP_SOCKET, deadline.left())?;
        let mut qmp = qmp.ok_or_else(|| failed(QmpFault::Gone, "QEMU does not listen there"))?;
        let status = qmp.execute("query-status", &json!({}))?;
        let runs = status.get("running").and_then(Value::as_bool);
        runs.map(|runs| !runs)
            .ok_or_else(|| failed(QmpFault::NotQmp, "its answer does not say so"))
    }

    fn check_pause(&self) -> Result<(), Error> {
        Ok(())
    }

    fn pause(&self, folder: &VmFolder, deadline: Deadline<'_>) -> Result<(), Error> {
        tell(folder, deadline, "stop", "pause the VM")
    }

    fn resume(&self, folder: &VmFolder, deadline: Deadline<'_>) -> Result<(), Error> {
        tell(folder, deadline, "cont", "let the VM run on")
    }

    fn check_snapshots(&self) -> Result<(), Error> {
        Ok(())
    }

    fn freeze(
        &self,
        processes: &mut VmProcesses,
        into: &Path,
        deadline: Deadline<'_>,
    ) -> Result<Vmm, Error> {
        snapshot::freeze(processes, into, deadline)
    }

    fn run_on(&self, processes: &mut VmProcesses, deadline: Deadline<'_>) -> Result<(), Error> {
        snapshot::run_on(processes, deadline)
    }

    fn check_snapshot(&self, home: &Home, snapshot: &Snapshot) -> Result<(), Error> {
        snapshot::check_snapshot(home, snapshot)
    }

    fn is_emulated(&self, snapshot: &Snapshot) -> bool {
        snapshot::accelerator(snapshot) == Accelerator::Tcg
    }

    fn restore(&self, restore: &Restore<'_>, processes: &mut VmProcesses) -> Result<(), Error> {
        snapshot::restore(restore, processes)
    }
}

/// Has QEMU do one thing that takes no arguments.
fn tell(folder: &VmFolder, deadline: Deadline<'_>, what: &str, doing: &str) -> Result<(), Error> {
    let qmp = Qmp::connect_within(folder.path(), QMP_SOCKET, deadline.left())?;
    let mut qmp = qmp.ok_or_else(|| Error::Qmp {
        doing: doing.into(),
        fault: QmpFault::Gone,
        reason: "QEMU does not listen there".into(),
    })?;
    qmp.execute(what, &json!({})).map(drop)
}
