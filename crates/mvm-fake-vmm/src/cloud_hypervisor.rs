//! Cloud Hypervisor's manners.
//!
//! ```text
//! empty ─ vm.create ─► created ─ vm.boot ─► running ◄─ vm.resume ─┐
//!   │                                          └──── vm.pause ──► paused ─ vm.snapshot
//!   └─ vm.restore ───────────────────────────────────────────────►  ▲
//! ```

use super::guest::Guest;
use super::http::{Answer, Request};
use super::{Vmm, body, quit};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// What the memory file has.
const MEMORY: &str = "memory of the guest";

pub(super) fn run(arguments: &[String], version: &str) -> ! {
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let socket = match arguments.as_slice() {
        ["--version"] => {
            println!("cloud-hypervisor v{version}");
            std::process::exit(0);
        }
        ["--api-socket", socket] => *socket,
        other => quit(&format!("not Cloud Hypervisor's arguments: {other:?}")),
    };
    let Some(socket) = socket.strip_prefix("path=") else {
        quit("the API socket has no path=");
    };
    let vmm = CloudHypervisor {
        version: version.to_owned(),
        state: State::Empty,
        config: None,
        guest: Guest::default(),
    };
    if vmm.major() >= 53 {
        // Which it leaves behind.
        fs::write(format!("{socket}.lock"), "").unwrap_or_else(|e| quit(&e.to_string()));
    }
    super::serve(socket, vmm)
}

struct CloudHypervisor {
    version: String,
    state: State,
    /// As `vm.create` or `config.json` had it.
    config: Option<Value>,
    guest: Guest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Empty,
    Created,
    Running,
    Paused,
}

/// What `vm.boot` understands of the VM.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct VmConfig {
    payload: Payload,
    cpus: Cpus,
    memory: Memory,
    #[serde(default)]
    disks: Vec<Disk>,
    vsock: Vsock,
    console: Console,
    serial: Serial,
    rng: Rng,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Payload {
    kernel: PathBuf,
    cmdline: String,
    initramfs: Option<PathBuf>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cpus {
    boot_vcpus: u8,
    max_vcpus: u8,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Memory {
    size: u64,
    shared: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Disk {
    path: PathBuf,
    readonly: bool,
    image_type: Option<ImageType>,
}

#[derive(Serialize, Deserialize)]
enum ImageType {
    FixedVhd,
    Qcow2,
    Raw,
    Vhdx,
    Unknown,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Vsock {
    cid: u32,
    socket: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Console {
    mode: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Serial {
    mode: String,
    file: PathBuf,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rng {
    src: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Snapshot {
    destination_url: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Restore {
    source_url: String,
    #[serde(default)]
    resume: bool,
}

impl Vmm for CloudHypervisor {
    fn answer(&mut self, request: &Request) -> Answer {
        let Some(action) = request.path.strip_prefix("/api/v1/") else {
            return Answer::refusal(404, "");
        };
        let done = match (request.method.as_str(), action) {
            ("GET", "vmm.ping") => {
                return Answer::ok(
                    json!({"build_version": format!("v{}", self.version),
                           "version": self.version, "pid": std::process::id(),
                           "features": ["kvm"]})
                    .to_string(),
                );
            }
            ("GET", "vm.info") => return self.info(),
            ("PUT", "vm.create") => match missing_field(request) {
                Some(missing) => {
                    let chain = json!(["Error from API", "Failed to deserialize", missing]);
                    return Answer::refusal(400, chain.to_string());
                }
                None => self.create(request),
            },
            ("PUT", "vm.boot") if self.state == State::Empty && self.major() >= 53 => {
                return Answer::refusal(404, "[\"Error from API\",\"VM is not created\"]");
            }
            ("PUT", "vm.boot") => self.boot(),
            ("PUT", "vm.pause") => self.step(State::Running, State::Paused, "pause"),
            ("PUT", "vm.resume") => self.step(State::Paused, State::Running, "resume"),
            ("PUT", "vm.snapshot") => self.snapshot(request),
            ("PUT", "vm.restore") => self.restore(request),
            ("PUT", "vm.power-button") if self.state == State::Running => {
                return Answer {
                    then_exit: true,
                    ..Answer::done()
                };
            }
            ("PUT", "vm.power-button") => Err("the VM is not running".to_owned()),
            _ => return Answer::refusal(404, ""),
        };
        match done {
            Ok(()) => Answer::done(),
            Err(why) => {
                let chain = json!(["Error from API", "The VM could not do it", why]);
                Answer::refusal(500, chain.to_string())
            }
        }
    }
}

/// What a configuration lacks. What it has too much of shows at the boot.
fn missing_field(request: &Request) -> Option<String> {
    let error = body::<VmConfig>(request).err()?;
    error.starts_with("missing field").then_some(error)
}

impl CloudHypervisor {
    fn major(&self) -> u32 {
        let major = self.version.split('.').next().unwrap_or_default();
        major.parse().unwrap_or(0)
    }

    fn info(&self) -> Answer {
        let state = match self.state {
            State::Empty => return Answer::refusal(500, "[\"VM is not created\"]"),
            State::Created => "Created",
            State::Running => "Running",
            State::Paused => "Paused",
        };
        Answer::ok(
            json!({"config": self.config, "state": state, "memory_actual_size": 1 << 28,
                   "device_tree": {}})
            .to_string(),
        )
    }

    fn step(&mut self, from: State, to: State, doing: &str) -> Result<(), String> {
        if self.state != from {
            return Err(format!("cannot {doing} a VM that is {:?}", self.state));
        }
        self.state = to;
        if to == State::Running {
            self.guest.run();
        } else {
            self.guest.pause();
        }
        Ok(())
    }

    /// That nothing is missing is checked, and no more.
    fn create(&mut self, request: &Request) -> Result<(), String> {
        if self.state != State::Empty {
            return Err("VM is already created".into());
        }
        self.config = Some(body(request)?);
        self.state = State::Created;
        Ok(())
    }

    fn boot(&mut self) -> Result<(), String> {
        if self.state != State::Created {
            return Err(format!("cannot boot a VM that is {:?}", self.state));
        }
        let config = self.config.clone().ok_or("no config")?;
        let config: VmConfig = serde_json::from_value(config).map_err(|e| e.to_string())?;
        let kernel = fs::read(&config.payload.kernel).map_err(|e| e.to_string())?;
        if !kernel.starts_with(b"\x7fELF") {
            return Err("Error loading kernel".into());
        }
        if config.console.mode != "Off" || config.serial.mode != "File" {
            return Err("no such mode".into());
        }
        if config.cpus.boot_vcpus == 0 || config.cpus.boot_vcpus > config.cpus.max_vcpus {
            return Err("Max number of vCPUs".into());
        }
        let knows_types = self.major() >= 51;
        for disk in &config.disks {
            match disk.image_type {
                Some(_) if !knows_types => return Err("unknown field `image_type`".into()),
                None | Some(ImageType::Unknown) if knows_types => {
                    println!("WARN: autodetection of disk image types is deprecated");
                }
                _ => {}
            }
        }
        let files = config.disks.iter().map(|disk| &disk.path);
        for file in files
            .chain(&config.payload.initramfs)
            .chain([&config.rng.src])
        {
            fs::metadata(file).map_err(|e| format!("{}: {e}", file.display()))?;
        }
        fs::write("boot_args", &config.payload.cmdline).map_err(|e| e.to_string())?;
        let agent = "mvm-guest-agent: listening on vsock port 52\n";
        fs::write(config.serial.file, agent).map_err(|e| e.to_string())?;
        self.guest.open_vsock(&config.vsock.socket)?;
        self.guest.run();
        self.state = State::Running;
        Ok(())
    }

    fn snapshot(&mut self, request: &Request) -> Result<(), String> {
        let snapshot: Snapshot = body(request)?;
        if self.state != State::Paused {
            return Err("VM must be paused before being snapshot".into());
        }
        let folder = folder(&snapshot.destination_url)?;
        let mut entries = fs::read_dir(folder).map_err(|e| e.to_string())?;
        if entries.next().is_some() {
            return Err("the folder is not empty".into());
        }
        // The real one has many keys more.
        let mut config = self.config.clone().unwrap_or_default();
        config["vsock"]["id"] = "_vsock2".into();
        config["balloon"] = Value::Null;
        for (file, content) in [
            ("config.json", config.to_string()),
            ("memory-ranges", format!("{MEMORY}{}", self.guest.memory())),
            ("state.json", "{}".to_owned()),
        ] {
            fs::write(folder.join(file), content).map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    fn restore(&mut self, request: &Request) -> Result<(), String> {
        let restore: Restore = body(request)?;
        if self.state != State::Empty {
            return Err("VM is already created".into());
        }
        let folder = folder(&restore.source_url)?;
        let read = |file| fs::read_to_string(folder.join(file)).map_err(|e| format!("{file}: {e}"));
        let config: Value =
            serde_json::from_str(&read("config.json")?).map_err(|e| e.to_string())?;
        read("state.json")?;
        let memory = read("memory-ranges")?;
        let memory = memory.strip_prefix(MEMORY);
        self.guest
            .remember(memory.ok_or("memory-ranges: wrong size")?)?;
        let text = |pointer| {
            let text = config.pointer(pointer).and_then(Value::as_str);
            text.ok_or_else(|| format!("{pointer} is missing"))
        };
        fs::write(text("/serial/file")?, "").map_err(|e| e.to_string())?;
        self.guest.open_vsock(text("/vsock/socket")?)?;
        self.config = Some(config);
        self.state = if restore.resume {
            self.guest.run();
            State::Running
        } else {
            State::Paused
        };
        Ok(())
    }
}

fn folder(url: &str) -> Result<&Path, String> {
    url.strip_prefix("file://")
        .map(Path::new)
        .ok_or_else(|| format!("no file:// URL: {url}"))
}
