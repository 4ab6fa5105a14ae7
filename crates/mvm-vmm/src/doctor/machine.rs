//! The machine itself: devices, kernels, and the folder that VMs are kept in.

use super::{Finding, Level};
use crate::build::installed_kernel;
use crate::deadline::Deadline;
use crate::locate::QEMU;
use crate::microvm::{kvm_device, open_kvm};
use crate::qemu::kvm::{self, Verdict};
use mvm_registry::Home;
use rustix::fs::{Access, access, statvfs};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

/// The device by which the kernel's own vsock reaches guests.
const VHOST_VSOCK: &str = "/dev/vhost-vsock";

/// What is left on a disk that is called nearly full, in bytes: the memory of one guest by default.
const SCARCE: u64 = 256 << 20;

/// It is tried only in a QEMU that does: what another program says is not said of KVM.
pub(super) fn kvm(home: &Home, qemu_does: bool, deadline: Deadline<'_>) -> Finding {
    const SUBJECT: &str = "kvm";
    let device = kvm_device();
    let device = device.display();
    let emulated = |reason: &str, fix: &str| {
        let message = format!("{reason}; guests are emulated, which is about ten times slower");
        Finding::amiss(Level::Warning, SUBJECT, message, fix)
    };
    if let Err(error) = open_kvm() {
        let fix = match error.kind() {
            ErrorKind::NotFound => {
                "enable virtualization in the firmware, or nested virtualization in the \
                 hypervisor; if the device has another name, say it in MVM_KVM"
                    .to_owned()
            }
            ErrorKind::PermissionDenied => {
                format!("join the group that owns {device} (usually `kvm`)")
            }
            _ => "load the module kvm_intel or kvm_amd".to_owned(),
        };
        return emulated(&format!("cannot open {device}: {error}"), &fix);
    }
    let qemu = QEMU.find().ok().filter(|_| qemu_does);
    let (Some(qemu), Some(kernel)) = (qemu, installed_kernel()) else {
        let message =
            format!("{device} can be opened; not tried for want of a QEMU that works or a kernel");
        return Finding::ok(SUBJECT, message);
    };
    match kvm::verdict(home, &qemu, &kernel, deadline) {
        Ok(Verdict::Usable) => Finding::ok(SUBJECT, "boots a kernel"),
        Ok(Verdict::Unusable(reason)) => emulated(
            &format!("{device} is there and boots no kernel: {reason}"),
            "look at how the hypervisor below nests virtualization",
        ),
        Err(error) => emulated(&error.to_string(), "try again"),
    }
}

/// It is not opened: that would load the module, and is more than was asked.
pub(super) fn vhost_vsock() -> Finding {
    let needed = "addresses vsock:CID alone need it";
    let message = match access(VHOST_VSOCK, Access::READ_OK | Access::WRITE_OK) {
        Ok(()) => format!("{VHOST_VSOCK} may be opened"),
        Err(error) => {
            let error = std::io::Error::from(error);
            format!("{VHOST_VSOCK}: {error}; {needed}")
        }
    };
    Finding::ok("vhost-vsock", message)
}

pub(super) fn kernel() -> Finding {
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
pub(super) fn home_folder(home: &Home) -> Finding {
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
    if let Err(error) = access(there, Access::WRITE_OK) {
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
        Ok(_) => room_in(there)
            .and_then(scarce)
            .unwrap_or_else(|| Finding::ok(SUBJECT, shown.to_string())),
        Err(_) => Finding::ok(SUBJECT, format!("{shown} is made by the first start")),
    }
}

/// How many bytes this user has left there, and where that is; none if the system does not say.
fn room_in(folder: &Path) -> Option<(&Path, u64)> {
    let room = statvfs(folder).ok()?;
    Some((folder, room.f_bavail.saturating_mul(room.f_frsize)))
}

/// What to say of a disk on which no guest's memory finds room.
fn scarce((folder, bytes): (&Path, u64)) -> Option<Finding> {
    (bytes < SCARCE).then(|| {
        let left = bytes >> 20;
        let shown = folder.display();
        Finding::amiss(
            Level::Warning,
            "home",
            format!("{shown} has {left} MiB left on its disk: a snapshot finds no room there"),
            format!("make room: `du -xsh {shown}/*` says what takes it"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_is_nearly_full_is_told() {
        assert_eq!(scarce((Path::new("/mvm"), SCARCE)), None);
        let finding = scarce((Path::new("/mvm"), 3 << 20)).unwrap();
        assert_eq!(finding.level, Level::Warning);
        assert!(
            finding.message.contains("/mvm has 3 MiB left"),
            "{finding:?}"
        );
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
