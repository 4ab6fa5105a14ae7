//! The Debian packages, in a Debian of their own: its root file system in a folder, entered by chroot.
//!
//! Who is not root is that in a user namespace.

#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panicking"
)]

use mvm_guest_tests::{named, package_file, required};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// The packages that `cargo xtask test` has made for the tests, and the Debian to install them in.
#[derive(Debug)]
pub struct Packages {
    folder: PathBuf,
    debian: PathBuf,
}

impl Packages {
    /// `MVM_TEST_PACKAGES` and `MVM_TEST_DEBIAN`. `None` where they are not named, with a loud line;
    /// where they are required (`MVM_REQUIRE_VM`, or `CI` is set) it panics instead.
    pub fn find() -> Option<Self> {
        let found = named("MVM_TEST_PACKAGES").and_then(|folder| {
            let debian = named("MVM_TEST_DEBIAN")?;
            Ok(Self { folder, debian })
        });
        required(found, "packages")
    }

    /// The file of a package in that revision.
    pub fn deb(&self, package: &str, revision: u32) -> PathBuf {
        package_file(&self.folder, package, revision)
    }

    /// The files of `mvmctl`'s package, in a folder.
    pub fn unpacked_mvmctl(&self) -> TempDir {
        let folder = tempfile::tempdir().expect("make a folder");
        let unpack = Command::new("dpkg-deb")
            .arg("-x")
            .args([&*self.deb("mvmctl", 1), folder.path()])
            .output();
        told(&unpack.expect("run dpkg-deb"));
        folder
    }

    /// A Debian in which nothing is installed yet.
    pub fn debian(&self) -> Debian {
        let folder = tempfile::tempdir().expect("make a folder");
        let debian = Debian { folder };
        // /dev would take a right that even the root of a user namespace lacks.
        let tar = "tar -xf \"$1\" -C \"$2\" --numeric-owner --exclude './dev/*' && \
             : >\"$2/dev/null\" && chmod 666 \"$2/dev/null\" && \
             rm -f \"$2\"/etc/dpkg/dpkg.cfg.d/99mmdebstrap";
        let run = as_root("sh")
            .args(["-c", tar, "sh"])
            .args([&self.debian, debian.root()])
            .output();
        told(&run.expect("run tar"));
        debian
    }
}

/// The root file system of a Debian. It is gone when this is.
#[derive(Debug)]
pub struct Debian {
    folder: TempDir,
}

impl Debian {
    /// Where it is.
    pub fn root(&self) -> &Path {
        self.folder.path()
    }

    /// Runs a script in it, which has to succeed, and gives what it printed.
    pub fn sh(&self, script: &str) -> String {
        told(&self.try_sh(script))
    }

    /// Runs a script in it, which sees its own processes alone.
    pub fn try_sh(&self, script: &str) -> Output {
        let mut proc = OsString::from("--mount-proc=");
        proc.push(self.root().join("proc"));
        as_root("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child"])
            .arg(proc)
            .arg("chroot")
            .arg(self.root())
            .args(["/bin/bash", "-c", script])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", "/root")
            .stdin(Stdio::null())
            .output()
            .expect("run unshare")
    }

    /// Installs or upgrades by dpkg.
    pub fn install(&self, deb: &Path) -> String {
        let name = deb.file_name().expect("a file").to_string_lossy();
        let to = self.root().join("tmp").join(&*name);
        std::fs::copy(deb, &to).expect("copy a package");
        self.sh(&format!(
            "dpkg -i /tmp/{name} 2>&1; s=$?; rm /tmp/{name}; exit $s"
        ))
    }

    /// Every file and folder that is there, with its permissions, and where a link leads to; but for
    /// what dpkg keeps of its own doings.
    pub fn listing(&self) -> BTreeSet<String> {
        let all = self.sh("find / -xdev ! -path '/tmp/*' -printf '%M %U:%G %p %l\\n'");
        let own = [
            "/var/log/dpkg.log",
            "/var/lib/dpkg/status-old",
            "/var/lib/dpkg/lock",
        ];
        all.lines()
            .filter(|line| !own.iter().any(|own| line.contains(own)))
            .map(|line| line.trim_end().to_owned())
            .collect()
    }
}

impl Drop for Debian {
    fn drop(&mut self) {
        // What a user namespace's other users own, its root alone can remove.
        let empty = "find \"$1\" -mindepth 1 -delete";
        let emptied = as_root("sh")
            .args(["-c", empty, "sh"])
            .arg(self.root())
            .status();
        if !emptied.is_ok_and(|status| status.success()) {
            eprintln!("cannot remove {}", self.root().display());
        }
    }
}

/// A command that root runs, be it one of a user namespace.
fn as_root(program: &str) -> Command {
    let own = std::fs::metadata("/proc/self").expect("look at the own process");
    if own.uid() == 0 {
        return Command::new(program);
    }
    let mut command = Command::new("unshare");
    command.args(["--map-auto", "--map-root-user", program]);
    command
}

/// What a command printed that has to succeed.
pub fn told(output: &Output) -> String {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{}\n{stdout}{stderr}",
        output.status
    );
    stdout
}
