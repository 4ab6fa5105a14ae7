//! Cloud Hypervisor.
//!
//! ```text
//! launch    vm.create ─► vm.boot
//! freeze    vmm.ping ─► vm.info ─► vm.pause, if it runs ─► vm.snapshot
//! run_on    vm.info ─► vm.resume, if it is paused
//! restore   in a fresh process: vm.restore ─► vm.resume, tried again
//! ```
//!
//! One process a VM, started in the VM's folder with all its paths relative to that. Pausing what is
//! paused is an error, so its state is asked for first.

mod config;
mod requests;

use crate::deadline::Deadline;
use crate::detach::raise_descriptors;
use crate::driver::{Driver, Launch, Restore, other_version};
use crate::error::Error;
use crate::http::HttpError;
use crate::launch::VmProcesses;
use crate::locate::CLOUD_HYPERVISOR;
use crate::microvm::{self, ANSWER, API_SOCKET, ROLE, VSOCK_SOCKET, Vmm, VmmApi};
use crate::snapshot::{self, Snapshot};
use crate::vmlinux;
use mvm_registry::Alive;
use mvm_registry::record::GUEST_CID;
use mvm_registry::{Home, VmFolder};
use requests::{
    Console, Cpus, Disk, ImageType, Info, Memory, Mode, Payload, Ping, Rng, Serial, State,
    VmConfig, Vsock,
};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// `--backend cloud-hypervisor`
#[derive(Debug)]
pub struct CloudHypervisor;

const VMM: Vmm = Vmm {
    name: "Cloud Hypervisor",
    root: "/api/v1/",
};

const BACKEND: &str = "cloud-hypervisor";

/// Where it is to write the guest's console: its standard output is what keeps that.
const CONSOLE: &str = "/dev/stdout";

/// How often the first request after a restore is made, which can fail though nothing is wrong.
const TRIES: u32 = 5;

/// How long to wait between two of them.
const BETWEEN_TRIES: Duration = Duration::from_millis(100);

impl Driver for CloudHypervisor {
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
        CLOUD_HYPERVISOR.find()?;
        microvm::check_kvm(BACKEND)
    }

    fn launch(&self, launch: &Launch<'_>, processes: &mut VmProcesses) -> Result<(), Error> {
        let image = launch.need_image(BACKEND)?;
        // It takes other kernels too, depending on its version; this one it always takes.
        let kernel = vmlinux::uncompressed(&image.kernel(), processes.folder().path(), BACKEND)?;
        spawn(processes)?;
        let folder = processes.folder().clone();
        let api = VMM.in_folder(&folder, Some(processes), launch.deadline);
        let ping: Ping = api.wait_until_up("vmm.ping")?;
        // Those before find out by themselves what a disk is, which later ones warn of.
        let image_type = (major(&ping.version) >= Some(52)).then_some(ImageType::Raw);
        let rootfs = image.rootfs();
        // Read-only whatever it is: the file is the image's, and other VMs run from it.
        let root = if rootfs.is_some() {
            "root=/dev/vda ro "
        } else {
            ""
        };
        let initrd = image.initrd();
        let config = VmConfig {
            payload: Payload {
                kernel: &kernel,
                cmdline: format!("console=ttyS0 {root}{}", image.manifest.cmdline),
                initramfs: initrd.as_deref(),
            },
            cpus: Cpus {
                boot_vcpus: launch.cpus,
                max_vcpus: launch.cpus,
            },
            memory: Memory {
                size: u64::from(launch.memory_mib) << 20,
                shared: false,
            },
            disks: rootfs
                .iter()
                .map(|path| Disk {
                    path,
                    readonly: true,
                    image_type,
                })
                .collect(),
            vsock: Vsock {
                cid: GUEST_CID,
                socket: VSOCK_SOCKET,
            },
            console: Console { mode: Mode::Off },
            serial: Serial {
                mode: Mode::File,
                file: CONSOLE,
            },
            rng: Rng {
                src: "/dev/urandom",
            },
        };
        api.put("vm.create", &config, "take the VM")?;
        // What is wrong with the VM shows here.
        api.act("vm.boot", "boot the guest")
    }

    fn request_stop(&self, folder: &VmFolder, _: &[Alive]) -> Result<(), Error> {
        let deadline = Deadline::new(ANSWER, None);
        let api = VMM.in_folder(folder, None, deadline);
        api.act("vm.power-button", "ask the guest to stop")
    }

    fn is_paused(&self, folder: &VmFolder, deadline: Deadline<'_>) -> Result<bool, Error> {
        let state = state(&VMM.in_folder(folder, None, deadline))?;
        Ok(state != State::Running)
    }

    fn check_pause(&self) -> Result<(), Error> {
        Ok(())
    }

    fn pause(&self, folder: &VmFolder, deadline: Deadline<'_>) -> Result<(), Error> {
        let api = VMM.in_folder(folder, None, deadline);
        match state(&api)? {
            State::Paused => Ok(()),
            _ => api.act("vm.pause", "pause the VM"),
        }
    }

    fn resume(&self, folder: &VmFolder, deadline: Deadline<'_>) -> Result<(), Error> {
        let api = VMM.in_folder(folder, None, deadline);
        match state(&api)? {
            State::Running => Ok(()),
            _ => api.act("vm.resume", "let the VM run on"),
        }
    }

    fn check_snapshots(&self) -> Result<(), Error> {
        Ok(())
    }

    fn freeze(
        &self,
        processes: &mut VmProcesses,
        into: &Path,
        deadline: Deadline<'_>,
    ) -> Result<snapshot::Vmm, Error> {
        let api = VMM.in_folder(processes.folder(), None, deadline);
        let ping: Ping = api.get("vmm.ping", "tell its version")?;
        if state(&api)? != State::Paused {
            api.act("vm.pause", "pause the VM")?;
        }
        let snapshot = requests::Snapshot {
            destination_url: url(into),
        };
        api.put_at_length("vm.snapshot", &snapshot, "write the snapshot")?;
        Ok(snapshot::Vmm {
            name: BACKEND.into(),
            version: ping.version,
            accelerator: processes.record().accelerator.clone(),
        })
    }

    fn run_on(&self, processes: &mut VmProcesses, deadline: Deadline<'_>) -> Result<(), Error> {
        let api = VMM.in_folder(processes.folder(), None, deadline);
        // It answers in turn: a snapshot that is still being written is waited for here.
        match state(&api)? {
            State::Running => Ok(()),
            State::Paused => api.act("vm.resume", "let the VM run on"),
            State::Created | State::Shutdown | State::BreakPoint => Err(Error::NotRunning {
                name: processes.record().name.clone(),
            }),
        }
    }

    fn check_snapshot(&self, _: &Home, snapshot: &Snapshot) -> Result<(), Error> {
        for file in ["config.json", "memory-ranges", "state.json"] {
            snapshot.need(file)?;
        }
        let Ok(said) = CLOUD_HYPERVISOR.version(&CLOUD_HYPERVISOR.find()?) else {
            // One that cannot tell its version is found out once it runs.
            return Ok(());
        };
        let own = said.split_whitespace().nth(1).unwrap_or_default();
        check_restore(own.trim_start_matches('v'), &snapshot.manifest.vmm.version)
    }

    fn restore(&self, restore: &Restore<'_>, processes: &mut VmProcesses) -> Result<(), Error> {
        let Restore {
            snapshot, deadline, ..
        } = *restore;
        spawn(processes)?;
        let folder = processes.folder().clone();
        let api = VMM.in_folder(&folder, Some(processes), deadline);
        let ping: Ping = api.wait_until_up("vmm.ping")?;
        check_restore(&ping.version, &snapshot.manifest.vmm.version)?;
        let path = std::path::absolute(folder.path());
        let path = path.map_err(Error::io("resolve", folder.path()))?;
        let source = config::elsewhere(snapshot, &path)?;
        let from = requests::Restore {
            source_url: url(source.path()),
            // Which leaves it paused in any version: not all know how to resume it themselves.
            resume: false,
        };
        api.put_at_length("vm.restore", &from, "load the snapshot")?;
        resume_restored(&api)
    }
}

/// Starts the process, which waits to be told what to do.
fn spawn(processes: &mut VmProcesses) -> Result<(), Error> {
    let mut command = Command::new(CLOUD_HYPERVISOR.find()?);
    command
        .arg("--api-socket")
        .arg(format!("path={API_SOCKET}"));
    raise_descriptors(&mut command);
    processes.set_accelerator("kvm");
    processes.spawn_with_console(ROLE, VMM.name, Some("vmm.log"), &mut command)
}

/// Whether the one version restores what the other wrote: later ones read what earlier ones wrote.
fn check_restore(own: &str, wrote: &str) -> Result<(), Error> {
    match (major(own), major(wrote)) {
        (Some(reads), Some(is)) if reads < is => Err(other_version(
            BACKEND,
            VMM.name,
            (own, wrote),
            &CLOUD_HYPERVISOR,
        )),
        // One that is not understood is left to the VMM.
        _ => Ok(()),
    }
}

/// The first number of a version, by which its interface goes.
fn major(version: &str) -> Option<u32> {
    version.split('.').next()?.parse().ok()
}

/// A folder as Cloud Hypervisor reads it: what is behind `file://` is the path as it is.
fn url(folder: &Path) -> String {
    format!("file://{}", folder.display())
}

fn ask_state(api: &VmmApi<'_>) -> Result<State, HttpError> {
    let info: Info = api.try_to_get_at_length("vm.info")?;
    Ok(info.state)
}

fn state(api: &VmmApi<'_>) -> Result<State, Error> {
    ask_state(api).map_err(api.failed("tell the VM's state"))
}

/// A try that failed may have taken effect all the same, and resuming what runs is an error.
fn resume_restored(api: &VmmApi<'_>) -> Result<(), Error> {
    let doing = "let the restored VM run";
    let mut tries = 1;
    loop {
        let error = match api.try_to_act("vm.resume") {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if matches!(ask_state(api), Ok(State::Running)) {
            return Ok(());
        }
        let may_pass = matches!(error, HttpError::Refused { .. } | HttpError::Closed);
        if !may_pass || tries == TRIES {
            return Err(api.failed(doing)(error));
        }
        if let Some(processes) = api.processes {
            processes.check_alive()?;
            processes.pause(BETWEEN_TRIES)?;
        }
        tries += 1;
    }
}
