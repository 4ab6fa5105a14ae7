//! What builds for aarch64 on x86-64, and runs what was built: Debian 12's packages, unpacked into our
//! cache. rustup would bring a standard library for aarch64; Debian has one with its compiler, whose
//! version of the day it follows.

use super::apt::{dependency, download, lists_of, unpack_into};
use super::{Scratch, cache, is_debian};
use crate::build::Target;
use crate::sh::{Failure, Result, Tried as _, say};
use std::fs;
use std::path::{Path, PathBuf};

/// Rust as of this month is in the security suite, since browsers are built by it; an emulator that
/// knows the system calls of this decade is in the backports.
const DEBIAN_12: &[(&str, &str)] = &[
    ("http://deb.debian.org/debian", "bookworm"),
    ("http://deb.debian.org/debian", "bookworm-backports"),
    ("http://deb.debian.org/debian-security", "bookworm-security"),
];

/// The compiler without what only other uses of it take, and the standard library of either
/// architecture: programs that run during a build are of this machine's.
const RUST: [&str; 3] = [
    "rustc-web",
    "libstd-rust-web-dev",
    "libstd-rust-web-dev:arm64",
];

/// The linker's driver, the C library, and what compiles the C in `ring`.
const C: [&str; 7] = [
    "binutils-aarch64-linux-gnu",
    "cpp-12-aarch64-linux-gnu",
    "gcc-12-aarch64-linux-gnu",
    "libc6-arm64-cross",
    "libc6-dev-arm64-cross",
    "libgcc-12-dev-arm64-cross",
    "linux-libc-dev-arm64-cross",
];

/// What those load, but for what every machine has that Rust links on: the C library and GCC's.
const LIBRARIES: [&str; 16] = [
    "libbsd0",
    "libedit2",
    "libffi8",
    "libgmp10",
    "libicu72",
    "libisl23",
    "libjansson4",
    "liblzma5",
    "libmd0",
    "libmpc3",
    "libmpfr6",
    "libtinfo6",
    "libxml2",
    "libz3-4",
    "libzstd1",
    "zlib1g",
];

const EMULATOR: &str = "qemu-user/bookworm-backports";

/// aarch64, as a target of cargo's.
pub(crate) fn aarch64() -> Result<Target> {
    let own = std::env::consts::ARCH;
    if own != "x86_64" {
        return Err(Failure(format!(
            "the compiler for aarch64 is one that runs on x86_64, and this machine is {own}. On \
             aarch64 itself `cargo xtask build` builds the same programs"
        )));
    }
    let home = cache()?.join("aarch64");
    if home.join("usr/bin/rustc").is_file() {
        return target(&home);
    }
    if !is_debian() {
        return Err(Failure(format!(
            "a compiler for aarch64 is missing. Unpack what Debian 12 calls {} into {}",
            [&RUST[..], &C, &LIBRARIES, &[EMULATOR, "lld-22"]]
                .concat()
                .join(" "),
            home.display()
        )));
    }
    say(format!(
        "A compiler for aarch64 is missing, and an emulator for what it builds. Unpacking Debian 12's \
         into {}, which takes about a minute and 1.3 GB.",
        home.display()
    ));
    let scratch = Scratch::new(&cache()?.join(format!("aarch64-{}", std::process::id())))?;
    let apt = lists_of(scratch.path(), DEBIAN_12, &["amd64", "arm64"])?;
    // Their names have versions in them.
    let compiler = dependency("libstd-rust-web-dev", "libstd-rust-web-", &apt)?;
    let llvm = dependency(&compiler, "libllvm", &apt)?;
    let lld = format!("lld-{}", llvm.trim_start_matches("libllvm"));
    let named = [EMULATOR, &compiler, &llvm, &lld];
    let all = [&RUST[..], &C, &LIBRARIES, &named].concat();
    download(&scratch, &all, &apt)?;
    unpack_into(&home, &scratch)?;
    target(&home)
}

fn target(home: &Path) -> Result<Target> {
    let usr = home.join("usr");
    let bin = usr.join("bin");
    let gcc = bin.join("aarch64-linux-gnu-gcc-12");
    let emulator = bin.join("qemu-aarch64");
    let target = Target {
        arch: "aarch64",
        env: vec![
            ("RUSTC", bin.join("rustc").into()),
            (
                "LD_LIBRARY_PATH",
                usr.join("lib/x86_64-linux-gnu").into_os_string(),
            ),
            (
                "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER",
                gcc.clone().into(),
            ),
            (
                "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER",
                emulator.clone().into(),
            ),
            ("CC_aarch64_unknown_linux_gnu", gcc.into()),
            (
                "AR_aarch64_unknown_linux_gnu",
                bin.join("aarch64-linux-gnu-ar").into(),
            ),
            // Where GCC finds LLD.
            ("COMPILER_PATH", lld(&usr)?.into()),
        ],
        lld: Some("-C link-arg=-fuse-ld=lld"),
        runner: Some(emulator),
    };
    Ok(target)
}

/// The folder of LLVM's linker, which has LLVM's version in its name.
fn lld(usr: &Path) -> Result<PathBuf> {
    let listing = fs::read_dir(usr.join("lib")).tried("list the compiler's libraries")?;
    listing
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .find(|folder| folder.join("ld.lld").is_file())
        .ok_or_else(|| {
            Failure(format!(
                "{} has no LLD. Remove the folder above it and try again",
                usr.display()
            ))
        })
}
