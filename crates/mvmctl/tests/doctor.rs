//! `mvmctl doctor` on machines on which something is amiss.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// A machine with nothing on it, and a home for VMs.
struct Machine {
    root: TempDir,
    variables: Vec<(&'static str, PathBuf)>,
}

/// What `doctor` says of it.
struct Report {
    code: Option<i32>,
    json: Value,
}

const NOWHERE: &str = "/nonexistent";

impl Machine {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let variables = vec![
            ("MVM_HOME", root.path().join("home")),
            ("MVM_KVM", root.path().join("kvm")),
            // One is beside mvmctl.
            ("MVM_AGENT", NOWHERE.into()),
            ("PATH", NOWHERE.into()),
            ("HOME", NOWHERE.into()),
        ];
        Self { root, variables }
    }

    fn with(mut self, variable: &'static str, value: impl Into<PathBuf>) -> Self {
        self.variables.push((variable, value.into()));
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// A program that does what the script says.
    fn program(&self, name: &str, script: &str) -> PathBuf {
        let (draft, path) = (self.path("draft"), self.path(name));
        fs::write(&draft, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&draft, fs::Permissions::from_mode(0o755)).unwrap();
        // By another process: what this one has open for writing cannot be run.
        let copied = Command::new("cp").arg(draft).arg(&path).status().unwrap();
        assert!(copied.success());
        path
    }

    fn doctor(&self) -> Report {
        self.doctor_by(Command::new(env!("CARGO_BIN_EXE_mvmctl")))
    }

    fn doctor_by(&self, mut command: Command) -> Report {
        let output = command
            .args(["doctor", "--json"])
            .env_clear()
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        let json = serde_json::from_slice(&output.stdout);
        Report {
            code: output.status.code(),
            json: json.unwrap_or_else(|error| panic!("{error}: {stderr}")),
        }
    }
}

impl Report {
    fn finding(&self, subject: &str) -> Option<&Value> {
        let findings = self.json["findings"].as_array().unwrap();
        findings
            .iter()
            .find(|finding| finding["subject"] == subject)
    }

    /// A finding of that level, in whose message or fix all of that stands.
    fn has(&self, subject: &str, level: &str, words: &[&str]) {
        let finding = self.finding(subject).unwrap_or(&Value::Null);
        assert_eq!(finding["level"], level, "{subject}: {finding}");
        let text = format!("{} {}", finding["message"], finding["fix"]);
        for word in words {
            assert!(text.contains(word), "{subject}: {finding} lacks {word:?}");
        }
    }
}

#[test]
fn what_is_missing_and_how_to_get_it() {
    let report = Machine::new().doctor();
    assert_eq!(report.code, Some(1));
    assert_eq!(report.json["can_start_vms"], false);
    for subject in ["qemu", "vhost-device-vsock"] {
        report.has(subject, "problem", &["cannot find", "install"]);
    }
    report.has(
        "agent",
        "warning",
        &["image build", "--backend local", "--agent"],
    );
    report.has("busybox", "warning", &["cannot find"]);
    report.has("firecracker", "ok", &["not installed"]);
    report.has("vhost-vsock", "ok", &["/dev/vhost-vsock"]);
}

#[test]
fn the_kvm_device_is_the_one_that_is_named() {
    let machine = Machine::new();
    let report = machine.doctor();
    let device = machine.path("kvm");
    report.has("kvm", "warning", &[device.to_str().unwrap(), "MVM_KVM"]);
    fs::write(&device, "").unwrap();
    let report = machine.doctor();
    report.has("kvm", "ok", &[device.to_str().unwrap()]);
}

#[test]
fn programs_that_are_not_what_they_should_be() {
    let machine = Machine::new();
    let broken = machine.program("broken", "echo 'QEMU emulator version 7.2.22'; exit 1");
    let other = machine.program("other", "echo 'true (GNU coreutils) 9.1'");
    let mute = machine.program("mute", "echo cloud-hypervisor");
    let machine = machine
        .with("MVM_QEMU", broken)
        .with("MVM_VHOST_DEVICE_VSOCK", other)
        .with("MVM_CLOUD_HYPERVISOR", mute)
        .with("MVM_FIRECRACKER", NOWHERE);
    fs::write(machine.path("kvm"), "").unwrap();
    // A kernel is where `cargo xtask` would have unpacked one.
    let unpacked = machine.path("mvm-xtask/kernel");
    for folder in ["boot", "lib/modules/6.1"] {
        fs::create_dir_all(unpacked.join(folder)).unwrap();
    }
    fs::write(unpacked.join("boot/vmlinuz-6.1"), "").unwrap();
    let cache = machine.path("");
    let machine = machine.with("XDG_CACHE_HOME", cache);
    let report = machine.doctor();
    assert_eq!(report.code, Some(1));
    report.has("kernel", "ok", &["vmlinuz-"]);
    report.has("kvm", "ok", &["not tried"]);
    report.has("qemu", "problem", &["fails (exit status: 1)", "MVM_QEMU"]);
    let another = ["another program", "GNU coreutils", "MVM_VHOST_DEVICE_VSOCK"];
    report.has("vhost-device-vsock", "problem", &another);
    report.has(
        "cloud-hypervisor",
        "warning",
        &["does not tell its version"],
    );
    report.has("firecracker", "warning", &["cannot find", NOWHERE]);
}

#[test]
fn programs_that_do_can_start_vms() {
    let machine = Machine::new();
    let qemu = machine.program("qemu", "echo 'QEMU emulator version 7.2.22 (Debian)'");
    let vsock = machine.program("vsock", "echo vhost-device-vsock 0.3.0");
    let old = machine.program("old", "echo Firecracker v1.16.0");
    let machine = machine
        .with("MVM_QEMU", qemu)
        .with("MVM_VHOST_DEVICE_VSOCK", vsock)
        .with("MVM_FIRECRACKER", old);
    let report = machine.doctor();
    assert_eq!(report.code, Some(0), "{}", report.json);
    report.has("qemu", "ok", &["7.2.22"]);
    report.has("firecracker", "warning", &["loses vsock", "1.16.1"]);
}

/// A missing one of two that only together run a VM is a problem even if the other is there.
#[test]
fn half_of_what_runs_vms_runs_none() {
    let machine = Machine::new();
    let qemu = machine.program("qemu", "echo 'QEMU emulator version 7.2.22 (Debian)'");
    let report = machine.with("MVM_QEMU", qemu).doctor();
    report.has("qemu", "ok", &[]);
    report.has("vhost-device-vsock", "problem", &["cannot find"]);
    assert_eq!(report.code, Some(1));
}

#[test]
fn a_program_that_hangs_is_ended_and_told() {
    let machine = Machine::new();
    let pid = machine.path("pid");
    let script = format!("echo $$ >{}; exec /bin/sleep 600", pid.display());
    let hangs = machine.program("hangs", &script);
    let machine = machine.with("MVM_FIRECRACKER", hangs);
    let report = machine.doctor();
    report.has(
        "firecracker",
        "warning",
        &["has not ended within 10s", "MVM_FIRECRACKER"],
    );
    let pid = fs::read_to_string(pid).unwrap();
    assert!(!Path::new("/proc").join(pid.trim()).exists());
}

#[test]
fn a_broken_mvmctl_toml_is_a_finding_among_the_others() {
    let machine = Machine::new();
    let config = machine.path("mvmctl.toml");
    fs::write(&config, "discovr = []").unwrap();
    let machine = machine.with("MVM_CONFIG", config);
    fs::create_dir_all(machine.path("home/vms/jailed")).unwrap();
    drop(UnixListener::bind(machine.path("home/vms/jailed/v.sock")).unwrap());
    let report = machine.doctor();
    report.has(
        "mvmctl.toml",
        "problem",
        &["unknown field `discovr`", "mend the file"],
    );
    report.has("qemu", "problem", &[]);
    report.has("vm jailed", "warning", &["nobody listens"]);
    assert_eq!(report.code, Some(1));
}

#[test]
fn sockets_that_mvmctl_toml_adds_are_looked_at() {
    let machine = Machine::new();
    let config = machine.path("mvmctl.toml");
    let pattern = machine.path("jailer/*/v.sock");
    fs::write(
        &config,
        format!("discover = [{:?}]", pattern.to_str().unwrap()),
    )
    .unwrap();
    let machine = machine.with("MVM_CONFIG", config);
    let listeners = ["dead", "live"].map(|name| {
        fs::create_dir_all(machine.path("jailer").join(name)).unwrap();
        UnixListener::bind(machine.path("jailer").join(name).join("v.sock")).unwrap()
    });
    let [dead, _live] = listeners;
    drop(dead);
    let report = machine.doctor();
    report.has("vm dead", "warning", &["nobody listens", "rm "]);
    assert_eq!(report.finding("vm live"), None);
}

#[test]
fn a_socket_that_may_not_be_opened_is_told() {
    let machine = Machine::new();
    fs::create_dir_all(machine.path("home/vms/jailed")).unwrap();
    let socket = machine.path("home/vms/jailed/v.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    assert_eq!(machine.doctor().finding("vm jailed"), None);
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o000)).unwrap();
    let report = machine.doctor_by(without_root_s_rights());
    report.has(
        "vm jailed",
        "warning",
        &["may not open its socket", "VMM's user"],
    );

    // One of our own, whose process is this very one.
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let start_ticks = stat
        .rsplit_once(") ")
        .unwrap()
        .1
        .split(' ')
        .nth(19)
        .unwrap();
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let record = serde_json::json!({
        "version": 1, "name": "jailed", "backend": "local", "state": "running", "image": null,
        "cpus": 1, "memory_mib": 256, "port": 52, "accelerator": null, "boot_id": boot_id.trim(),
        "processes": [{
            "role": "agent",
            "pid": std::process::id(),
            "start_ticks": start_ticks.parse::<u64>().unwrap(),
        }],
    });
    fs::write(socket.with_file_name("vm.json"), record.to_string()).unwrap();
    let report = machine.doctor_by(without_root_s_rights());
    report.has("vm jailed", "warning", &["may not open its socket"]);
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o600)).unwrap();
    let report = machine.doctor_by(without_root_s_rights());
    assert_eq!(report.finding("vm jailed"), None);
}

/// To root no mode says anything, unless that right is given up.
fn without_root_s_rights() -> Command {
    let mvmctl = env!("CARGO_BIN_EXE_mvmctl");
    if !rustix::process::geteuid().is_root() {
        return Command::new(mvmctl);
    }
    let mut command = Command::new("/usr/bin/setpriv");
    command
        .args(["--bounding-set", "-dac_override,-dac_read_search"])
        .arg(mvmctl);
    command
}
