//! Files of this machine that stand for nixpkgs' packages: `stand-in/pkgs.nix` takes them from there.
//!
//! ```text
//! busybox, bash               static
//! tools/NAME/{bin,lib}        programs with their loader and libraries
//! kernel/                     as a kernel's package is laid out: bzImage, lib/modules/VERSION
//! agent/bin, agent-dev/bin    the agent, and its dev build
//! ```

use mvm_guest_tests::Parts;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Debian's packages, and which of their programs are taken.
const TOOLS: [(&str, &[&str]); 5] = [
    ("cpio", &["cpio"]),
    ("e2fsprogs", &["mke2fs", "debugfs"]),
    ("erofs-utils", &["mkfs.erofs"]),
    ("gzip", &["gzip"]),
    ("zstd", &["zstd"]),
];

/// Folders of modules that the guests' modules are in, and those that they depend on.
const MODULES: [&str; 7] = [
    "drivers/block",
    "drivers/net",
    "drivers/virtio",
    "fs/erofs",
    "fs/overlayfs",
    "lib",
    "net",
];

/// Modules that are packed, as other distributions have them all.
const PACKED: [(&str, &[&str], &str); 3] = [
    ("kernel/net/vmw_vsock/vsock.ko", &["gzip"], "gz"),
    ("kernel/fs/overlayfs/overlay.ko", &["xz"], "xz"),
    (
        "kernel/fs/erofs/erofs.ko",
        &["zstd", "--quiet", "--rm"],
        "zst",
    ),
];

/// Fills the folder.
pub(crate) fn fill(folder: &Path, given: &Parts) {
    copy(&given.busybox, &folder.join("busybox"));
    copy(&which("bash-static"), &folder.join("bash"));
    for (package, programs) in TOOLS {
        for program in programs {
            tool(&which(program), &folder.join("tools").join(package));
        }
    }
    kernel(given, &folder.join("kernel"));
    copy(&given.agent, &folder.join("agent/bin/mvm-guest-agent"));
    copy(
        &given.dev_agent,
        &folder.join("agent-dev/bin/mvm-guest-agent"),
    );
}

/// A program, with its loader and libraries.
fn tool(program: &Path, folder: &Path) {
    let name = program.file_name().expect("a name");
    copy(program, &folder.join("bin").join(name));
    let listed = Command::new("ldd").arg(program).output().expect("run ldd");
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    for library in listed
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
    {
        let library = Path::new(library);
        let name = library.file_name().expect("a name");
        copy(library, &folder.join("lib").join(name));
    }
}

fn kernel(given: &Parts, folder: &Path) {
    copy(&given.kernel, &folder.join("bzImage"));
    let version = given.modules.file_name().expect("a version");
    let modules = folder.join("lib/modules").join(version);
    for part in MODULES {
        let from = given.modules.join("kernel").join(part);
        let to = modules.join("kernel").join(part);
        fs::create_dir_all(to.parent().expect("in a folder")).expect("make a folder");
        run(Command::new("cp").arg("-r").arg(from).arg(to));
    }
    copy(
        &given.modules.join("modules.builtin"),
        &modules.join("modules.builtin"),
    );
    run(Command::new(&given.busybox)
        .arg("depmod")
        .arg("-b")
        .arg(folder)
        .arg(version));
    let list = modules.join("modules.dep");
    let mut text = fs::read_to_string(&list).expect("read modules.dep");
    for (module, packer, suffix) in PACKED {
        let (program, flags) = packer.split_first().expect("a program");
        run(Command::new(program).args(flags).arg(modules.join(module)));
        for end in [":", " ", "\n"] {
            text = text.replace(
                &format!("{module}{end}"),
                &format!("{module}.{suffix}{end}"),
            );
        }
    }
    fs::write(&list, text).expect("write modules.dep");
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().expect("in a folder")).expect("make a folder");
    // By its content, where it is a link.
    fs::copy(from, to).unwrap_or_else(|error| panic!("copy {}: {error}", from.display()));
}

fn run(command: &mut Command) {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// Where a program is: also where only root's `PATH` leads.
fn which(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(program))
        .find(|file| file.is_file());
    let found = found.unwrap_or_else(|| {
        panic!("`{program}` is not installed; `cargo xtask test nix` installs it")
    });
    fs::canonicalize(found).expect("a file")
}
