//! Programs that cargo installs, into a folder of the user's cache.

use super::{Scratch, cache};
use crate::sh::{Cmd, Result, say, which};
use std::path::PathBuf;

/// A program that cargo installs.
pub(crate) struct Tool {
    /// The crate, and the program.
    name: &'static str,
    version: &'static str,
    why: &'static str,
    /// On two cores, download included.
    time: &'static str,
    options: &'static [&'static str],
}

pub(crate) const NEXTEST: Tool = Tool {
    name: "cargo-nextest",
    version: "0.9.143",
    why: "runs the tests",
    time: "two minutes",
    // A debug build compiles in half the time, and a test runner mostly waits.
    options: &[
        "--profile=dev",
        "--no-default-features",
        "--features=default-no-update",
    ],
};
pub(crate) const DENY: Tool = Tool {
    name: "cargo-deny",
    version: "0.20.2",
    why: "checks licences, sources and duplicates of our dependencies",
    time: "a minute",
    options: &["--profile=dev"],
};
pub(crate) const VSOCK_BACKEND: Tool = Tool {
    name: "vhost-device-vsock",
    version: "0.3.0",
    why: "gives QEMU guests the Unix socket by which the host reaches them",
    time: "a minute",
    options: &[],
};
pub(crate) const DEB: Tool = Tool {
    name: "cargo-deb",
    version: "3.8.0",
    why: "writes Debian packages",
    time: "a minute",
    // Without a library of its own it runs `xz`.
    options: &["--profile=dev", "--no-default-features"],
};
pub(crate) const CYCLONEDX: Tool = Tool {
    name: "cargo-cyclonedx",
    version: "0.5.9",
    why: "lists what a program is made of",
    time: "two minutes",
    options: &["--profile=dev"],
};
pub(crate) const FUZZ: Tool = Tool {
    name: "cargo-fuzz",
    version: "0.13.2",
    why: "builds and runs the fuzz targets",
    time: "half a minute",
    options: &["--profile=dev"],
};

impl Tool {
    /// The program, installed if neither `PATH` nor our cache has it.
    pub(crate) fn installed(&self) -> Result<PathBuf> {
        if let Some(program) = which(self.name) {
            return Ok(program);
        }
        let cache = cache()?;
        let program = cache.join("bin").join(self.name);
        if program.is_file() {
            return Ok(program);
        }
        let Self {
            name,
            version,
            why,
            time,
            ..
        } = self;
        say(format!(
            "{name} {version} is not installed. It {why}. Building it into {}, which takes about {time}.",
            cache.display()
        ));
        // A build folder beside the result: /tmp is small on some machines.
        let build = Scratch::new(&cache.join(format!("build-{name}-{}", std::process::id())))?;
        Cmd::new("cargo")
            .args(["install", "--quiet", "--locked", "--version", version])
            .args(self.options)
            .arg("--root")
            .arg(&cache)
            .arg(name)
            .env("CARGO_TARGET_DIR", &build.0)
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            // Flags meant for this workspace must not reach other people's code.
            .env("RUSTFLAGS", "")
            .run()?;
        Ok(program)
    }
}
