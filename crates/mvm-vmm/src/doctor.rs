//! What on this machine is in the way of starting VMs, and how to mend it.
//!
//! Nothing is started but a trial of KVM, and no VM is dialled.

use crate::build::installed_kernel;
use crate::driver;
use crate::error::Error;
use crate::firecracker::loses_vsock;
use crate::launch::Patience;
use crate::locate::{BUSYBOX, CLOUD_HYPERVISOR, FIRECRACKER, Program, QEMU, VHOST_DEVICE_VSOCK};
use crate::qemu::kvm::{self, Verdict};
use crate::record::{Home, Record, State, VmName};
use crate::suspend::may_be_broken_off;

use serde::Serialize;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// As it should be, or no matter.
    Ok,
    /// VMs can be started, but something is amiss.
    Warning,
    /// No VM can be started.
    Problem,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub subject: String,
    /// How bad it is.
    pub level: Level,
    /// What was found.
    pub message: String,
    /// How to mend it.
    pub fix: Option<String>,
}

impl Finding {
    fn ok(subject: &str, message: impl Into<String>) -> Self {
        Self {
            subject: subject.to_owned(),
            level: Level::Ok,
            message: message.into(),
            fix: None,
        }
    }

    fn amiss(
        level: Level,
        subject: &str,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            level,
            fix: Some(fix.into()),
            ..Self::ok(subject, message)
        }
    }
}

/// Looks at everything. The patience is for the trial of KVM.
pub fn examine(home: &Home, patience: Patience<'_>) -> Vec<Finding> {
    let mut findings = vec![kvm(home, patience)];
    findings.extend([
        needed("qemu", &QEMU),
        needed("vhost-device-vsock", &VHOST_DEVICE_VSOCK),
        firecracker(),
        other_vmm(&CLOUD_HYPERVISOR),
        kernel(),
        for_images("busybox", &BUSYBOX),
        home_folder(home),
    ]);
    findings.extend(vms(home));
    findings
}

/// Whether nothing stands in the way of starting a VM.
pub fn can_start_vms(findings: &[Finding]) -> bool {
    findings.iter().all(|f| f.level != Level::Problem)
}

fn kvm(home: &Home, patience: Patience<'_>) -> Finding {
    const SUBJECT: &str = "kvm";
    let emulated = |reason: &str, fix: &str| {
        let message = format!("{reason}; guests are emulated, which is about ten times slower");
        Finding::amiss(Level::Warning, SUBJECT, message, fix)
    };
    if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
        let fix = match error.kind() {
            ErrorKind::NotFound => {
                "enable virtualization in the firmware, or nested virtualization in the hypervisor"
            }
            ErrorKind::PermissionDenied => "join the group that owns /dev/kvm (usually `kvm`)",
            _ => "load the module kvm_intel or kvm_amd",
        };
        return emulated(&format!("cannot open /dev/kvm: {error}"), fix);
    }
    let (Ok(qemu), Some(kernel)) = (QEMU.find(), installed_kernel()) else {
        return Finding::ok(
            SUBJECT,
            "/dev/kvm can be opened; not tried for want of QEMU or a kernel",
        );
    };
    match kvm::verdict(home, &qemu, &kernel, patience) {
        Ok(Verdict::Usable) => Finding::ok(SUBJECT, "boots a kernel"),
        Ok(Verdict::Unusable(reason)) => emulated(
            &format!("/dev/kvm is there and boots no kernel: {reason}"),
            "look at how the hypervisor below nests virtualization",
        ),
        Err(error) => emulated(&error.to_string(), "try again"),
    }
}

/// A program without which no guest runs, unless another VMM can.
fn needed(subject: &str, program: &Program) -> Finding {
    match program.find() {
        Ok(path) => Finding::ok(subject, describe(&path)),
        Err(error) if driver::any_is_there() => missing(Level::Warning, subject, &error),
        Err(error) => missing(Level::Problem, subject, &error),
    }
}

/// A program without which no image is built; those that there are can be started.
fn for_images(subject: &str, program: &Program) -> Finding {
    match program.find() {
        Ok(path) => Finding::ok(subject, path.display().to_string()),
        Err(error) => missing(Level::Warning, subject, &error),
    }
}

fn missing(level: Level, subject: &str, error: &Error) -> Finding {
    Finding {
        subject: subject.to_owned(),
        level,
        message: error.to_string(),
        fix: error.hint(),
    }
}

fn firecracker() -> Finding {
    let finding = other_vmm(&FIRECRACKER);
    match firecracker_flaw(&finding.message) {
        None => finding,
        Some(flaw) => Finding::amiss(
            Level::Warning,
            FIRECRACKER.name,
            format!("{}: {flaw}", finding.message),
            "install Firecracker 1.16.1 or later",
        ),
    }
}

/// What is wrong with the version of Firecracker that a text names.
fn firecracker_flaw(text: &str) -> Option<&'static str> {
    let version @ (major, minor, micro) = parse_version(text)?;
    if loses_vsock(&format!("{major}.{minor}.{micro}")) {
        Some("loses vsock for good when a VM is restored; no snapshot is taken with it")
    } else if version < (1, 16, 1) {
        Some("can lose vsock for good when a VM is restored")
    } else {
        None
    }
}

/// A VMM that is told of if it is there.
fn other_vmm(program: &Program) -> Finding {
    match program.find() {
        Ok(path) => Finding::ok(program.name, describe(&path)),
        // One that was named and is not there is meant to be.
        Err(error) if is_set(program.variable) => missing(Level::Warning, program.name, &error),
        Err(_) => Finding::ok(program.name, "not installed, and not needed"),
    }
}

fn is_set(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| !value.is_empty())
}

/// What a program says of itself, and where it is.
fn describe(path: &Path) -> String {
    let output = Command::new(path).arg("--version").output();
    let said = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let first = said.as_deref().unwrap_or_default().lines().next();
    match first.map(str::trim).filter(|line| !line.is_empty()) {
        Some(version) => format!("{version} ({})", path.display()),
        None => format!("{}, which does not tell its version", path.display()),
    }
}

/// The first `1.2.3` in a text.
fn parse_version(text: &str) -> Option<(u32, u32, u32)> {
    text.split_whitespace().find_map(|word| {
        let mut parts = word.trim_start_matches('v').split('.');
        let mut number = || -> Option<u32> {
            let digits: String = parts
                .next()?
                .chars()
                .take_while(char::is_ascii_digit)
                .collect();
            digits.parse().ok()
        };
        Some((number()?, number()?, number()?))
    })
}

fn kernel() -> Finding {
    match installed_kernel() {
        Some(path) => Finding::ok("kernel", path.display().to_string()),
        None => Finding::amiss(
            Level::Warning,
            "kernel",
            "none with modules in /boot and /lib/modules: `mvmctl image build` needs --kernel",
            "apt-get install linux-image-cloud-amd64, or unpack that package somewhere",
        ),
    }
}

/// Whether VMs can be kept in `$MVM_HOME`, and by whom.
fn home_folder(home: &Home) -> Finding {
    const SUBJECT: &str = "home";
    let root = home.root();
    let shown = root.display();
    let fix = "set MVM_HOME to a folder of your own";
    // What is not there yet is made in the nearest folder above it.
    let Some(there) = root.ancestors().find(|folder| folder.exists()) else {
        return Finding::amiss(
            Level::Problem,
            SUBJECT,
            format!("{shown}: no such path"),
            fix,
        );
    };
    if let Err(error) = rustix::fs::access(there, rustix::fs::Access::WRITE_OK) {
        let message = format!("cannot write to {}: {error}", there.display());
        return Finding::amiss(Level::Problem, SUBJECT, message, fix);
    }
    let vms = home.vms();
    match std::fs::metadata(&vms) {
        Ok(metadata) if metadata.permissions().mode() & 0o022 != 0 => Finding::amiss(
            Level::Warning,
            SUBJECT,
            format!(
                "{} (owner {}) can be written by others, who could take over every VM",
                vms.display(),
                metadata.uid()
            ),
            format!("chmod 700 {}", vms.display()),
        ),
        Ok(_) => Finding::ok(SUBJECT, shown.to_string()),
        Err(_) => Finding::ok(SUBJECT, format!("{shown} is made by the first start")),
    }
}

/// VMs of which something is left that should not be.
fn vms(home: &Home) -> Vec<Finding> {
    let Ok(entries) = std::fs::read_dir(home.vms()) else {
        return Vec::new();
    };
    let mut names: Vec<_> = entries
        .filter_map(|entry| VmName::new(entry.ok()?.file_name().to_str()?).ok())
        .collect();
    names.sort_by_key(ToString::to_string);
    names
        .iter()
        .filter_map(|name| vm(name, &home.vm(name).record(), &home.vm(name).file("v.sock")))
        .collect()
}

fn vm(name: &VmName, record: &Result<Record, Error>, socket: &Path) -> Option<Finding> {
    let subject = format!("vm {name}");
    let warn =
        |message: String, fix: String| Some(Finding::amiss(Level::Warning, &subject, message, fix));
    match record {
        Ok(record) => {
            let main = driver::by_name(&record.backend).map(driver::Driver::main_role);
            let (runs, all) = match (main, record.alive()) {
                (Ok(main), Ok(alive)) => (
                    alive.iter().any(|process| process.role == main),
                    alive.len() == record.processes.len(),
                ),
                (Err(error), _) | (_, Err(error)) => {
                    return warn(error.to_string(), "use the mvmctl that started it".into());
                }
            };
            let clear = || format!("mvmctl vm stop {name}");
            match record.state {
                State::Running if !runs => warn("it has ended by itself".into(), clear()),
                State::Running if !all => {
                    let again = format!("mvmctl vm stop {name}, and start it again");
                    warn(
                        "a process of it has ended that its guest is reached by".into(),
                        again,
                    )
                }
                _ if may_be_broken_off(&record).unwrap_or_default() => warn(
                    "a snapshot of it is being taken, or was broken off".into(),
                    format!("if nobody is taking one: mvmctl vm wake {name}"),
                ),
                // Which of the two, only the lock would tell, and taking it would be in the way.
                State::Stopped if runs => warn(
                    "it is being started, or its start was broken off".into(),
                    format!("if nobody is starting it: {}", clear()),
                ),
                State::Stopped | State::Asleep if socket.exists() && !runs => warn(
                    "its socket is left, and nobody listens there".into(),
                    clear(),
                ),
                _ => None,
            }
        }
        Err(Error::NotOurs { .. }) => (!has_listener(socket)).then(|| {
            let socket = socket.display();
            Finding::amiss(
                Level::Warning,
                &subject,
                format!("nobody listens on {socket}: what made it has ended"),
                format!("rm {socket}"),
            )
        }),
        Err(Error::NoSuchVm { .. }) => None,
        Err(error) => warn(error.to_string(), error.hint().unwrap_or_default()),
    }
}

/// Whether a process has that socket open for listening, as the kernel's list says. Dialling would
/// tell too, but can wedge the socket of a VM that is paused.
fn has_listener(socket: &Path) -> bool {
    /// `__SO_ACCEPTCON` in the column of flags: it listens.
    const LISTENS: &str = "00010000";
    let Ok(list) = std::fs::read_to_string("/proc/net/unix") else {
        // Without a list there is no saying.
        return true;
    };
    let path = socket.to_string_lossy();
    list.lines().any(|line| {
        let columns: Vec<_> = line.split_whitespace().collect();
        columns.get(3) == Some(&LISTENS) && columns.get(7) == Some(&path.as_ref())
    })
}

/// How long the trial of KVM may take.
pub const TRIAL: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn versions() {
        assert_eq!(parse_version("Firecracker v1.16.0 (/x)"), Some((1, 16, 0)));
        assert_eq!(
            parse_version("QEMU emulator version 7.2.22 (Debian)"),
            Some((7, 2, 22))
        );
        assert_eq!(parse_version("v2.0.1-dirty"), Some((2, 0, 1)));
        assert_eq!(parse_version("no version"), None);
    }

    #[test]
    fn versions_of_firecracker_with_a_broken_vsock_device() {
        let flaw = |text| firecracker_flaw(text);
        let broken = flaw("Firecracker v1.16.0 (/usr/bin/firecracker)");
        assert!(broken.is_some_and(|flaw| flaw.contains("no snapshot is taken")));
        assert!(flaw("Firecracker v1.15.2").is_some());
        assert_eq!(flaw("Firecracker v1.16.1"), None);
        assert_eq!(flaw("not installed, and not needed"), None);
    }

    #[test]
    fn a_socket_that_nobody_listens_on_is_found_without_dialling() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::at(root.path());
        let folder = home.vm(&VmName::new("jailed").unwrap());
        std::fs::create_dir_all(folder.path()).unwrap();
        let listener = UnixListener::bind(folder.file("v.sock")).unwrap();
        assert_eq!(vms(&home), []);
        drop(listener);
        let [finding] = vms(&home).try_into().unwrap();
        assert_eq!(
            (finding.level, &*finding.subject),
            (Level::Warning, "vm jailed")
        );
        assert!(finding.fix.unwrap().starts_with("rm "));
    }

    #[test]
    fn a_vm_that_ended_by_itself_is_found() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::at(root.path());
        let folder = home.vm(&VmName::new("web").unwrap());
        std::fs::create_dir_all(folder.path()).unwrap();
        let record = r#"{"version":1,"name":"web","backend":"qemu","state":"running","image":null,
            "cpus":1,"memory_mib":256,"port":52,"accelerator":"tcg","boot_id":"x","processes":[]}"#;
        std::fs::write(folder.file("vm.json"), record).unwrap();
        let [finding] = vms(&home).try_into().unwrap();
        assert_eq!(finding.message, "it has ended by itself");
        assert_eq!(finding.fix.unwrap(), "mvmctl vm stop web");
        let stopped = record.replace("running", "stopped");
        std::fs::write(folder.file("vm.json"), stopped).unwrap();
        assert_eq!(vms(&home), []);
    }

    #[test]
    fn a_home_that_others_can_write_is_told() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::at(root.path().join("mvm"));
        assert_eq!(home_folder(&home).level, Level::Ok);
        std::fs::create_dir_all(home.vms()).unwrap();
        assert_eq!(home_folder(&home).level, Level::Ok);
        let open = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(home.vms(), open).unwrap();
        let finding = home_folder(&home);
        assert_eq!(finding.level, Level::Warning);
        assert!(finding.fix.unwrap().starts_with("chmod 700"));
    }
}
