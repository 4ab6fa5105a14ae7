//! Where the programs are that a VM needs.
//!
//! By hand, though there is a crate `which`: it looks in the folders of `PATH` alone, and in relative
//! ones too. Whether a program may be run is asked of the kernel, for this user.

use crate::brief::{self, BRIEFLY};
use crate::error::Error;
use rustix::fs::{Access, access};
use std::env;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A program that is run by its path.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    /// Its file name.
    pub name: &'static str,
    /// The environment variable that names it, before all other places.
    pub variable: &'static str,
    /// How to get it.
    pub hint: &'static str,
    /// What has it tell its version.
    pub ask: &'static str,
    /// What its answer begins with, by which it is told from another program. Letters of either case.
    pub tells: &'static str,
}

/// QEMU for this machine's kind of CPU.
pub const QEMU: Program = Program {
    name: "qemu-system-x86_64",
    variable: "MVM_QEMU",
    hint: "apt-get install qemu-system-x86, or name it in MVM_QEMU",
    ask: "--version",
    tells: "QEMU",
};

/// The vsock device that QEMU uses over vhost-user.
pub const VHOST_DEVICE_VSOCK: Program = Program {
    name: "vhost-device-vsock",
    variable: "MVM_VHOST_DEVICE_VSOCK",
    hint: "cargo install --locked vhost-device-vsock, or name it in MVM_VHOST_DEVICE_VSOCK",
    ask: "--version",
    tells: "vhost-device-vsock",
};

/// Firecracker.
pub const FIRECRACKER: Program = Program {
    name: "firecracker",
    variable: "MVM_FIRECRACKER",
    hint: "install a release of Firecracker from 1.16.1 on, or name it in MVM_FIRECRACKER",
    ask: "--version",
    tells: "Firecracker",
};

/// Cloud Hypervisor.
pub const CLOUD_HYPERVISOR: Program = Program {
    name: "cloud-hypervisor",
    variable: "MVM_CLOUD_HYPERVISOR",
    hint: "install a release of Cloud Hypervisor, or name it in MVM_CLOUD_HYPERVISOR",
    ask: "--version",
    tells: "cloud-hypervisor",
};

/// The agent for the host's own kind of CPU.
pub const AGENT: Program = Program {
    name: "mvm-guest-agent",
    variable: "MVM_AGENT",
    hint: "give --agent PATH, or put it beside mvmctl",
    ask: "--version",
    tells: "mvm-guest-agent",
};

/// The same, built to serve commands and files as well.
pub const AGENT_DEV: Program = Program {
    name: "mvm-guest-agent-dev",
    variable: "MVM_AGENT_DEV",
    hint: "`cargo xtask build` makes one beside mvmctl; or give --agent PATH of one that was built \
           with --features dev",
    ask: "--version",
    tells: "mvm-guest-agent",
};

/// What a guest has for its programs.
pub const BUSYBOX: Program = Program {
    name: "busybox",
    variable: "MVM_BUSYBOX",
    hint: "apt-get install busybox-static, or give --busybox PATH",
    ask: "--help",
    tells: "BusyBox",
};

impl Program {
    /// Looks in the variable, beside this program and in `../lib/mvm` from there, in `PATH`, where
    /// `cargo install` puts programs, and where `cargo xtask` does.
    pub fn find(&self) -> Result<PathBuf, Error> {
        if let Some(named) = env::var_os(self.variable).filter(|value| !value.is_empty()) {
            return self.named(&PathBuf::from(&named));
        }
        let folders = folders(|name| env::var_os(name));
        let found = folders
            .iter()
            .map(|(folder, _)| folder.join(self.name))
            .find(|path| is_executable(path));
        let Some(path) = found else {
            let mut looked_in: Vec<_> = folders.into_iter().map(|(_, name)| name).collect();
            looked_in.dedup();
            return Err(self.missing(looked_in.join(", ")));
        };
        absolute(&path)
    }

    /// The one that the variable names.
    fn named(&self, path: &Path) -> Result<PathBuf, Error> {
        let variable = self.variable;
        let metadata = match std::fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::MissingProgram {
                    program: self.name,
                    looked_in: format!("${variable} ({})", path.display()),
                    hint: format!(
                        "have {variable} name one that is there, or unset it; to get one: {}",
                        self.hint
                    ),
                });
            }
            Err(error) => return Err(Error::io("look at", path)(error)),
        };
        let unusable = |reason: &str, hint: String| Error::BadProgram {
            program: self.name,
            path: path.to_owned(),
            reason: format!("${variable} names it, and {reason}"),
            hint,
        };
        if !metadata.is_file() {
            let hint = format!("have {variable} name the program itself");
            return Err(unusable("it is no file", hint));
        }
        if let Err(errno) = access(path, Access::EXEC_OK) {
            let reason = format!("it may not be run: {}", io::Error::from(errno));
            let hint = format!("chmod +x it, or have {variable} name one that may be run");
            return Err(unusable(&reason, hint));
        }
        absolute(path)
    }

    /// What the program at that path says of its version, on one line.
    pub(crate) fn version(&self, path: &Path) -> Result<String, Error> {
        let wrong = |reason: String| Error::BadProgram {
            program: self.name,
            path: path.to_owned(),
            reason,
            hint: self.hint.to_owned(),
        };
        let asked = self.ask;
        let output = brief::run(Command::new(path).arg(asked), BRIEFLY)
            .map_err(|error| wrong(format!("asked with {asked}, {error}")))?;
        let said = String::from_utf8_lossy(&output.stdout);
        let first = said.lines().next().unwrap_or_default().trim().to_owned();
        if !output.status.success() {
            return Err(wrong(format!("{asked} fails ({})", output.status)));
        }
        let begins = first.to_ascii_lowercase();
        if !begins.starts_with(&self.tells.to_ascii_lowercase()) {
            return Err(wrong(format!(
                "it is another program: {asked} gives {first:?}"
            )));
        }
        if !first.contains(|c: char| c.is_ascii_digit()) {
            return Err(wrong(format!(
                "it does not tell its version: {asked} gives {first:?}"
            )));
        }
        Ok(first)
    }

    fn missing(&self, looked_in: String) -> Error {
        Error::MissingProgram {
            program: self.name,
            looked_in,
            hint: self.hint.to_owned(),
        }
    }
}

/// The folders that are looked in, each with the name by which an error speaks of it. All are
/// absolute: what is in the current folder is never run.
fn folders(env: impl Fn(&str) -> Option<OsString>) -> Vec<(PathBuf, String)> {
    let mut folders = Vec::new();
    if let Ok(own) = env::current_exe()
        && let Some(folder) = own.parent()
    {
        folders.push((folder.to_owned(), folder.display().to_string()));
        // Where our packages have what is no command of the host's.
        if let Some(prefix) = folder.parent() {
            let own = prefix.join("lib/mvm");
            folders.push((own.clone(), own.display().to_string()));
        }
    }
    let path = env("PATH").unwrap_or_else(|| OsString::from("/usr/bin:/bin"));
    for folder in env::split_paths(&path).filter(|folder| folder.is_absolute()) {
        folders.push((folder, "$PATH".to_owned()));
    }
    let cargo = folder_of(&env, "CARGO_HOME", ".cargo");
    for folder in cargo.into_iter().chain(cache_of(&env)) {
        let folder = folder.join("bin");
        let name = folder.display().to_string();
        folders.push((folder, name));
    }
    folders
}

/// Where `cargo xtask` keeps what it installs.
pub(crate) fn cache() -> Option<PathBuf> {
    cache_of(|name| env::var_os(name))
}

fn cache_of(env: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    folder_of(env, "XDG_CACHE_HOME", ".cache").map(|cache| cache.join("mvm-xtask"))
}

/// The folder that a variable names, or its default below `$HOME`. A relative path does not count,
/// as the XDG base directory specification says.
fn folder_of(
    env: impl Fn(&str) -> Option<OsString>,
    variable: &str,
    default: &str,
) -> Option<PathBuf> {
    let absolute = |name| env(name).map(PathBuf::from).filter(|it| it.is_absolute());
    absolute(variable).or_else(|| Some(absolute("HOME")?.join(default)))
}

fn absolute(path: &Path) -> Result<PathBuf, Error> {
    std::path::absolute(path).map_err(Error::io("resolve", path))
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && access(path, Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(variables: &[(&str, &str)]) -> Vec<PathBuf> {
        let folders = folders(|name| {
            let value = variables.iter().find(|(variable, _)| *variable == name);
            value.map(|(_, value)| value.into())
        });
        // The first are where this test is, and what is packed with it.
        folders
            .into_iter()
            .skip(2)
            .map(|(folder, _)| folder)
            .collect()
    }

    #[test]
    fn programs_are_where_the_variables_say() {
        let named = [
            ("PATH", "/p:/q"),
            ("CARGO_HOME", "/c"),
            ("XDG_CACHE_HOME", "/x"),
            ("HOME", "/h"),
        ];
        let expected = ["/p", "/q", "/c/bin", "/x/mvm-xtask/bin"];
        assert_eq!(found(&named), expected.map(PathBuf::from));
        let by_default = ["/p", "/h/.cargo/bin", "/h/.cache/mvm-xtask/bin"];
        assert_eq!(
            found(&[("PATH", "/p"), ("HOME", "/h")]),
            by_default.map(PathBuf::from)
        );
    }

    #[test]
    fn one_that_is_named_and_does_not_do_is_told_as_what_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("firecracker");
        let told = |path: &Path, expected: &str, remedy: &str| {
            let error = FIRECRACKER.named(path).unwrap_err();
            let text = error.to_string();
            assert!(text.contains(expected), "{text:?} lacks {expected:?}");
            let hint = error.hint();
            assert!(hint.contains(remedy), "{hint:?} lacks {remedy:?}");
        };
        told(
            &file,
            "looked in $MVM_FIRECRACKER (/",
            "or unset it; to get one: install",
        );
        told(folder.path(), "it is no file", "the program itself");
        std::fs::write(&file, "#!/bin/sh\n").unwrap();
        told(&file, "it may not be run: Permission denied", "chmod +x");
        told(&file.join("x"), "Not a directory", "");
    }

    #[test]
    fn the_current_folder_is_never_looked_in() {
        for relative in ["", ".", "bin"] {
            let variables = [
                ("PATH", &*format!("{relative}:/p:{relative}")),
                ("CARGO_HOME", relative),
                ("XDG_CACHE_HOME", relative),
                ("HOME", relative),
            ];
            assert_eq!(found(&variables), [PathBuf::from("/p")], "{relative:?}");
        }
    }
}
