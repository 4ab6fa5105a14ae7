//! Every refusal of this crate is a variant here: what was tried, why it failed, and in
//! [`Error::hint`] what to do next. Decisions look at the variant, never at its text. The texts leave
//! the VM's name to whoever shows them, who knows it.

use crate::deadline::Deadline;
use crate::hint::{DOCTOR, MORE_TIME, of_api, of_qmp};
pub use crate::hint::{QmpFault, Standing};
use crate::http::HttpError;
use crate::image::ImageError;
use crate::snapshot::SnapshotError;
use mvm_registry::of_system;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;

/// Why something could not be done to a VM.
#[derive(Debug, Error)]
pub enum Error {
    /// There is no such VM, it is another's, or it is not as it was wanted.
    #[error(transparent)]
    Registry(#[from] mvm_registry::Error),
    /// It runs already.
    #[error("it is running already (process {pid})")]
    Running {
        /// The VM.
        name: String,
        /// Its main process.
        pid: i32,
    },
    /// It is not removed, since it runs.
    #[error("it is running (process {pid}), and is not removed")]
    NotRemoved {
        /// The VM.
        name: String,
        /// Its main process.
        pid: i32,
    },
    /// It was to be ended, and was, but its record says something else.
    #[error("it has ended, and that cannot be written down: {source}")]
    EndedUnrecorded {
        /// Why its record cannot be saved.
        source: mvm_registry::Error,
    },
    /// It is asleep, and is not to be booted anew for nothing.
    #[error("it is asleep{}, and booting it anew would lose what it was doing", suspended(snapshot.as_deref()))]
    Suspended {
        /// The VM.
        name: String,
        /// The snapshot in which it is, as far as its record says.
        snapshot: Option<PathBuf>,
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
    /// It is to run on, and is not paused.
    #[error("it is not paused")]
    NotPaused {
        /// The VM.
        name: String,
    },
    /// It has never come so far as to have a console.
    #[error("it has written no console yet")]
    NoConsole {
        /// The VM.
        name: String,
    },
    /// It has come so far once at most.
    #[error("there is no console of a run before this one")]
    NoLastConsole {
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
        /// What kind of failure that is.
        fault: QmpFault,
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
        /// Whether the VM was being started.
        standing: Standing,
        /// Whether it had all the time that such an answer takes.
        hangs: bool,
        /// The ends of what it, and the guest, said.
        logs: Logs,
    },
    /// A process would not go.
    #[error("its process {pid} ({role}) is still there after KILL")]
    Unkillable {
        /// The VM.
        name: String,
        /// What the process is to it.
        role: mvm_registry::Role,
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

fn suspended(snapshot: Option<&Path>) -> String {
    match snapshot {
        None => String::new(),
        Some(folder) if folder.is_dir() => format!(" in {}", folder.display()),
        Some(folder) => format!(" in {}, which is not there any more", folder.display()),
    }
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
    /// That something is not wanted any more, or its time is up, if it is.
    pub(crate) fn if_over(
        deadline: Deadline<'_>,
        awaited: impl FnOnce() -> String,
    ) -> Result<(), Self> {
        if deadline.is_cancelled() {
            return Err(Self::Interrupted);
        }
        if deadline.left().is_zero() {
            return Err(Self::TimedOut {
                awaited: awaited(),
                after: deadline.whole(),
                logs: Logs::default(),
            });
        }
        Ok(())
    }

    /// What to do next.
    pub fn hint(&self) -> String {
        match self {
            Self::Registry(error) | Self::EndedUnrecorded { source: error } => error.hint("NAME"),
            Self::Running { name, .. } => {
                format!("`mvmctl vm stop {name}` first, or choose another name")
            }
            Self::NotRemoved { name, .. } => format!(
                "`mvmctl vm stop {name}` first, or have it ended: `mvmctl vm rm --force {name}`"
            ),
            Self::Suspended {
                name,
                snapshot: Some(folder),
            } if !folder.is_dir() => format!(
                "put it back, or give up what the VM was doing: `mvmctl vm start --discard-state {name}` \
                 boots it anew, `mvmctl vm rm {name}` removes it"
            ),
            Self::Suspended { name, snapshot } => {
                let folder = snapshot.as_deref().unwrap_or(Path::new("DIR")).display();
                format!(
                    "`mvmctl vm restore {folder} --name {name}` lets it run on; `mvmctl vm start \
                     --discard-state {name}` boots it anew"
                )
            }
            Self::Image(error) => error.hint(),
            Self::Snapshot(error) => error.hint(),
            Self::NotPaused { name } => {
                format!("`mvmctl vm status {name}` says what it is")
            }
            Self::NotRunning { name } => format!("`mvmctl vm start {name}` first"),
            Self::NoLastConsole { name } => {
                format!("`mvmctl vm logs {name}` has that of its last run")
            }
            Self::NoConsole { name } => {
                format!("`mvmctl vm start {name}` boots it; if that failed, it said why")
            }
            Self::NoSuchBackend { .. } => "give one of these with --backend, or none".into(),
            Self::Unsupported { hint, .. }
            | Self::MissingProgram { hint, .. }
            | Self::BadProgram { hint, .. } => hint.clone(),
            // In order, as when a guest powers off or resets its machine.
            Self::EndedEarly { how, logs, .. }
                if logs.parts.is_empty() && how == "exit status 0" =>
            {
                format!(
                    "its guest reset or powered off its machine and printed nothing: the image's kernel \
                     may be damaged, or one for another kind of machine; {DOCTOR}"
                )
            }
            Self::EndedEarly { logs, .. } if logs.parts.is_empty() => DOCTOR.into(),
            Self::EndedEarly { .. } => {
                format!("the end of its log says why; {DOCTOR}")
            }
            Self::TimedOut { .. } => MORE_TIME.into(),
            Self::Interrupted => "give the same command again".into(),
            Self::Qmp { fault, reason, .. } => of_qmp(*fault, reason).into(),
            Self::Api {
                source,
                standing,
                hangs,
                ..
            } => of_api(source, *standing, *hangs).into(),
            Self::Unkillable { pid, .. } => {
                format!("it is stuck in the kernel; see where in /proc/{pid}/stack")
            }
            Self::Io { source, .. } => of_system(source).into(),
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
