//! Firecracker.
//!
//! ```text
//! launch    /machine-config, /boot-source, /drives/…, /vsock, /entropy ─► InstanceStart
//! freeze    /version, and again ─► /vm Paused ─► /snapshot/create, of what is resident or all
//! run_on    / ─► if it is paused: (/snapshot/create, refused) ─► /vm Resumed
//! restore   in a fresh process: /version ─► /snapshot/load, resumed
//! ```
//!
//! One process a VM, started in the VM's folder with all its paths relative to that, `v.sock` as it
//! is kept in a snapshot too: so a clone has its own without being told, which versions before 1.16
//! could not be. The guest's console is its standard output, and what it has to say itself is in a
//! file of its own, since it would get into the middle of the guest's lines.
//!
//! The monotonic clock of a restored guest goes on where it stood, as with any other VMM: leases and
//! intervals are measured by it. The agent sets the wall clock when it is woken.
//!
//! A restored VM reads its memory from the snapshot's file for as long as it runs, and writes to
//! copies of its own: the file must stay, unchanged, until the last VM from it has ended.

mod memory;
mod requests;
mod version;

pub(crate) use version::{cuts_off, loses_vsock};

use crate::deadline::Deadline;
use crate::detach::raise_descriptors;
use crate::driver::{Driver, Launch, Restore};
use crate::error::Error;
use crate::http::HttpError;
use crate::launch::VmProcesses;
use crate::locate::FIRECRACKER;
use crate::microvm::{self, ANSWER, API_SOCKET, ROLE, VSOCK_SOCKET, Vmm, VmmApi};
use crate::snapshot::{self, Snapshot};
use crate::vmlinux;
use mvm_registry::Alive;
use mvm_registry::record::GUEST_CID;
use mvm_registry::{Home, Unreachable, VmFolder, open_connections};
use requests::{
    Action, ActionType, BackendType, BootSource, CacheType, Drive, Entropy, Instance,
    InstanceState, MachineConfig, MemBackend, SnapshotCreate, SnapshotLoad, SnapshotType, Version,
    Vm, VmState, Vsock,
};
use std::fs::File;
use std::path::Path;
use std::process::Command;
use version::{START_AGAIN, check_restore, check_version, version_in, writes_resident};

/// `--backend firecracker`
#[derive(Debug)]
pub struct Firecracker;

const VMM: Vmm = Vmm {
    name: "Firecracker",
    root: "",
};

const BACKEND: &str = "firecracker";

/// The most connections to a guest that it has at a time. It ends any more at once.
const MAX_CONNECTIONS: usize = 1023;

/// What Firecracker says itself, in the VM's folder.
const LOG: &str = "vmm.log";

/// The devices' state in a snapshot folder.
const STATE: &str = "state";

/// The guest's memory in a snapshot folder.
const MEMORY: &str = "memory";

/// What writes a snapshot.
const CREATE: &str = "/snapshot/create";
const WRITE: &str = "write the snapshot";

/// `console=` for the console, `reboot=k` since Firecracker ends at a reset by the keyboard
/// controller, `panic=1` so that a panic is one, and `pci=off` since it has none to be looked for.
const BOOT_ARGS: &str = "console=ttyS0 reboot=k panic=1 pci=off";

impl Driver for Firecracker {
    fn name(&self) -> &'static str {
        BACKEND
    }

    fn runs_a_guest(&self) -> bool {
        true
    }

    fn needs_kvm(&self) -> bool {
        true
    }

    fn check(&self) -> Result<(), Error> {
        FIRECRACKER.find()?;
        microvm::check_kvm(BACKEND)
    }

    fn launch(&self, launch: &Launch<'_>, processes: &mut VmProcesses) -> Result<(), Error> {
        let image = launch.need_image(BACKEND)?;
        let deadline = launch.deadline;
        let kernel = vmlinux::uncompressed(&image.kernel(), processes.folder().path(), BACKEND)?;
        spawn(processes)?;
        let folder = processes.folder().clone();
        let api = VMM.in_folder(&folder, Some(processes), deadline);
        let _: Version = api.wait_until_up("/version")?;
        let machine = MachineConfig {
            vcpu_count: launch.cpus,
            mem_size_mib: launch.memory_mib,
            track_dirty_pages: false,
        };
        api.put("/machine-config", &machine, "take the VM's size")?;
        let initrd = image.initrd();
        let boot = BootSource {
            kernel_image_path: &kernel,
            boot_args: format!("{BOOT_ARGS} {}", image.manifest.cmdline),
            initrd_path: initrd.as_deref(),
        };
        api.put("/boot-source", &boot, "take the kernel")?;
        if let Some(rootfs) = image.rootfs() {
            // Read-only whatever it is: the file is the image's, and other VMs run from it.
            let drive = Drive {
                drive_id: "rootfs",
                path_on_host: &rootfs,
                is_root_device: true,
                is_read_only: true,
                cache_type: CacheType::Writeback,
            };
            api.put("/drives/rootfs", &drive, "take the root file system")?;
        }
        let vsock = Vsock {
            guest_cid: GUEST_CID,
            uds_path: VSOCK_SOCKET,
        };
        api.put("/vsock", &vsock, "add the vsock device")?;
        api.put("/entropy", &Entropy {}, "add the entropy device")?;
        action(&api, ActionType::InstanceStart, "start the guest")
    }

    /// Ctrl-Alt-Delete is the one way of asking that it has.
    fn request_stop(&self, folder: &VmFolder, _: &[Alive]) -> Result<(), Error> {
        let deadline = Deadline::new(ANSWER, None);
        let api = VMM.in_folder(folder, None, deadline);
        action(&api, ActionType::SendCtrlAltDel, "ask the guest to stop")
    }

    fn is_paused(&self, folder: &VmFolder, deadline: Deadline<'_>) -> Result<bool, Error> {
        let state = state(&VMM.in_folder(folder, None, deadline))?;
        Ok(state != InstanceState::Running)
    }

    fn check_pause(&self) -> Result<(), Error> {
        Ok(())
    }

    fn pause(&self, folder: &VmFolder, deadline: Deadline<'_>) -> Result<(), Error> {
        let api = VMM.in_folder(folder, None, deadline);
        match state(&api)? {
            InstanceState::Paused => Ok(()),
            _ => set(&api, VmState::Paused, "pause the VM"),
        }
    }

    fn resume(&self, folder: &VmFolder, deadline: Deadline<'_>) -> Result<(), Error> {
        let api = VMM.in_folder(folder, None, deadline);
        match state(&api)? {
            InstanceState::Running => Ok(()),
            _ => resume(&api),
        }
    }

    /// By the program that is installed.
    fn check_snapshots(&self) -> Result<(), Error> {
        match FIRECRACKER.version(&FIRECRACKER.find()?) {
            Ok(said) => check_version(version_in(&said), START_AGAIN),
            // One that cannot tell its version is found out by the one that runs.
            Err(_) => Ok(()),
        }
    }

    fn check_running(&self, processes: &VmProcesses) -> Result<(), Error> {
        let deadline = Deadline::new(ANSWER, None);
        let api = VMM.in_folder(processes.folder(), None, deadline);
        check_version(&version(&api)?, START_AGAIN)
    }

    fn freeze(
        &self,
        processes: &mut VmProcesses,
        into: &Path,
        deadline: Deadline<'_>,
    ) -> Result<snapshot::Vmm, Error> {
        let api = VMM.in_folder(processes.folder(), None, deadline);
        let version = version(&api)?;
        set(&api, VmState::Paused, "pause the VM")?;
        let (state, memory) = (into.join(STATE), into.join(MEMORY));
        let create = |snapshot_type| SnapshotCreate {
            snapshot_type,
            snapshot_path: &state,
            mem_file_path: &memory,
        };
        let bytes = u64::from(processes.record().memory_mib) << 20;
        let pid = processes.pid(ROLE);
        let is_whole = writes_resident(&version) && memory::prepare(pid, bytes, &memory) && {
            api.put_at_length(CREATE, &create(SnapshotType::Diff), WRITE)?;
            memory::is_all_in_memory(pid)
        };
        if !is_whole {
            api.put_at_length(CREATE, &create(SnapshotType::Full), WRITE)?;
        }
        Ok(snapshot::Vmm {
            name: BACKEND.into(),
            version,
            accelerator: processes.record().accelerator.clone(),
        })
    }

    fn run_on(&self, processes: &mut VmProcesses, deadline: Deadline<'_>) -> Result<(), Error> {
        let api = VMM.in_folder(processes.folder(), None, deadline);
        // It answers in turn: a snapshot that is still being written is waited for here.
        match state(&api)? {
            InstanceState::Running => Ok(()),
            InstanceState::Paused => resume(&api),
            InstanceState::NotStarted => Err(Error::NotRunning {
                name: processes.record().name.clone(),
            }),
        }
    }

    fn unreachable(
        &self,
        folder: &VmFolder,
        processes: &[Alive],
        deadline: Deadline<'_>,
    ) -> Option<Unreachable> {
        let main = Alive::main(processes)?;
        let open = open_connections(main.pid, VSOCK_SOCKET).unwrap_or_default();
        if open >= MAX_CONNECTIONS {
            return Some(Unreachable::TooManyConnections {
                vmm: VMM.name.into(),
                limit: MAX_CONNECTIONS,
            });
        }
        let version = version(&VMM.in_folder(folder, None, deadline)).ok()?;
        cuts_off(&version).then(|| Unreachable::MayBeCutOff {
            vmm: format!("{} {version}", VMM.name),
        })
    }

    fn reconnect(
        &self,
        processes: &mut VmProcesses,
        deadline: Deadline<'_>,
    ) -> Result<bool, Error> {
        let api = VMM.in_folder(processes.folder(), None, deadline);
        if !cuts_off(&version(&api)?) {
            return Ok(false);
        }
        set(&api, VmState::Paused, "pause the VM")?;
        resume(&api)?;
        Ok(true)
    }

    fn check_snapshot(&self, _: &Home, snapshot: &Snapshot) -> Result<(), Error> {
        let manifest = &snapshot.manifest;
        snapshot.need(STATE)?;
        let memory = snapshot.need(MEMORY)?;
        if memory.bytes != u64::from(manifest.memory_mib) << 20 {
            return Err(snapshot.contradicts_itself(format!(
                "the guest has {} MiB of memory, and its file {MEMORY:?} {} bytes",
                manifest.memory_mib, memory.bytes
            )));
        }
        match FIRECRACKER.version(&FIRECRACKER.find()?) {
            Ok(said) => check_restore(version_in(&said), &manifest.vmm.version),
            // One that cannot tell its version is found out once it runs.
            Err(_) => Ok(()),
        }
    }

    fn restore(&self, restore: &Restore<'_>, processes: &mut VmProcesses) -> Result<(), Error> {
        let Restore {
            snapshot, deadline, ..
        } = *restore;
        spawn(processes)?;
        let folder = processes.folder().clone();
        let api = VMM.in_folder(&folder, Some(processes), deadline);
        let version: Version = api.wait_until_up("/version")?;
        let wrote = &snapshot.manifest.vmm.version;
        check_restore(&version.firecracker_version, wrote)?;
        let load = SnapshotLoad {
            snapshot_path: &snapshot.file(STATE),
            mem_backend: MemBackend {
                backend_type: BackendType::File,
                backend_path: &snapshot.file(MEMORY),
            },
            resume_vm: true,
        };
        api.put_at_length("/snapshot/load", &load, "load the snapshot")
    }
}

/// Starts the process, which waits to be told what to do.
fn spawn(processes: &mut VmProcesses) -> Result<(), Error> {
    let id = id(&processes.record().name);
    let mut command = Command::new(FIRECRACKER.find()?);
    command.args(["--id", &id, "--api-sock", API_SOCKET, "--log-path", LOG]);
    raise_descriptors(&mut command);
    // It has to be there.
    let log = processes.folder().file(LOG);
    File::create(&log).map_err(Error::io("create", &log))?;
    processes.set_accelerator("kvm");
    processes.add_log(LOG);
    processes.spawn_with_console(ROLE, VMM.name, None, &mut command)
}

/// A VM's name in the letters that Firecracker takes in an id. It is shown by its logs alone, and
/// need not be unique.
fn id(name: &str) -> String {
    let letter = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    name.chars().map(letter).collect()
}

fn version(api: &VmmApi<'_>) -> Result<String, Error> {
    let version: Version = api.get("/version", "tell its version")?;
    Ok(version.firecracker_version)
}

fn state(api: &VmmApi<'_>) -> Result<InstanceState, Error> {
    let instance = api.try_to_get_at_length("/");
    let instance: Instance = instance.map_err(api.failed("tell the VM's state"))?;
    Ok(instance.state)
}

/// Lets a VM run on that is paused, so that its guest is reached afterwards, whatever has or has not
/// become of a snapshot meanwhile.
fn resume(api: &VmmApi<'_>) -> Result<(), Error> {
    if cuts_off(&version(api)?) {
        tell_guest_of_reset(api)?;
    }
    set(api, VmState::Resumed, "let the VM run on")
}

/// Has a version that [`cuts_off`] tell the guest of the reset for whose sake it would cut it off. A
/// snapshot does that before it opens its files: it is asked for one that cannot have any. A guest
/// that is told twice takes notice twice.
fn tell_guest_of_reset(api: &VmmApi<'_>) -> Result<(), Error> {
    let nowhere = Path::new("/");
    let create = SnapshotCreate {
        snapshot_type: SnapshotType::Full,
        snapshot_path: nowhere,
        mem_file_path: nowhere,
    };
    match api.try_to_put(CREATE, &create) {
        // As it should.
        Err(HttpError::Refused { .. }) | Ok(()) => Ok(()),
        Err(error) => Err(api.failed("tell the guest of a reset")(error)),
    }
}

fn set(api: &VmmApi<'_>, state: VmState, doing: &'static str) -> Result<(), Error> {
    api.patch("/vm", &Vm { state }, doing)
}

fn action(api: &VmmApi<'_>, action_type: ActionType, doing: &'static str) -> Result<(), Error> {
    api.put("/actions", &Action { action_type }, doing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_letters_that_firecracker_takes() {
        assert_eq!(id("web-1_a.b"), "web-1-a-b");
    }
}
