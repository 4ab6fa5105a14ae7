//! The terms in which the lifecycle speaks with the rest of the core.

use crate::core::WaiterId;
use mvm_protocol::lifecycle::{Awake, Outcome, Ready as ReadyAnswer, Step, StepKind, Wake};
use mvm_protocol::status::Lifecycle as Phase;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// One tick of the agent's own time at most. The lease counts these and not the clock, so that a
/// clock that jumps when the guest is restored cannot end it.
pub(crate) const TICK: Duration = Duration::from_secs(1);

/// How long checks that run when a sleep begins may go on before they are killed.
pub(crate) const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// What is to be done next, one at a time.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Task {
    /// Wait for running checks, and end them after [`DRAIN_GRACE`].
    Drain,
    /// Run this integration's checkpoint command.
    Checkpoint(String),
    /// Sync each writable local filesystem.
    Sync,
    /// Drop the page cache.
    DropCaches,
    /// Sync what dropping the cache, or a late writer, has left.
    LastSync,
    /// Reseed the kernel's random generator.
    Reseed,
    /// Set the wall clock.
    Clock,
    /// Give the clone its own machine-id, hostname and boot id, and write the generation's number.
    Identity,
    /// Run this integration's restore command.
    Restore(String),
    /// Let checks run again.
    Resume,
}

impl Task {
    /// The step as which it is reported.
    pub(crate) fn kind(&self) -> StepKind {
        match self {
            Self::Drain => StepKind::Drain,
            Self::Checkpoint(_) => StepKind::Checkpoint,
            Self::Sync | Self::LastSync => StepKind::Sync,
            Self::DropCaches => StepKind::DropCaches,
            Self::Reseed => StepKind::Reseed,
            Self::Clock => StepKind::Clock,
            Self::Identity => StepKind::Identity,
            Self::Restore(_) => StepKind::Restore,
            Self::Resume => StepKind::Resume,
        }
    }

    /// Whether it makes the guest ready to be frozen. The others are taken when it runs on.
    pub(crate) fn is_on_the_way_to_sleep(&self) -> bool {
        match self {
            Self::Drain | Self::Checkpoint(_) | Self::Sync | Self::DropCaches | Self::LastSync => {
                true
            }
            Self::Reseed | Self::Clock | Self::Identity | Self::Restore(_) | Self::Resume => false,
        }
    }

    pub(super) fn integration(&self) -> Option<&str> {
        match self {
            Self::Checkpoint(name) | Self::Restore(name) => Some(name),
            _ => None,
        }
    }

    /// Its report.
    pub(super) fn step(&self, done: &Done) -> Step {
        Step {
            step: self.kind().into(),
            integration: self.integration().map(str::to_owned),
            outcome: done.outcome.into(),
            duration_ms: done.duration_ms,
            detail: done.detail.clone(),
        }
    }

    /// Why a sleep comes to nothing that needed it.
    pub(super) fn failure(&self, done: &Done) -> String {
        let what = match self {
            Self::Checkpoint(name) => format!("the checkpoint of `{name}`"),
            Self::Drain => "the drain".to_owned(),
            _ => "the sync".to_owned(),
        };
        let how = if done.outcome == Outcome::TimedOut {
            "timed out"
        } else {
            "failed"
        };
        match &done.detail {
            Some(detail) => format!("{what} {how}: {detail}"),
            None => format!("{what} {how}"),
        }
    }
}

/// What one integration has to do with a sleep.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Participant {
    pub(crate) name: String,
    pub(crate) checkpoint: bool,
    pub(crate) restore: bool,
    pub(crate) critical: bool,
}

/// What has to survive the agent: kept in the run directory, so as long as the guest runs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Journal {
    /// Whether the guest was anything but running.
    pub(crate) asleep: bool,
    /// Whose restore command is owed, in the order of the debts.
    pub(crate) owed: Vec<String>,
    /// How many restores this guest has seen.
    pub(crate) generation: u64,
    /// When it was last made ready, in epoch milliseconds.
    pub(crate) last_sleep_ms: Option<i64>,
    /// When it last woke, in epoch milliseconds.
    pub(crate) last_wake_ms: Option<i64>,
    /// Whether a lease ran out, and no host has been told.
    pub(crate) lease_expired: bool,
}

/// What the lifecycle wants done.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Act {
    /// Do this within the limit, and report its end. The journal comes first: a checkpoint command
    /// must not be started as long as its debt could be forgotten.
    Do {
        task: Task,
        limit: Duration,
        journal: Journal,
    },
    /// End the task that is under way: its outcome is still reported.
    Cancel,
    /// Keep the journal.
    Keep(Journal),
    /// Hold checks.
    Hold,
    /// Let checks run.
    Release,
    /// Publish this phase to watchers.
    Enter(Phase),
    /// Answer a `sleep-prep`.
    Ready(WaiterId, ReadyAnswer),
    /// Answer a `wake`.
    Awake(WaiterId, Awake),
    /// Answer a `sleep-prep` that failed: why, and with which steps.
    Failed(WaiterId, String, Vec<Step>),
    /// Answer with `busy` and why.
    Busy(WaiterId, &'static str),
    /// Answer with `wrong-token`.
    WrongToken(WaiterId),
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Done {
    pub(crate) outcome: Outcome,
    pub(crate) duration_ms: u64,
    pub(crate) detail: Option<String>,
}

/// A `wake`, and what is needed to know it again: a host that lost the answer sends it again.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct WakeAsked {
    pub(crate) wake: Wake,
    /// A hash of the whole request.
    pub(crate) fingerprint: u64,
}
