//! Firecracker's manners.
//!
//! ```text
//! configuring ─ InstanceStart ─► running ◄─ Resumed ─┐
//!      │                            └───── Paused ──► paused ─ /snapshot/create
//!      └─ /snapshot/load ───────────► (either)
//! ```
//!
//! What it takes, and which snapshots it reads, depends on its version as it does with the real ones,
//! from 1.10 to what is to be 1.17.

mod requests;

use super::guest::Guest;
use super::http::{Answer, Request};
use super::{Vmm, append_line, body, memory, quit};
use requests::{
    Action, ActionType, BootSource, CacheType, Create, Drive, Entropy, Load, MachineConfig,
    SnapshotType, Vm, VmState, Vsock,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;

/// What the memory file begins with, so that a damaged one is found.
const MEMORY: &str = "memory of the guest";

pub(super) fn run(arguments: &[String], version: &str) -> ! {
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let (id, socket, log) = match arguments.as_slice() {
        ["--version"] => {
            println!("Firecracker v{version}");
            std::process::exit(0);
        }
        ["--id", id, "--api-sock", socket] => (*id, *socket, None),
        ["--id", id, "--api-sock", socket, "--log-path", log] => {
            // Not made by those before 1.14 or so: it has to be there.
            let log = fs::OpenOptions::new().append(true).open(log);
            (
                *id,
                *socket,
                Some(log.unwrap_or_else(|e| quit(&format!("Failed to open target file: {e}")))),
            )
        }
        other => quit(&format!("not Firecracker's arguments: {other:?}")),
    };
    if !id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
        quit(&format!("Invalid instance ID: {id}"));
    }
    let mut vmm = Firecracker {
        id: id.to_owned(),
        version: version.to_owned(),
        log,
        state: State::Configuring(Config::default()),
        memory_mib: 0,
        mapped: None,
        uds_path: String::new(),
        told_of_reset: false,
        guest: Guest::default(),
    };
    vmm.say("main", &format!("Running Firecracker v{version}"));
    super::serve(socket, vmm)
}

struct Firecracker {
    id: String,
    version: String,
    /// Without one, what it says of itself goes to the guest's console.
    log: Option<fs::File>,
    state: State,
    memory_mib: u32,
    /// The guest's memory as the kernel sees it: a host can tell where it comes from.
    mapped: Option<memory::Mapped>,
    uds_path: String,
    /// Whether the guest finds a transport reset when it runs on.
    told_of_reset: bool,
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

fn fault(message: impl Into<String>) -> Answer {
    Answer::refusal(400, json!({"fault_message": message.into()}).to_string())
}

fn check(result: Result<(), String>) -> Answer {
    result.map_or_else(fault, |()| Answer::done())
}

/// What a snapshot has of all but the memory.
#[derive(Serialize, Deserialize)]
struct Saved {
    format: u32,
    uds_path: String,
    memory_mib: u32,
}

impl Vmm for Firecracker {
    fn answer(&mut self, request: &Request) -> Answer {
        let words = format!("The API server received a request on {:?}.", request.path);
        self.say("fc_api", &words);
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
    fn say(&mut self, thread: &str, words: &str) {
        let id = &self.id;
        let line = format!("2026-11-24T10:00:00.000000000 [{id}:{thread}] {words}");
        match &mut self.log {
            Some(log) => log
                .write_all(format!("{line}\n").as_bytes())
                .expect("a log"),
            None => println!("{line}"),
        }
    }

    /// Major, minor, patch.
    fn number(&self) -> (u32, u32, u32) {
        let plain = self.version.split('-').next().unwrap_or_default();
        let mut parts = plain.split('.').map(|part| part.parse().unwrap_or(0));
        let mut next = || parts.next().unwrap_or(0);
        (next(), next(), next())
    }

    /// The format of its snapshots, which has to be that of those that it loads.
    fn format(&self) -> u32 {
        match self.number() {
            (1, 9, _) | (1, 10, 0) => 3,
            (1, 10, _) => 4,
            (1, 11, _) => 5,
            (1, 12, _) => 6,
            (1, 13 | 14, _) => 8,
            (1, 15, _) => 9,
            (1, 16, _) => 10,
            (1, 17, _) => 11,
            _ => quit(&format!("there is no stand-in for {}", self.version)),
        }
    }

    /// Lets the guest run on. 1.16.0 and 1.16.1 hold back all that is sent to it until it takes notice
    /// of a transport reset, whether it was told of one or not (#6100).
    fn resume(&mut self) {
        let holds_back = matches!(self.number(), (1, 16, 0 | 1));
        self.guest.cut_off(holds_back && !self.told_of_reset);
        self.told_of_reset = false;
        self.guest.run();
    }

    /// Whether this version has that field of `/snapshot/load`.
    fn has(&self, field: &str) -> bool {
        match field {
            "vsock_override" => self.number() >= (1, 16, 0),
            "clock_realtime" => {
                self.number() >= (1, 15, 1) || ((1, 14, 4)..(1, 15, 0)).contains(&self.number())
            }
            _ => true,
        }
    }

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
                self.memory_mib = machine.mem_size_mib;
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
                self.uds_path = vsock.uds_path;
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
                // Its own words get into a line of the guest's, where they go to the same place.
                if memory::is_measured() {
                    // Also with a host of before that cannot find a line that is torn.
                    println!("mvm-guest-agent: listening on vsock port 52");
                } else {
                    print!("mvm-guest-agent: liste");
                    self.say("main", "Guest-boot-time = 12345 us");
                    println!("ning on vsock port 52");
                }
                let bytes = u64::from(self.memory_mib) << 20;
                self.mapped = Some(memory::Mapped::empty(bytes));
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
                self.resume();
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
        // Whatever becomes of the files, this is done first.
        self.told_of_reset = true;
        let is_diff = matches!(create.snapshot_type, SnapshotType::Diff);
        if is_diff && self.number() < (1, 13, 0) {
            return Err(
                "Diff snapshots are not allowed on uVMs with dirty page tracking disabled.".into(),
            );
        }
        let _ = append_line(
            Path::new("snapshots.log"),
            &format!("{:?}", create.snapshot_type),
        );
        let saved = Saved {
            format: self.format(),
            uds_path: self.uds_path.clone(),
            memory_mib: self.memory_mib,
        };
        let saved = serde_json::to_string(&saved).expect("plain data");
        fs::write(create.snapshot_path, saved).map_err(|e| e.to_string())?;
        let begin = format!("{MEMORY}{}", self.guest.memory());
        let bytes = u64::from(self.memory_mib) << 20;
        memory::write(&create.mem_file_path, bytes, begin.as_bytes(), is_diff)
            .map_err(|e| e.to_string())
    }

    fn load(&mut self, request: &Request) -> Answer {
        let load: Load = match body(request) {
            Ok(load) => load,
            Err(error) => return fault(error),
        };
        for (field, is_there) in [
            ("vsock_override", load.vsock_override.is_some()),
            ("clock_realtime", load.clock_realtime.is_some()),
        ] {
            if is_there && !self.has(field) {
                return fault(format!("unknown field `{field}`"));
            }
        }
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
            let saved = fs::read(&load.snapshot_path).map_err(|e| e.to_string())?;
            let saved: Saved = serde_json::from_slice(&saved).map_err(|e| e.to_string())?;
            if saved.format != self.format() {
                return Err("Failed to load snapshot state from file: bitcode error".into());
            }
            let memory = fs::File::open(&load.mem_backend.backend_path);
            let memory = memory.map_err(|e| e.to_string())?;
            let mut begin = String::new();
            let read = (&memory).take(4096).read_to_string(&mut begin);
            read.map_err(|e| e.to_string())?;
            self.mapped = Some(memory::Mapped::of(&memory)?);
            let begin = begin.trim_end_matches('\0').strip_prefix(MEMORY);
            self.guest
                .remember(begin.ok_or("Cannot deserialize the microVM state")?)?;
            self.memory_mib = saved.memory_mib;
            self.uds_path = match &load.vsock_override {
                Some(vsock) => vsock.uds_path.clone(),
                None => saved.uds_path,
            };
            self.guest.open_vsock(&self.uds_path)
        };
        if let Err(error) = restored() {
            return Answer {
                then_quit: Some(format!("RestoreFromSnapshot: {error}")),
                ..fault(format!("Load snapshot error: {error}"))
            };
        }
        // A snapshot has it.
        self.told_of_reset = true;
        self.state = if load.resume_vm {
            self.resume();
            State::Running
        } else {
            State::Paused
        };
        Answer::done()
    }
}
