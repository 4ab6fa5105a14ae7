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
//!   was put to sleep in order has no processes in its record.
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
use crate::record::{Record, Recorded};
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
            | Self::Paused(Pause::Snapshot | Pause::Other)
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

/// The VM's own process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Main {
    /// It runs.
    Runs,
    /// It was stopped by a signal.
    Stopped,
    /// It is not there.
    Gone,
}

/// What a VM is that `mvmctl` has started. Whether its lock is held, and how it ended, are asked for
/// only where that matters.
pub(crate) fn now<E>(
    record: &Record,
    main: Main,
    is_locked: impl Fn() -> Result<bool, E>,
    ending: impl FnOnce() -> Result<Ending, E>,
) -> Result<VmState, E> {
    let runs = main != Main::Gone;
    Ok(match record.state {
        Recorded::Starting if is_locked()? => VmState::Starting,
        Recorded::Starting => VmState::StartBrokenOff,
        Recorded::Running | Recorded::Stopping if main == Main::Runs => VmState::Running,
        Recorded::Running | Recorded::Stopping if runs => VmState::Paused(Pause::Other),
        Recorded::Asleep if runs && is_locked()? => VmState::Paused(Pause::Snapshot),
        Recorded::Asleep if runs => VmState::Paused(Pause::BrokenSnapshot),
        Recorded::Asleep if record.processes.is_empty() => VmState::Asleep {
            snapshot: record.suspended_in.clone(),
        },
        Recorded::Asleep if is_locked()? => VmState::Paused(Pause::Snapshot),
        Recorded::Stopped if runs => VmState::StartBrokenOff,
        Recorded::Running | Recorded::Asleep => VmState::Ended(ending()?),
        Recorded::Stopping | Recorded::Stopped => VmState::Stopped,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::record;
    use crate::{Process, Role};
    use std::convert::Infallible;

    fn told(state: Recorded, main: Main, is_locked: bool) -> VmState {
        let record = Record {
            state,
            processes: vec![Process {
                role: Role::Vmm,
                pid: 7,
                start_ticks: 1,
            }],
            ..record()
        };
        let told = now::<Infallible>(&record, main, || Ok(is_locked), || Ok(Ending::Unknown));
        told.unwrap()
    }

    #[test]
    fn each_state_by_record_process_and_lock() {
        use Main::{Gone, Runs};
        let ended = VmState::Ended(Ending::Unknown);
        for (recorded, main, is_locked, expected) in [
            (Recorded::Starting, Runs, true, VmState::Starting),
            (Recorded::Starting, Gone, true, VmState::Starting),
            (Recorded::Starting, Runs, false, VmState::StartBrokenOff),
            (Recorded::Starting, Gone, false, VmState::StartBrokenOff),
            (Recorded::Running, Runs, false, VmState::Running),
            (Recorded::Running, Runs, true, VmState::Running),
            (
                Recorded::Running,
                Main::Stopped,
                false,
                VmState::Paused(Pause::Other),
            ),
            (Recorded::Running, Gone, false, ended.clone()),
            (Recorded::Running, Gone, true, ended.clone()),
            (Recorded::Stopping, Runs, true, VmState::Running),
            (Recorded::Stopping, Runs, false, VmState::Running),
            (Recorded::Stopping, Gone, true, VmState::Stopped),
            (Recorded::Stopping, Gone, false, VmState::Stopped),
            (
                Recorded::Asleep,
                Runs,
                true,
                VmState::Paused(Pause::Snapshot),
            ),
            (
                Recorded::Asleep,
                Runs,
                false,
                VmState::Paused(Pause::BrokenSnapshot),
            ),
            (
                Recorded::Asleep,
                Gone,
                true,
                VmState::Paused(Pause::Snapshot),
            ),
            (Recorded::Asleep, Gone, false, ended.clone()),
            (Recorded::Stopped, Runs, false, VmState::StartBrokenOff),
            (Recorded::Stopped, Gone, false, VmState::Stopped),
        ] {
            let told = told(recorded, main, is_locked);
            assert_eq!(told, expected, "{recorded:?}, {main:?}, {is_locked}");
        }
    }

    #[test]
    fn one_that_was_put_to_sleep_in_order_is_asleep() {
        let record = Record {
            state: Recorded::Asleep,
            suspended_in: Some("/s".into()),
            ..record()
        };
        let told = now::<Infallible>(&record, Main::Gone, || Ok(false), || Ok(Ending::Unknown));
        let snapshot = Some("/s".into());
        assert_eq!(told.unwrap(), VmState::Asleep { snapshot });
    }
}
