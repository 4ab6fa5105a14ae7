//! Firecracker's manners.
//!
//! ```text
//! configuring ─ InstanceStart ─► running ◄─ Resumed ─┐
//!      │                            └───── Paused ──► paused ─ /snapshot/create
//!      └─ /snapshot/load ───────────► (either)
//! ```

use super::guest::Guest;
use super::http::{Answer, Request};
use super::{Vmm, body, quit};
use serde::Deserialize;
use serde_json::json;
use std::fs;
use std::path::PathBuf;

/// What the memory file begins with, so that a damaged one is found.
const MEMORY: &str = "memory of the guest";

pub(super) fn run(arguments: &[String], version: &str) -> ! {
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let (id, socket) = match arguments.as_slice() {
        ["--version"] => {
            println!("Firecracker v{version}");
            std::process::exit(0);
        }
        ["--id", id, "--api-sock", socket] => (*id, *socket),
        other => quit(&format!("not Firecracker's arguments: {other:?}")),
    };
    if !id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
        quit(&format!("Invalid instance ID: {id}"));
    }
    super::serve(
        socket,
        Firecracker {
            id: id.to_owned(),
            version: version.to_owned(),
            state: State::Configuring(Config::default()),
            guest: Guest::default(),
        },
    )
}

struct Firecracker {
    id: String,
    version: String,
    state: State,
    guest: Guest,
}

enum State {
    Configuring(Config),
    Running,
    Paused,
}

#[derive(Default)]
struct Config {
    machine: bool,
    kernel: bool,
    vsock: bool,
    touched: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "what counts is that they are there")]
struct MachineConfig {
    vcpu_count: u8,
    mem_size_mib: u32,
    track_dirty_pages: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BootSource {
    kernel_image_path: PathBuf,
    boot_args: Option<String>,
    initrd_path: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "what counts is that they are there")]
#[expect(clippy::struct_field_names, reason = "Firecracker's names")]
struct Drive {
    drive_id: String,
    path_on_host: PathBuf,
    is_root_device: bool,
    is_read_only: bool,
    cache_type: Option<CacheType>,
}

#[derive(Deserialize)]
enum CacheType {
    Unsafe,
    Writeback,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "what counts is that they are there")]
struct Vsock {
    guest_cid: u32,
    uds_path: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entropy {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Action {
    action_type: ActionType,
}

#[derive(Deserialize)]
enum ActionType {
    InstanceStart,
    SendCtrlAltDel,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vm {
    state: VmState,
}

#[derive(Deserialize)]
enum VmState {
    Paused,
    Resumed,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "what counts is that they are there")]
struct Create {
    snapshot_type: SnapshotType,
    snapshot_path: PathBuf,
    mem_file_path: PathBuf,
}

#[derive(Deserialize)]
enum SnapshotType {
    Full,
    Diff,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Load {
    snapshot_path: PathBuf,
    mem_backend: MemBackend,
    #[serde(default)]
    resume_vm: bool,
    vsock_override: Option<Override>,
    #[allow(dead_code, reason = "what counts is that it is known")]
    clock_realtime: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "what counts is that they are there")]
struct MemBackend {
    backend_type: BackendType,
    backend_path: PathBuf,
}

#[derive(Deserialize)]
enum BackendType {
    File,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Override {
    uds_path: String,
}

fn fault(message: impl Into<String>) -> Answer {
    Answer::refusal(400, json!({"fault_message": message.into()}).to_string())
}

fn check(result: Result<(), String>) -> Answer {
    result.map_or_else(fault, |()| Answer::done())
}

impl Vmm for Firecracker {
    fn answer(&mut self, request: &Request) -> Answer {
        match (request.method.as_str(), request.path.as_str()) {
            ("GET", "/") => self.instance(),
            ("GET", "/version") => {
                Answer::ok(json!({"firecracker_version": self.version}).to_string())
            }
            ("PATCH", "/vm") => self.set_state(request),
            ("PUT", "/snapshot/create") => check(self.create(request)),
            ("PUT", "/snapshot/load") => self.load(request),
            ("PUT", "/actions") => self.act(request),
            ("PUT", path) => check(self.configure(path, request)),
            (method, path) => fault(format!(
                "Invalid request method and/or path: {method} {path}"
            )),
        }
    }
}

impl Firecracker {
    fn instance(&self) -> Answer {
        let state = match self.state {
            State::Configuring(_) => "Not started",
            State::Running => "Running",
            State::Paused => "Paused",
        };
        Answer::ok(
            json!({"id": self.id, "state": state, "vmm_version": self.version,
                   "app_name": "Firecracker"})
            .to_string(),
        )
    }

    fn configure(&mut self, path: &str, request: &Request) -> Result<(), String> {
        let State::Configuring(config) = &mut self.state else {
            return Err(
                "The requested operation is not supported after starting the microVM.".into(),
            );
        };
        match path {
            "/machine-config" => {
                let machine: MachineConfig = body(request)?;
                config.machine = machine.vcpu_count > 0;
            }
            "/boot-source" => {
                let boot: BootSource = body(request)?;
                let kernel = fs::read(&boot.kernel_image_path).map_err(|e| e.to_string())?;
                if !kernel.starts_with(b"\x7fELF") {
                    return Err("Invalid kernel: not an ELF file".into());
                }
                if let Some(initrd) = boot.initrd_path {
                    fs::metadata(initrd).map_err(|e| e.to_string())?;
                }
                fs::write("boot_args", boot.boot_args.unwrap_or_default())
                    .map_err(|e| e.to_string())?;
                config.kernel = true;
            }
            "/vsock" => {
                let vsock: Vsock = body(request)?;
                self.guest.open_vsock(&vsock.uds_path)?;
                config.vsock = true;
            }
            "/entropy" => {
                let Entropy {} = body(request)?;
            }
            path => {
                let id = path.strip_prefix("/drives/").ok_or("Invalid path")?;
                let drive: Drive = body(request)?;
                if drive.drive_id != id {
                    return Err("The id from the path does not match the id from the body".into());
                }
                if !matches!(drive.cache_type, Some(CacheType::Writeback)) {
                    return Err("this stand-in insists on a disk that is flushed".into());
                }
                fs::metadata(drive.path_on_host).map_err(|e| e.to_string())?;
            }
        }
        config.touched = true;
        Ok(())
    }

    fn act(&mut self, request: &Request) -> Answer {
        let action: Action = match body(request) {
            Ok(action) => action,
            Err(error) => return fault(error),
        };
        match (action.action_type, &self.state) {
            (ActionType::InstanceStart, State::Configuring(config)) => {
                if !config.kernel {
                    return fault("Cannot start microvm without kernel configuration.");
                }
                if !config.machine || !config.vsock {
                    return fault("this stand-in insists on a size and a vsock device");
                }
                println!("mvm-guest-agent: listening on vsock port 52");
                self.state = State::Running;
                self.guest.run();
                Answer::done()
            }
            (ActionType::InstanceStart, _) => fault("The microVM is already running."),
            (ActionType::SendCtrlAltDel, State::Running) => Answer {
                then_exit: true,
                ..Answer::done()
            },
            (ActionType::SendCtrlAltDel, _) => fault("The microVM does not run."),
        }
    }

    fn set_state(&mut self, request: &Request) -> Answer {
        let wanted: Vm = match body(request) {
            Ok(wanted) => wanted,
            Err(error) => return fault(error),
        };
        if let State::Configuring(_) = self.state {
            return fault("The requested operation is not supported before starting the microVM.");
        }
        // Pausing what is paused is fine.
        self.state = match wanted.state {
            VmState::Paused => {
                self.guest.pause();
                State::Paused
            }
            VmState::Resumed => {
                self.guest.run();
                State::Running
            }
        };
        Answer::done()
    }

    fn create(&mut self, request: &Request) -> Result<(), String> {
        let create: Create = body(request)?;
        match self.state {
            State::Paused => {}
            State::Configuring(_) => {
                return Err(
                    "The requested operation is not supported before starting the microVM.".into(),
                );
            }
            State::Running => return Err("Cannot save the microVM: it is running.".into()),
        }
        fs::write(create.snapshot_path, &self.id).map_err(|e| e.to_string())?;
        let memory = format!("{MEMORY}{}", self.guest.memory());
        fs::write(create.mem_file_path, memory).map_err(|e| e.to_string())
    }

    fn load(&mut self, request: &Request) -> Answer {
        let load: Load = match body(request) {
            Ok(load) => load,
            Err(error) => return fault(error),
        };
        match &self.state {
            State::Configuring(config) if !config.touched => {}
            _ => {
                return fault(
                    "Loading a microVM snapshot not allowed after configuring boot-specific \
                     resources.",
                );
            }
        }
        // From here on a failure is its end.
        let mut restored = || -> Result<(), String> {
            fs::read_to_string(&load.snapshot_path).map_err(|e| e.to_string())?;
            let memory = fs::read_to_string(&load.mem_backend.backend_path);
            let memory = memory.map_err(|e| e.to_string())?;
            let memory = memory.strip_prefix(MEMORY);
            self.guest
                .remember(memory.ok_or("Cannot deserialize the microVM state")?)?;
            let path = load.vsock_override.as_ref().map(|vsock| &*vsock.uds_path);
            self.guest.open_vsock(path.unwrap_or("v.sock"))
        };
        if let Err(error) = restored() {
            return Answer {
                then_quit: Some(format!("RestoreFromSnapshot: {error}")),
                ..fault(format!("Load snapshot error: {error}"))
            };
        }
        self.state = if load.resume_vm {
            self.guest.run();
            State::Running
        } else {
            State::Paused
        };
        Answer::done()
    }
}
