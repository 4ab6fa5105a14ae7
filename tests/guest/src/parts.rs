//! What a guest is made of, and what is done where it is not there.

use mvm_vmm::locate::{QEMU, VHOST_DEVICE_VSOCK};
use std::env;
use std::path::{Path, PathBuf};

/// What a guest is made of. `cargo xtask test` gets it and names it in the environment.
#[derive(Debug, Clone)]
pub struct Parts {
    /// `MVM_TEST_AGENT`: the agent, statically linked.
    pub agent: PathBuf,
    /// `MVM_TEST_DEV_AGENT`: the same as a dev build.
    pub dev_agent: PathBuf,
    /// `MVM_TEST_KERNEL`
    pub kernel: PathBuf,
    /// `MVM_TEST_MODULES`: `lib/modules/VERSION` of that kernel.
    pub modules: PathBuf,
    /// `MVM_TEST_BUSYBOX`: statically linked.
    pub busybox: PathBuf,
    /// `MVM_TEST_VSOCK_BACKEND`, else `vhost-device-vsock` where it is installed.
    pub vsock_backend: PathBuf,
    /// `MVM_QEMU`, else `qemu-system-x86_64` in `PATH`.
    pub qemu: PathBuf,
}

/// The file of a Debian package in that revision, among the [packages](Parts::packages).
pub fn package_file(packages: &Path, package: &str, revision: u32) -> PathBuf {
    let prefix = format!("{package}_");
    let middle = format!("-{revision}_");
    let listing = std::fs::read_dir(packages).expect("list the packages");
    let mut files = listing.map(|entry| entry.expect("an entry").path());
    files
        .find(|file| {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(&prefix) && name.contains(&middle)
        })
        .expect("the package")
}

impl Parts {
    /// All of them, or `None` with a loud line: the caller's test is to end then. Where a VM is
    /// required (`MVM_REQUIRE_VM`, or `CI` is set) it panics instead.
    pub fn find() -> Option<Self> {
        required(Self::look(), "guest")
    }

    /// The same with a kernel that tells its guest of a restore: `MVM_TEST_NEWER_KERNEL` and
    /// `MVM_TEST_NEWER_MODULES`, looked for in the same way.
    pub fn with_newer_kernel() -> Option<Self> {
        let found = Self::look().and_then(|parts| {
            Ok(Self {
                kernel: named("MVM_TEST_NEWER_KERNEL")?,
                modules: named("MVM_TEST_NEWER_MODULES")?,
                ..parts
            })
        });
        required(found, "guest")
    }

    /// What `mvmctl image build`, and an example's script that calls it, are told of them, with an agent.
    pub fn arguments<'a>(&'a self, agent: &'a Path) -> [&'a Path; 8] {
        [
            Path::new("--agent"),
            agent,
            Path::new("--kernel"),
            &self.kernel,
            Path::new("--modules"),
            &self.modules,
            Path::new("--busybox"),
            &self.busybox,
        ]
    }

    /// `MVM_TEST_DEBIAN`: a Debian with systemd as an archive; looked for in the same way.
    pub(crate) fn debian() -> Option<PathBuf> {
        required(named("MVM_TEST_DEBIAN"), "guest")
    }

    /// `MVM_TEST_PACKAGES`: the Debian packages, the agent's in several revisions; looked for in the
    /// same way.
    pub fn packages() -> Option<PathBuf> {
        required(named("MVM_TEST_PACKAGES"), "guest")
    }

    fn look() -> Result<Self, String> {
        let vsock_backend = match named("MVM_TEST_VSOCK_BACKEND") {
            Ok(path) => path,
            Err(_) => VHOST_DEVICE_VSOCK.find().map_err(|e| e.to_string())?,
        };
        Ok(Self {
            agent: named("MVM_TEST_AGENT")?,
            dev_agent: named("MVM_TEST_DEV_AGENT")?,
            kernel: named("MVM_TEST_KERNEL")?,
            modules: named("MVM_TEST_MODULES")?,
            busybox: named("MVM_TEST_BUSYBOX")?,
            vsock_backend,
            qemu: QEMU.find().map_err(|error| error.to_string())?,
        })
    }
}

/// What was found, or `None` with a loud line that names the rung of `cargo xtask test` which gets it. Where
/// it is required (`MVM_REQUIRE_VM`, or `CI` is set) it panics instead.
pub fn required<T>(found: Result<T, String>, rung: &str) -> Option<T> {
    found
        .map_err(|missing| {
            let required = ["MVM_REQUIRE_VM", "CI"]
                .iter()
                .any(|name| env::var_os(name).is_some_and(|value| !value.is_empty()));
            assert!(!required, "it is required, and cannot be had: {missing}");
            eprintln!("SKIPPED, NOTHING WAS TESTED: {missing}; `cargo xtask test {rung}` gets it");
        })
        .ok()
}

/// The path that a variable names, if it is there.
pub fn named(variable: &str) -> Result<PathBuf, String> {
    let path = env::var_os(variable).map(PathBuf::from);
    let path = path.ok_or_else(|| format!("{variable} is not set"))?;
    if path.exists() {
        Ok(path)
    } else {
        Err(format!(
            "{variable} names {}, which is not there",
            path.display()
        ))
    }
}

/// Cargo's target folder, which it marks with a file.
pub(crate) fn target() -> PathBuf {
    let own = env::current_exe().unwrap_or_default();
    let target = own
        .ancestors()
        .find(|dir| dir.join("CACHEDIR.TAG").is_file());
    target.map_or_else(env::temp_dir, Path::to_owned)
}
