//! What can go wrong between a name and a VM. What to do about an error depends on its variant alone,
//! never on its words. The texts leave the VM's name to whoever shows them, who knows it.

use crate::ending::Ending;
use crate::listener::listener;
use crate::state::{Pause, VmState};
use crate::unreadable_dir::UnreadableDir;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Why there is no such VM, or not as it was wanted.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// This cannot be a VM's name.
    #[error("this cannot be a VM's name: 1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-' can")]
    BadName {
        /// What was given.
        name: String,
    },
    /// Neither a VM's name nor an address.
    #[error("neither a VM's name nor an address")]
    NeitherNameNorAddress {
        /// What was given.
        name: String,
    },
    /// No VM has that name.
    #[error("no VM has that name in {}{}", .vms.display(), besides(.unreadable))]
    NoSuchVm {
        /// What was asked for.
        name: String,
        /// Where the VMs are.
        vms: PathBuf,
        /// The name of a VM that it may have been meant for.
        nearest: Option<String>,
        /// Where it may be after all.
        unreadable: Vec<UnreadableDir>,
    },
    /// The VM does not run. It is never dialled: a CONNECT to a paused VM can wedge its vsock backend
    /// for good.
    #[error("{}", not_running(.state))]
    NotRunning {
        /// What it is.
        state: VmState,
    },
    /// The VM has ended by itself, and nothing will change that.
    #[error("the VM has ended by itself: {0}")]
    Ended(Ending),
    /// The VM runs, and the process by which its guest is reached has ended.
    #[error("its vsock backend has ended: the VM runs, and its guest cannot be reached")]
    VsockEnded,
    /// The VM's VMM does not say whether it is paused, so it is not dialled.
    #[error("its VMM does not say whether the VM is paused: {problem}")]
    SilentVmm {
        /// What was tried, and what came of it.
        problem: String,
    },
    /// The guest was dialled and not reached, and its VMM has to do with it.
    #[error("{0}")]
    Unreachable(Unreachable),
    /// Something else than `mvmctl` runs the VM.
    #[error("mvmctl did not start it: {} the VM behind {}", runs(.by.as_deref()), .socket.display())]
    NotOurs {
        /// Its socket.
        socket: PathBuf,
        /// Who listens there, where that can be told.
        by: Option<String>,
    },
    /// Another process holds the VM's lock.
    #[error(
        "another mvmctl{} is starting, stopping, snapshotting or removing it right now",
        process(*.by)
    )]
    Locked {
        /// Its number, where that can be told.
        by: Option<i32>,
    },
    /// A VM's `vm.json` is there and cannot be read: whether the VM may be dialled is not known.
    #[error("cannot use {}: {problem}", .path.display())]
    BadRecord {
        /// The record.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// A record or folder that others may have written is not believed: on its word programs are run,
    /// processes ended and folders removed.
    #[error("{} is not believed: {problem}", .path.display())]
    NotTrusted {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// This user may not read the VM's record.
    #[error("permission denied on {}", .path.display())]
    PermissionDenied {
        /// The record.
        path: PathBuf,
    },
    /// `mvmctl.toml` is there, or was named, and cannot be read.
    #[error("cannot read {}: {problem}", .path.display())]
    BadSettings {
        /// The file.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// The folder of VMs cannot be found or read.
    #[error("cannot list the VMs in {}: {source}", .path.display())]
    NoInventory {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// This cannot be a label.
    #[error("this cannot be a label: {0}")]
    BadLabel(String),
    /// The system refused something.
    #[error("cannot {doing} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// What its VMM has to do with a guest that is not reached.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Unreachable {
    /// It has as many connections to the guest as it can have.
    #[error("{vmm} has {limit} connections to the guest and takes no more")]
    TooManyConnections {
        /// Who.
        vmm: String,
        /// How many those are.
        limit: usize,
    },
    /// Its version can have cut the guest off.
    #[error(
        "the guest does not answer: it hangs, or is cut off, which {vmm} does to a guest that is paused \
         and resumed without a snapshot"
    )]
    MayBeCutOff {
        /// Who, with the version.
        vmm: String,
    },
}

impl Unreachable {
    fn hint(&self, vm: &str) -> String {
        match self {
            Self::TooManyConnections { .. } => format!(
                "end some of what is connected to `{vm}`, each exec, forward, events and wait is: `ss \
                 -xp` lists them"
            ),
            Self::MayBeCutOff { .. } => format!(
                "`mvmctl vm wake {vm}` has it reached again if it was cut off, and sets its clock"
            ),
        }
    }
}

/// What is to be known about a name that was not found.
fn besides(unreadable: &[UnreadableDir]) -> String {
    let told = unreadable.iter().map(|one| format!("; {one}"));
    told.collect()
}

fn process(pid: Option<i32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (process {pid})"))
}

fn not_running(state: &VmState) -> String {
    match state {
        VmState::Starting => "the VM is being started".into(),
        VmState::Paused(Pause::Snapshot) => {
            "the VM is paused: a snapshot of it is being taken".into()
        }
        VmState::Paused(Pause::BrokenSnapshot) => {
            "the VM is paused: a snapshot of it was broken off".into()
        }
        VmState::Paused(Pause::Asked) => "the VM is paused".into(),
        VmState::Paused(Pause::Fleet) => "the VM is paused: the fleet has paused it".into(),
        VmState::Paused(Pause::Other) => {
            "the VM is paused, and it was not mvmctl that paused it".into()
        }
        VmState::StartBrokenOff => {
            "the start of the VM was broken off: the mvmctl that started it was killed".into()
        }
        state => format!("the VM is {state}"),
    }
}

fn runs(by: Option<&str>) -> String {
    by.map_or_else(|| "something else runs".into(), |by| format!("{by} runs"))
}

impl Error {
    /// That something else runs the VM behind a socket.
    pub fn not_ours(socket: PathBuf) -> Self {
        let by = listener(&socket);
        Self::NotOurs { socket, by }
    }

    /// The code of [`Error::Ended`].
    pub const VM_ENDED: &str = "vm-ended";

    /// The code of [`Error::VsockEnded`].
    pub const VSOCK_ENDED: &str = "vsock-ended";

    /// What it is, for programs: kebab-case.
    pub fn code(&self) -> &'static str {
        match self {
            Self::BadName { .. } | Self::NeitherNameNorAddress { .. } => "bad-name",
            Self::NoSuchVm { .. } => "no-such-vm",
            Self::NotRunning { .. } => "not-running",
            Self::Ended(_) => Self::VM_ENDED,
            Self::VsockEnded => Self::VSOCK_ENDED,
            Self::SilentVmm { .. } => "vmm-silent",
            Self::Unreachable(Unreachable::TooManyConnections { .. }) => "too-many-connections",
            Self::Unreachable(Unreachable::MayBeCutOff { .. }) => "may-be-cut-off",
            Self::NotOurs { .. } => "not-ours",
            Self::Locked { .. } => "busy",
            Self::BadRecord { .. } => "bad-record",
            Self::NotTrusted { .. } => "not-trusted",
            Self::PermissionDenied { .. } => "permission-denied",
            Self::BadSettings { .. } => "bad-settings",
            Self::NoInventory { .. } => "no-inventory",
            Self::BadLabel(_) => "bad-label",
            Self::Io { .. } => "io",
        }
    }

    /// Whether the same request may succeed later, unchanged: somebody may start the VM.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NotRunning { .. }
            | Self::SilentVmm { .. }
            | Self::Unreachable(_)
            | Self::Locked { .. } => true,
            Self::BadName { .. }
            | Self::NeitherNameNorAddress { .. }
            | Self::NoSuchVm { .. }
            | Self::Ended(_)
            | Self::VsockEnded
            | Self::NotOurs { .. }
            | Self::BadRecord { .. }
            | Self::NotTrusted { .. }
            | Self::PermissionDenied { .. }
            | Self::BadSettings { .. }
            | Self::NoInventory { .. }
            | Self::BadLabel(_)
            | Self::Io { .. } => false,
        }
    }

    /// What to do next about the VM that goes by this name.
    pub fn hint(&self, vm: &str) -> String {
        match self {
            Self::BadName { name } if name.starts_with("unix:") || name.starts_with("vsock:") => {
                "an address will not do here, since this is about the VM and not its agent: \
                 `mvmctl vm ls` shows the names of those that mvmctl has started"
                    .into()
            }
            Self::BadName { .. } => "`mvmctl vm ls` shows the names that there are".into(),
            Self::NeitherNameNorAddress { name } if name.contains('/') => {
                format!("a socket is written with its kind: unix:{name}")
            }
            Self::NeitherNameNorAddress { .. } => {
                "a name has 1 to 64 letters, digits, `.`, `_` and `-`; an address is unix:PATH or \
                 vsock:CID, the CID 3 or more"
                    .into()
            }
            Self::NoSuchVm {
                nearest,
                unreadable,
                ..
            } => {
                let meant = nearest
                    .as_ref()
                    .map(|nearest| format!("did you mean `{nearest}`?"));
                let there = unreadable.first().map(|one| one.hint().to_owned());
                match (meant, there) {
                    (Some(meant), Some(there)) => format!("{meant} Otherwise {there}"),
                    (Some(hint), None) | (None, Some(hint)) => hint,
                    (None, None) => {
                        "`mvmctl vm ls` shows those that there are; $MVM_HOME says where \
                         they are looked for"
                            .into()
                    }
                }
            }
            Self::NotRunning { state } => while_off(state, vm),
            Self::Ended(_) => format!(
                "`mvmctl vm logs {vm}` has what its guest said last; `mvmctl vm start {vm}` boots it \
                 again"
            ),
            Self::VsockEnded => {
                format!(
                    "`mvmctl vm stop {vm}`, and start it again; its log is vsock.log in its folder"
                )
            }
            Self::SilentVmm { .. } => format!(
                "something else may hold its control socket, or it hangs: `mvmctl vm stop --force \
                 {vm}` ends it, a longer --timeout helps if this machine is merely busy"
            ),
            Self::Unreachable(why) => why.hint(vm),
            Self::NotOurs { .. } => "whatever started it has to do this".into(),
            Self::Locked { .. } => "try again when that one is done".into(),
            Self::BadRecord { path, .. } => {
                let folder = path.parent().unwrap_or(path);
                format!(
                    "if another version of mvmctl started the VM, use that one; if the VM is not \
                     running, remove {}; if it surely runs, its agent is at unix:{}",
                    folder.display(),
                    folder.join("v.sock").display()
                )
            }
            Self::NotTrusted { path, .. } => format!(
                "run mvmctl as the user whose VM it is; if it is to be yours, see what is in it, then \
                 `chown` it or `chmod go-w {}`",
                path.display()
            ),
            Self::PermissionDenied { .. } => {
                "become the VM's owner or root, or have its folder opened to your group".into()
            }
            Self::BadSettings { .. } => "mend the file, or name another with --config".into(),
            Self::NoInventory { .. } => {
                "set MVM_HOME to the folder in which the VMs are kept, or become a user who may \
                 read it"
                    .into()
            }
            Self::BadLabel(_) => {
                "a label is KEY=VALUE: the key has 1 to 64 letters, digits, `.`, `_` and `-`, the \
                 value up to 128 bytes without commas; that of `pool` is as a key"
                    .into()
            }
            Self::Io { source, .. } => of_system(source).into(),
        }
    }

    /// For `map_err` on system calls that name a file.
    pub fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io {
            doing,
            path,
            source,
        }
    }
}

/// What to do about a VM that does not run.
fn while_off(state: &VmState, vm: &str) -> String {
    match state {
        VmState::Stopped => format!("start it: mvmctl vm start {vm}"),
        VmState::Starting => format!("wait for it: mvmctl vm wait {vm} --for ready"),
        VmState::Asleep {
            snapshot: Some(folder),
        } if !folder.is_dir() => format!(
            "its snapshot {} is not there any more: put it back, or give up what the VM was doing with \
             `mvmctl vm start --discard-state {vm}`",
            folder.display()
        ),
        VmState::Asleep {
            snapshot: Some(folder),
        } => format!(
            "`mvmctl vm restore {} --name {vm}` lets it run on",
            folder.display()
        ),
        VmState::Asleep { snapshot: None } => format!(
            "`mvmctl vm restore DIR --name {vm}` lets it run on, from the folder that `mvmctl vm \
             snapshot` wrote"
        ),
        VmState::Paused(Pause::Snapshot) => "try again when the snapshot is taken".into(),
        VmState::Paused(Pause::BrokenSnapshot) => {
            format!("`mvmctl vm wake {vm}` lets it run on, `mvmctl vm stop {vm}` gives it up")
        }
        VmState::Paused(Pause::Asked | Pause::Fleet) => {
            format!("`mvmctl vm resume {vm}` lets it run on, `mvmctl vm stop {vm}` ends it")
        }
        VmState::Paused(Pause::Other) => format!(
            "have whatever paused it let it run on (QEMU: `cont`, Firecracker: PATCH /vm Resumed, \
             Cloud Hypervisor: vm.resume, a signal: CONT); `mvmctl vm stop {vm}` ends it"
        ),
        VmState::StartBrokenOff => format!(
            "`mvmctl vm start {vm}` starts it anew, `mvmctl vm stop {vm}` ends what is left of it"
        ),
        VmState::NotOurs { .. } => {
            "something else runs it and says so in its vm.json: have that one let it run".into()
        }
        VmState::Running | VmState::Ended(_) | VmState::Unknown(_) => {
            "a VM that is not running is never dialled; run it first".into()
        }
    }
}

/// What to do about a refusal of the system's.
pub fn of_system(error: &io::Error) -> &'static str {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::PermissionDenied => {
            "run it as the owner, or use a folder of your own: MVM_HOME names that of the VMs"
        }
        Kind::StorageFull | Kind::QuotaExceeded => {
            "make room on that file system, or use a folder on another"
        }
        Kind::ReadOnlyFilesystem => "use a folder that can be written",
        Kind::OutOfMemory => {
            "have other programs free memory, or give the VM less: --memory of `mvmctl vm start`"
        }
        Kind::InvalidFilename => "give it a shorter path: MVM_HOME names the folder of the VMs",
        Kind::NotFound => "see whether that path is right, and what has removed it",
        Kind::TimedOut => "run it by hand to see what it waits for",
        _ => match rustix::io::Errno::from_io_error(error) {
            Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE) => {
                "too many files are open: raise the limit (`ulimit -n`), or do fewer things at once"
            }
            Some(rustix::io::Errno::NOEXEC) => {
                "it is no program for this machine: take one that was built for it"
            }
            _ => "look at that path, and whether the kernel's log (dmesg) says more",
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_taken_for_a_forgotten_prefix() {
        let error = Error::NeitherNameNorAddress {
            name: "/run/v.sock".into(),
        };
        assert!(error.hint("x").contains("unix:/run/v.sock"));
    }
}
