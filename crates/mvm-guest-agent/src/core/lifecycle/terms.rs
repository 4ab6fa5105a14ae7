//! The terms in which the lifecycle speaks with the rest of the core.

use crate::core::WaiterId;
use mvm_protocol::lifecycle::{Awake, Outcome, Ready as ReadyAnswer, Step, StepKind, Wake};
use mvm_protocol::status::{Lifecycle as Phase, RestoreSign};
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
    /// Freeze the guest's work.
    Freeze,
    /// Sync what was written until it was frozen.
    LastSync,
    /// Drop the page cache.
    DropCaches,
    /// Look whether all that was frozen still is, and freeze again what somebody else has thawed.
    CheckFrozen,
    /// Reseed the kernel's random generator.
    Reseed,
    /// Set the wall clock.
    Clock,
    /// Give the clone its own machine-id, hostname and boot id.
    Identity,
    /// Put the wake's payload where programs find it, or remove that of the wake before.
    Payload,
    /// Run this integration's personalize command.
    Personalize(String),
    /// Write the generation's number, by which programs see that they were restored.
    Generation,
    /// Let the guest's work run again.
    Thaw,
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
            Self::Freeze | Self::CheckFrozen => StepKind::Freeze,
            Self::Reseed => StepKind::Reseed,
            Self::Clock => StepKind::Clock,
            Self::Identity | Self::Generation => StepKind::Identity,
            Self::Payload => StepKind::Payload,
            Self::Personalize(_) => StepKind::Personalize,
            Self::Thaw => StepKind::Thaw,
            Self::Restore(_) => StepKind::Restore,
            Self::Resume => StepKind::Resume,
        }
    }

    /// Whether it must not begin unless the journal could be written. On the way to sleep a debt that
    /// nobody would remember is not made; on the way back each step is taken whatever became of the
    /// one before.
    pub(crate) fn needs_journal(&self) -> bool {
        matches!(
            self,
            Self::Drain
                | Self::Checkpoint(_)
                | Self::Sync
                | Self::Freeze
                | Self::LastSync
                | Self::DropCaches
        )
    }

    /// Whether a restored guest needs it before its work runs.
    pub(super) fn is_before_work(&self) -> bool {
        matches!(
            self,
            Self::CheckFrozen
                | Self::Reseed
                | Self::Clock
                | Self::Identity
                | Self::Payload
                | Self::Personalize(_)
                | Self::Generation
        )
    }

    /// Whether it is reported only if something was amiss: a look, or a part of what another step
    /// reports.
    pub(super) fn is_silent(&self, done: &Done) -> bool {
        matches!(self, Self::CheckFrozen | Self::Generation)
            && done.outcome == Outcome::Ok
            && done.detail.is_none()
    }

    pub(super) fn integration(&self) -> Option<&str> {
        match self {
            Self::Checkpoint(name) | Self::Personalize(name) | Self::Restore(name) => Some(name),
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

    /// Why a sleep comes to nothing that needed it, or what else is amiss.
    pub(super) fn failure(&self, done: &Done) -> String {
        let what = match self {
            Self::Checkpoint(name) => format!("the checkpoint of `{name}`"),
            Self::Personalize(name) => format!("the personalize command of `{name}`"),
            Self::Drain => "the drain".to_owned(),
            Self::Freeze | Self::CheckFrozen => "the freeze".to_owned(),
            Self::Reseed => "the reseed".to_owned(),
            Self::Clock => "setting the clock".to_owned(),
            Self::Identity => "the identity".to_owned(),
            Self::Payload => "writing the payload".to_owned(),
            Self::Generation => "writing the generation".to_owned(),
            Self::Thaw => "the thaw".to_owned(),
            Self::Restore(name) => format!("the restore command of `{name}`"),
            Self::Resume => "the resume".to_owned(),
            Self::Sync | Self::LastSync | Self::DropCaches => "the sync".to_owned(),
        };
        let how = match done.outcome {
            Outcome::TimedOut => "timed out",
            Outcome::Skipped => "was not possible",
            _ => "failed",
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
    pub(crate) personalize: bool,
    pub(crate) restore: bool,
    pub(crate) critical: bool,
}

/// Why the guest runs on, as `MVM_CAUSE` tells commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Cause {
    /// A host says that it was restored from a snapshot.
    Restored,
    /// A host says that the sleep came to nothing.
    Aborted,
    /// The lease ran out.
    Lease,
    /// A required step failed, or the deadline passed.
    Rollback,
    /// The agent was started again.
    Restart,
}

impl Cause {
    /// The word for it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Restored => "restored",
            Self::Aborted => "aborted",
            Self::Lease => "lease",
            Self::Rollback => "rollback",
            Self::Restart => "restart",
        }
    }
}

/// What has to survive the agent: kept in the run directory, so as long as the guest runs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Journal {
    /// Whether the guest was anything but running.
    pub(crate) asleep: bool,
    /// Whose restore command is owed, in the order of the debts.
    pub(crate) owed: Vec<String>,
    /// Whether the guest's work is frozen, or is just being frozen or thawed.
    pub(crate) frozen: bool,
    /// Whether a restored guest has begun to wake and is not personalized yet: its work must not run.
    pub(crate) restoring: Option<Restoring>,
    /// How many restores this guest has seen.
    pub(crate) generation: u64,
    /// When it was last made ready, in epoch milliseconds.
    pub(crate) last_sleep_ms: Option<i64>,
    /// When it last woke, in epoch milliseconds.
    pub(crate) last_wake_ms: Option<i64>,
    /// Whether a lease ran out, and no host has been told.
    pub(crate) lease_expired: bool,
    /// By what a restore was noticed that nobody has announced yet, and for which nothing has been
    /// done yet.
    pub(crate) noticed: Option<RestoreSign>,
    /// How many restores were noticed that nobody announced.
    pub(crate) unannounced: u64,
}

/// A restored guest that is not personalized yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Restoring {
    /// Whether it is one of several from one snapshot.
    pub(crate) clone: bool,
    /// Whether no host has said that it was restored: then nobody says how it is to be personalized
    /// either.
    #[serde(default)]
    pub(crate) unannounced: bool,
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
        /// Why the guest runs on, if it does.
        cause: Option<Cause>,
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
    /// Log what of waking up failed, whether a host is told of it or not.
    Amiss(String),
    /// Publish to watchers that the guest was restored and nobody has announced it.
    Unannounced(RestoreSign),
    /// Answer a `sleep-prep`.
    Ready(WaiterId, ReadyAnswer),
    /// Answer a `wake`.
    Awake(WaiterId, Awake),
    /// Answer a `sleep-prep` that failed: why, and with which steps.
    Failed(WaiterId, String, Vec<Step>),
    /// Answer a `wake` after which the guest is held frozen: why, and with which steps.
    Held(WaiterId, String, Vec<Step>),
    /// Answer a `wake` of a guest that was not frozen, and so runs, although a critical personalize
    /// command failed: why, and with which steps.
    NotPersonalized(WaiterId, String, Vec<Step>),
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

impl Done {
    /// Whether it was tried and did not succeed.
    pub(super) fn has_failed(&self) -> bool {
        matches!(self.outcome, Outcome::Failed | Outcome::TimedOut)
    }
}

/// A `wake`, and what is needed to know it again: a host that lost the answer sends it again.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct WakeAsked {
    pub(crate) wake: Wake,
    /// A hash of the whole request.
    pub(crate) fingerprint: u64,
}
