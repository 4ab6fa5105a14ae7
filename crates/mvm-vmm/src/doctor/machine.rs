//! The machine itself: devices, kernels, and the folder that VMs are kept in.

use super::{Finding, Level};
use crate::build::installed_kernel;
use crate::deadline::Deadline;
use crate::locate::QEMU;
use crate::microvm::{kvm_device, open_kvm};
use crate::qemu::kvm::{self, Verdict};
use mvm_registry::Home;
use rustix::fs::{Access, access};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

/// The device by which the kernel's own vsock reaches guests.
const VHOST_VSOCK: &str = "/dev/vhost-vsock";

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
        Ok(_) => Finding::ok(SUBJECT, shown.to_string()),
        Err(_) => Finding::ok(SUBJECT, format!("{shown} is made by the first start")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
