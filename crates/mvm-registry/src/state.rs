//! What a VM is now: one answer, from one place.
//!
//! ```text
//!                 start, restore                 it is up               frozen, or
//!   (no VM) ──────────────────────► starting ─────────────► running ◄───────────────► paused
//!      ▲                               │                    │     │    lets it run on    │
//!      │ rm                            │ mvmctl is killed   │     │ by itself            │ its process ends,
//!      │                               ▼                    │     ▼                      ▼ the snapshot is kept
//!      │                       start-broken-off             │   ended                  asleep
//!      │                               │                    │     │                      │
//!      │                    stop,      ▼          stop      ▼     ▼  stop                │ restore
//!      └───────────────────────── stopped ◄───────────────────────┘                      ▼
//!                                                                                     starting
//! ```
//!
//! The happy path: `vm start` takes the VM's lock, writes `starting` into `vm.json`, starts the
//! processes and writes each down as it comes; when the agent answers it writes `running` and gives
//! the lock back. `vm stop` writes `stopping`, asks the guest, ends what is left and writes `stopped`.
//! `vm pause` writes `paused` before the VM stands still, `vm resume` writes `running` when it runs on.
//! `vm snapshot` writes `asleep` before the VM may be frozen, and `running` when it surely runs on; or,
//! with `--stop`, ends the processes and leaves `asleep`, with the snapshot's folder.
//!
//! What the file says was true when it was written. What is true now, three things decide besides it,
//! none of which can be out of date: whether the VM's own process lives (a pidfd, so that no other
//! process of that number is taken for it), whether somebody holds the VM's lock, and, for one that
//! runs, whether its VMM says that its CPUs stand still.
//!
//! How each state can be left without being told:
//!
//! - **running, and its process is gone.** Nobody stopped it: `vm stop` would have written `stopping`
//!   first. It has *ended*, and [`Ending`] says how as far as anything does. It is not dialled: what is
//!   left of it (vhost-device-vsock outlives its QEMU) would take the connection and never answer.
//! - **starting, and nobody holds the lock.** The `mvmctl` that started it was killed. It is *start
//!   broken off*, whether processes of it run or not: none of them was seen to answer.
//! - **stopping, and its process is gone.** The `mvmctl` that asked was killed while it waited, and
//!   the guest did as it was asked: it is *stopped*.
//! - **asleep, and its process runs.** It is being snapshotted if somebody holds the lock; otherwise
//!   the snapshot was broken off, and it is *paused* until `vm wake` lets it run on.
//! - **asleep, its processes written down and gone.** It died while it was frozen: *ended*. One that
//!   was put to sleep in order has no processes in its record, or, if nobody lived to see the end of
//!   them, the snapshot in which it sleeps.
//! - **paused, and its process is gone.** As with one that runs: it has *ended*.
//! - **stopped, and its process runs.** A start failed and could not end it: *start broken off*.
//! - **running, its process there, and standing still.** Something else paused it: a person at QEMU's
//!   monitor, an orchestrator at Firecracker's API, a `SIGSTOP`. It is *paused*. A CONNECT to such a
//!   VM can wedge its vsock backend for good, so the VMM is asked before each dial, for a bounded time;
//!   one that does not say is not dialled either.
//! - **The machine was booted anew.** All processes are gone, whatever has their numbers now: what ran
//!   has *ended*, what was starting was broken off, what slept sleeps.
//!
//! A VM that something else runs (a bare socket, another's `vm.json`, one found by `discover`) has
//! none of this but what its owner writes: it is *not ours*, and dialled unless its record says that
//! it does not run.

use crate::ending::Ending;
use std::fmt;
use std::path::PathBuf;

/// What a VM is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmState {
    /// Its VMM runs, and so do its CPUs as far as was asked.
    Running,
    /// It is being started.
    Starting,
    /// It is there and stands still.
    Paused(Pause),
    /// It was put to sleep in order, and lives on in a snapshot.
    Asleep {
        /// The snapshot's folder. Records of older versions do not say it.
        snapshot: Option<PathBuf>,
    },
    /// It was stopped, or never came up.
    Stopped,
    /// It has ended by itself.
    Ended(Ending),
    /// The `mvmctl` that started it was killed.
    StartBrokenOff,
    /// Something else than `mvmctl` runs it. The state is as that one's record has it; none means that
    /// it runs as far as anybody knows.
    NotOurs {
        /// Such as `asleep`, or a word that this version does not know.
        state: Option<String>,
    },
    /// What it is cannot be told.
    Unknown(Untold),
}

/// Why a VM stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pause {
    /// Its snapshot is being taken.
    Snapshot,
    /// Its snapshot was broken off.
    BrokenSnapshot,
    /// It was paused by `vm pause`.
    Asked,
    /// The fleet has paused it.
    Fleet,
    /// Something else has paused it.
    Other,
}

/// Why it cannot be told what a VM is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Untold {
    /// This user may not read its record.
    Forbidden {
        /// The record.
        path: PathBuf,
    },
    /// Its record cannot be read.
    Unreadable {
        /// The record.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// Others may have written its record.
    NotTrusted {
        /// The record, or a folder on the way to it.
        path: PathBuf,
        /// Why it is not believed.
        problem: String,
    },
    /// Its VMM does not say whether it is paused.
    SilentVmm {
        /// Why.
        problem: String,
    },
}

impl VmState {
    /// For programs, in kebab-case.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Starting => "starting",
            Self::Paused(_) => "paused",
            Self::Asleep { .. } => "asleep",
            Self::Stopped => "stopped",
            Self::Ended(_) => "ended",
            Self::StartBrokenOff => "start-broken-off",
            Self::NotOurs { .. } => "not-ours",
            Self::Unknown(_) => "unknown",
        }
    }

    /// Whether it does not run, and is meant not to: nothing that anybody has to look after.
    pub fn is_off(&self) -> bool {
        match self {
            Self::Starting
            | Self::Paused(Pause::Snapshot | Pause::Asked | Pause::Fleet | Pause::Other)
            | Self::Asleep { .. }
            | Self::Stopped
            | Self::NotOurs { state: Some(_) } => true,
            Self::Running
            | Self::Paused(Pause::BrokenSnapshot)
            | Self::Ended(_)
            | Self::StartBrokenOff
            | Self::NotOurs { state: None }
            | Self::Unknown(_) => false,
        }
    }
}

impl fmt::Display for VmState {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Ended(ending) => write!(f, "ended ({})", ending.in_short()),
            Self::StartBrokenOff => f.write_str("start broken off"),
            Self::NotOurs { state } => f.write_str(state.as_deref().unwrap_or("running")),
            state => f.write_str(state.code()),
        }
    }
}
