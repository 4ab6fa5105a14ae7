//! Every refusal of this crate is a variant here: what was tried, why it failed, and in
//! [`Error::hint`] what to do next. Decisions look at the variant, never at its text. The texts leave
//! the VM's name to whoever shows them, who knows it.

use crate::http::HttpError;
use crate::image::ImageError;
use crate::snapshot::SnapshotError;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;

/// Why something could not be done to a VM.
#[derive(Debug, Error)]
pub enum Error {
    /// The name is not of the allowed form.
    #[error("{0:?} cannot be a VM's name: 1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-' can")]
    BadName(String),
    /// There is no folder of that name.
    #[error("no VM has that name in {}", vms.display())]
    NoSuchVm {
        /// The name that was looked for.
        name: String,
        /// The folder that was looked in.
        vms: PathBuf,
    },
    /// It is there and was not started here, so it cannot be stopped here either.
    #[error("it has a socket but no vm.json: mvmctl did not start it")]
    NotOurs {
        /// The VM.
        name: String,
    },
    /// It runs already.
    #[error("it is running already (process {pid})")]
    Running {
        /// The VM.
        name: String,
        /// Its main process.
        pid: i32,
    },
    /// Another process holds the VM's lock.
    #[error("another mvmctl is starting, stopping, snapshotting or removing it right now")]
    Locked {
        /// The VM.
        name: String,
    },
    /// `vm.json` cannot be trusted.
    #[error("cannot use {}: {reason}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The image folder cannot be used.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The snapshot folder cannot be used, or made.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A snapshot is to be taken of what does not run.
    #[error("it is not running")]
    NotRunning {
        /// The VM.
        name: String,
    },
    /// No backend of that name is built in.
    #[error("there is no backend {name:?}; there are {known}")]
    NoSuchBackend {
        /// What was asked for.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// The backend cannot do what was asked of it.
    #[error("backend {backend} cannot do this: {reason}")]
    Unsupported {
        /// The backend.
        backend: &'static str,
        /// What it cannot do.
        reason: String,
        /// What to do instead.
        hint: String,
    },
    /// A program that is needed is not there.
    #[error("cannot find {program}: looked in {looked_in}")]
    MissingProgram {
        /// Its name.
        program: &'static str,
        /// The places that were looked at.
        looked_in: String,
        /// How to get it.
        hint: String,
    },
    /// A program is there and does not do.
    #[error("cannot use {program} ({}): {reason}", path.display())]
    BadProgram {
        /// Its name.
        program: &'static str,
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// How to get another.
        hint: String,
    },
    /// A process that was started ended before the VM was up.
    #[error("{program} ended before the VM was up: {how}")]
    EndedEarly {
        /// Which one.
        program: &'static str,
        /// How it ended.
        how: String,
        /// The ends of what it, and the guest, said.
        logs: Logs,
    },
    /// The VM did not get as far as was waited for.
    #[error("after {:.1} s {awaited} is still missing", after.as_secs_f64())]
    TimedOut {
        /// What was waited for.
        awaited: String,
        /// How long.
        after: Duration,
        /// The ends of what the VMM and the guest said.
        logs: Logs,
    },
    /// The caller asked to stop waiting.
    #[error("interrupted; what had been started was ended again")]
    Interrupted,
    /// The VMM's control socket refused or broke off.
    #[error("cannot {doing} through QEMU's control socket: {reason}")]
    Qmp {
        /// What was asked of it.
        doing: String,
        /// What it answered.
        reason: String,
    },
    /// The VMM's API refused something, or broke off.
    #[error("{vmm} cannot {doing}: {source}{}", then(ended.as_deref()))]
    Api {
        /// Who.
        vmm: &'static str,
        /// What it was asked.
        doing: &'static str,
        /// Why not.
        source: HttpError,
        /// How its process ended, if it did.
        ended: Option<String>,
        /// The ends of what it, and the guest, said.
        logs: Logs,
    },
    /// A process would not go.
    #[error("its process {pid} ({role}) is still there after KILL")]
    Unkillable {
        /// The VM.
        name: String,
        /// What the process is to it.
        role: String,
        /// Its number.
        pid: i32,
    },
    /// The system refused something.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// The ends of the logs that belong to a failure, oldest line first.
#[derive(Debug, Default, Clone)]
pub struct Logs {
    /// Log's name and its last lines.
    pub parts: Vec<(String, String)>,
}

impl fmt::Display for Logs {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for (name, text) in &self.parts {
            writeln!(f, "--- the end of {name}:")?;
            writeln!(f, "{}", text.trim_end())?;
        }
        Ok(())
    }
}

/// What became of a VMM after its answer.
fn then(ended: Option<&str>) -> String {
    ended.map_or(String::new(), |how| format!("; then it ended: {how}"))
}

impl Error {
    /// What to do next, where there is something better than trying again.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoSuchVm { .. } => Some("`mvmctl vm ls` shows those that there are".into()),
            Self::NotOurs { .. } => Some("stop it with whatever started it".into()),
            Self::Running { name, .. } => Some(format!(
                "`mvmctl vm stop {name}` first, or choose another name"
            )),
            Self::Locked { .. } => Some("try again when that one is done".into()),
            Self::Record { path, .. } => Some(format!(
                "if the VM is not running, remove {}",
                path.parent().unwrap_or(path).display()
            )),
            Self::Image(error) => Some(error.hint()),
            Self::Snapshot(error) => Some(error.hint()),
            Self::NotRunning { name } => Some(format!("`mvmctl vm start {name}` first")),
            Self::Unsupported { hint, .. }
            | Self::MissingProgram { hint, .. }
            | Self::BadProgram { hint, .. } => Some(hint.clone()),
            Self::Api {
                source: HttpError::NotListening,
                ..
            } => Some("it has ended: `mvmctl vm stop` clears what is left of it".into()),
            Self::TimedOut { .. }
            | Self::Api {
                source: HttpError::TimedOut { .. },
                ..
            } => Some("a longer --timeout helps if the guest is merely slow".into()),
            Self::Unkillable { .. } => {
                Some("it is stuck in the kernel; look at its state in /proc/PID/stack".into())
            }
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("run it as the owner, or set MVM_HOME to a folder of your own".into())
            }
            Self::EndedEarly { .. } => Some("`mvmctl doctor` checks what a VM needs".into()),
            Self::BadName(_)
            | Self::NoSuchBackend { .. }
            | Self::Interrupted
            | Self::Qmp { .. }
            | Self::Api { .. }
            | Self::Io { .. } => None,
        }
    }

    /// What the VMM and the guest said last, where the failure is theirs.
    pub fn logs(&self) -> Option<&Logs> {
        match self {
            Self::EndedEarly { logs, .. }
            | Self::TimedOut { logs, .. }
            | Self::Api { logs, .. }
                if !logs.parts.is_empty() =>
            {
                Some(logs)
            }
            _ => None,
        }
    }

    /// For `map_err` on system calls that name a file.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            doing,
            path,
            source,
        }
    }
}
