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

use crate::driver::{Driver, Launch, Restore};
use crate::error::Error;
use crate::http::{HttpError, Method};
use crate::launch::{Crew, Patience};
use crate::locate::CLOUD_HYPERVISOR;
use crate::microvm::{self, ANSWER, API_SOCKET, GUEST_CID, ROLE, VSOCK_SOCKET, Vmm};
use crate::process::Alive;
use crate::record::VmFolder;
use crate::snapshot;
use crate::vmlinux;
use requests::{
    Console, Cpus, Disk, Info, Memory, Mode, Payload, Ping, Rng, Serial, Snapshot, State, VmConfig,
    Vsock,
};
use serde::Serialize;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// `--backend cloud-hypervisor`
#[derive(Debug)]
pub struct CloudHypervisor;

const NAME: &str = "Cloud Hypervisor";

const BACKEND: &str = "cloud-hypervisor";

/// The guest's console, in the VM's folder.
const CONSOLE: &str = "console.log";

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

    fn launch(&self, launch: &Launch<'_>, crew: &mut Crew) -> Result<(), Error> {
        let image = microvm::image(launch, BACKEND)?;
        // It takes other kernels too, depending on its version; this one it always takes.
        let kernel = vmlinux::uncompressed(&image.kernel(), crew.folder().path(), BACKEND)?;
        spawn(crew)?;
        let folder = crew.folder().clone();
        let told = Told::of(&folder, Some(crew), launch.patience);
        told.wait_until_up()?;
        let rootfs = image.manifest.rootfs.as_ref();
        let rootfs = rootfs.map(|rootfs| image.folder.join(&rootfs.file));
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
        told.put("vm.create", &config, "take the VM")?;
        // What is wrong with the VM shows here.
        told.act("vm.boot", "boot the guest")
    }

    fn request_stop(&self, folder: &VmFolder, _: &[Alive]) -> Result<(), Error> {
        let patience = Patience::new(ANSWER, None);
        Told::of(folder, None, patience).act("vm.power-button", "ask the guest to stop")
    }

    fn main_role(&self) -> &'static str {
        ROLE
    }

    fn check_snapshots(&self) -> Result<(), Error> {
        Ok(())
    }

    fn freeze(
        &self,
        crew: &mut Crew,
        into: &Path,
        patience: Patience<'_>,
    ) -> Result<snapshot::Vmm, Error> {
        let told = Told::of(crew.folder(), None, patience);
        let version = told.version()?;
        if told.state()? != State::Paused {
            told.act("vm.pause", "pause the VM")?;
        }
        let snapshot = Snapshot {
            destination_url: url(into),
        };
        told.put_at_length("vm.snapshot", &snapshot, "write the snapshot")?;
        Ok(snapshot::Vmm {
            name: BACKEND.into(),
            version,
            accelerator: crew.record().accelerator.clone(),
        })
    }

    fn run_on(&self, crew: &mut Crew, patience: Patience<'_>) -> Result<(), Error> {
        let told = Told::of(crew.folder(), None, patience);
        // It answers in turn: a snapshot that is still being written is waited for here.
        match told.state()? {
            State::Running => Ok(()),
            State::Paused => told.act("vm.resume", "let the VM run on"),
            State::Created | State::Shutdown | State::BreakPoint => Err(Error::NotRunning {
                name: crew.record().name.clone(),
            }),
        }
    }

    fn restore(&self, restore: &Restore<'_>, crew: &mut Crew) -> Result<(), Error> {
        let Restore {
            snapshot, patience, ..
        } = *restore;
        spawn(crew)?;
        let folder = crew.folder().clone();
        let told = Told::of(&folder, Some(crew), patience);
        told.wait_until_up()?;
        let path = std::path::absolute(folder.path());
        let path = path.map_err(Error::io("resolve", folder.path()))?;
        let source = config::elsewhere(snapshot, &path)?;
        let from = requests::Restore {
            source_url: url(source.path()),
            // Which leaves it paused in any version: not all know how to resume it themselves.
            resume: false,
        };
        told.put_at_length("vm.restore", &from, "load the snapshot")?;
        told.resume_restored()
    }
}

/// Starts the process, which waits to be told what to do.
fn spawn(crew: &mut Crew) -> Result<(), Error> {
    // The agent's line in it would be taken for the new guest's.
    let console = crew.folder().file(CONSOLE);
    match std::fs::remove_file(&console) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(Error::io("remove", &console)(error));
        }
        _ => {}
    }
    let mut command = Command::new(CLOUD_HYPERVISOR.find()?);
    command
        .arg("--api-socket")
        .arg(format!("path={API_SOCKET}"));
    crew.set_accelerator("kvm");
    crew.add_log(CONSOLE);
    crew.spawn(ROLE, NAME, "vmm.log", &mut command)
}

/// A folder as Cloud Hypervisor reads it: what is behind `file://` is the path as it is.
fn url(folder: &Path) -> String {
    format!("file://{}", folder.display())
}

/// One Cloud Hypervisor that is told what to do.
struct Told<'a> {
    vmm: Vmm<'a>,
    /// Those that were started, to be looked at when something fails.
    crew: Option<&'a Crew>,
    patience: Patience<'a>,
}

impl<'a> Told<'a> {
    fn of(folder: &'a VmFolder, crew: Option<&'a Crew>, patience: Patience<'a>) -> Self {
        Self {
            vmm: Vmm::of(NAME, folder),
            crew,
            patience,
        }
    }

    fn wait_until_up(&self) -> Result<(), Error> {
        let Some(crew) = self.crew else {
            return Ok(());
        };
        self.vmm.wait_until_up(crew, self.patience, |patience| {
            let _: Ping = self.vmm.api.get(&path("vmm.ping"), patience)?;
            Ok(())
        })
    }

    fn version(&self) -> Result<String, Error> {
        let patience = self.patience.step(ANSWER);
        let ping = self.vmm.api.get(&path("vmm.ping"), patience);
        let ping: Ping = ping.map_err(self.failed("tell its version"))?;
        Ok(ping.version)
    }

    fn ask_state(&self) -> Result<State, HttpError> {
        let info: Info = self.vmm.api.get(&path("vm.info"), self.patience)?;
        Ok(info.state)
    }

    fn state(&self) -> Result<State, Error> {
        self.ask_state().map_err(self.failed("tell the VM's state"))
    }

    fn try_to_act(&self, action: &str) -> Result<(), HttpError> {
        self.vmm.api.act(&path(action), self.patience.step(ANSWER))
    }

    fn act(&self, action: &str, doing: &'static str) -> Result<(), Error> {
        self.try_to_act(action).map_err(self.failed(doing))
    }

    fn put(
        &self,
        action: &str,
        request: &impl Serialize,
        doing: &'static str,
    ) -> Result<(), Error> {
        let patience = self.patience.step(ANSWER);
        let asked = self
            .vmm
            .api
            .ask(Method::Put, &path(action), request, patience);
        asked.map_err(self.failed(doing))
    }

    /// What moves the guest's memory may take all the time that there is.
    fn put_at_length(
        &self,
        action: &str,
        request: &impl Serialize,
        doing: &'static str,
    ) -> Result<(), Error> {
        let asked = self
            .vmm
            .api
            .ask(Method::Put, &path(action), request, self.patience);
        asked.map_err(self.failed(doing))
    }

    /// A try that failed may have taken effect all the same, and resuming what runs is an error.
    fn resume_restored(&self) -> Result<(), Error> {
        let doing = "let the restored VM run";
        let mut tries = 1;
        loop {
            let error = match self.try_to_act("vm.resume") {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if matches!(self.ask_state(), Ok(State::Running)) {
                return Ok(());
            }
            let may_pass = matches!(error, HttpError::Refused { .. } | HttpError::Closed);
            if !may_pass || tries == TRIES {
                return Err(self.failed(doing)(error));
            }
            if let Some(crew) = self.crew {
                crew.check_alive()?;
                crew.pause(BETWEEN_TRIES)?;
            }
            tries += 1;
        }
    }

    fn failed(&self, doing: &'static str) -> impl FnOnce(HttpError) -> Error {
        let (vmm, crew) = (self.vmm, self.crew);
        move |error| vmm.failed(crew, doing, error)
    }
}

fn path(action: &str) -> String {
    format!("/api/v1/{action}")
}
