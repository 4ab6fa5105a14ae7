//! For tests alone: builds the guest in `guest/` into an image folder, as `mvmctl vm start --image`
//! takes it. See README.md for what it does.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

/// Without the standard library and startup code, at addresses of its own, and with general registers
/// alone: nothing has made the others usable.
const FLAGS: &[&str] = &[
    "-std=gnu11",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-O1",
    "-ffreestanding",
    "-fno-pic",
    "-fno-pie",
    "-mno-red-zone",
    "-mgeneral-regs-only",
    "-fno-stack-protector",
    "-fcf-protection=none",
    "-fno-tree-vectorize",
    "-fno-tree-loop-distribute-patterns",
    "-fno-asynchronous-unwind-tables",
    "-static",
    "-nostdlib",
    "-Wl,-Ttext=0x1000000",
    "-Wl,-e,_start",
    "-Wl,-z,noexecstack",
    "-Wl,--build-id=none",
];

/// The name of the kernel's file in the image.
pub const KERNEL: &str = "vmlinux";

/// Compiles the guest as `vmlinux` in a folder that is there. Takes gcc for x86-64, or the compiler
/// that `CC` names.
pub fn build(folder: &Path) -> io::Result<()> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest");
    let mut files = Vec::new();
    for entry in fs::read_dir(sources)? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|kind| kind == "c" || kind == "S")
        {
            files.push(path);
        }
    }
    files.sort();
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "gcc".into());
    let output = Command::new(&compiler)
        .args(FLAGS)
        .arg("-o")
        .arg(folder.join(KERNEL))
        .args(files)
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!(
        "{} cannot build the bare guest: {said}",
        compiler.display()
    )))
}
