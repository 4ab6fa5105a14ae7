//! The guest with systemd as a host of VMs: an agent without a guest stands for each (`--backend local`),
//! since there is no VMM within an emulated guest.

use mvm_guest_tests::{SystemdVm, package_file};
use std::path::Path;
use std::process::Command;

/// Installs mvmctl and files of `packaging/systemd`, each to a place in the guest.
pub(crate) async fn install(vm: &SystemdVm, files: &[(&str, &str)]) {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("mvmctl");
    // Without its symbols, which are most of it and have no room in the guest.
    let stripped = Command::new("strip")
        .arg("-o")
        .args([&program, vm.mvmctl().program()])
        .status();
    assert!(stripped.unwrap().success());
    let copy = |from: &Path, to: &str| {
        let to = format!("{}:{to}", vm.name());
        let from = from.to_str().unwrap();
        vm.mvmctl().ok(&["vm", "cp", from, to.as_str()]);
    };
    vm.sh("mkdir -p /usr/lib/mvm /etc/mvm/vms").await;
    copy(&program, "/usr/bin/mvmctl");
    let packaged = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/systemd");
    for (file, to) in files {
        copy(&packaged.join(file), to);
    }
    vm.sh("chmod 755 /usr/bin/mvmctl; systemctl daemon-reload")
        .await;
}

/// Installs mvmctl by its Debian package, or upgrades it to another revision, and gives what dpkg said.
pub(crate) async fn install_package(vm: &SystemdVm, packages: &Path, revision: u32) -> String {
    let package = package_file(packages, "mvmctl", revision);
    let to = format!("{}:/tmp/mvmctl.deb", vm.name());
    vm.mvmctl()
        .ok(&["vm", "cp", package.to_str().unwrap(), to.as_str()]);
    vm.sh("dpkg -i /tmp/mvmctl.deb 2>&1; echo $?; rm /tmp/mvmctl.deb")
        .await
}
