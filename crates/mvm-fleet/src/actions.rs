//! What the fleet does to VMs, and what came of it.

use crate::label;
use mvm_protocol::Timestamp;
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;

/// What the fleet can do to a VM, in the order in which a plan lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum ActionKind {
    /// Let a paused VM run on.
    Resume,
    /// Restore a sleeper from its snapshot.
    Wake,
    /// Make a new VM from the pool's `golden`.
    Clone,
    /// Remove a VM's folder, snapshot and all. It does not run.
    Remove,
    /// Let its vCPUs stand still.
    Pause,
    /// Snapshot and stop it. One that is paused is resumed for that.
    Sleep,
    /// End it as `vm stop` does.
    Stop,
}

impl ActionKind {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Resume,
        Self::Wake,
        Self::Clone,
        Self::Remove,
        Self::Pause,
        Self::Sleep,
        Self::Stop,
    ];

    /// The action as it stands in labels and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Wake => "wake",
            Self::Resume => "resume",
            Self::Clone => "clone",
            Self::Remove => "remove",
            Self::Pause => "pause",
            Self::Sleep => "sleep",
            Self::Stop => "stop",
        }
    }

    /// Whether its success ends the failures of another action on the same VM: its own, and all where the
    /// VM is another one from then on. A pause and a resume leave it what it is: a VM that is resumed for
    /// its sleep, and whose sleep fails, is paused again before the next try.
    pub fn clears(self, failed: Self) -> bool {
        match self {
            Self::Pause | Self::Resume => self == failed,
            Self::Wake | Self::Clone | Self::Remove | Self::Sleep | Self::Stop => true,
        }
    }
}

impl fmt::Display for ActionKind {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What came of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It was done.
    Ok,
    /// It failed. The VM is as it was.
    Failed,
    /// It was not begun: the VM was not any more what the plan took it for.
    Skipped,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ok, Self::Failed, Self::Skipped];

    /// The outcome as it stands in labels and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        }
    }
}

/// An action that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Ended {
    /// When.
    pub at: Timestamp,
    /// The VM's pool.
    pub pool: Box<str>,
    /// The VM.
    pub vm: Box<str>,
    /// What was done.
    pub action: ActionKind,
    /// What came of it.
    pub outcome: Outcome,
    /// Why it was done.
    pub reason: String,
    /// Why it failed or was skipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// How many actions of each kind have ended and how, and the last ones in full.
///
/// The counts begin anew with each start of the program, as counters of metrics may.
#[derive(Debug, Clone, Default)]
pub struct ActionLog {
    counts: BTreeMap<(Box<str>, ActionKind, Outcome), u64>,
    last: VecDeque<Ended>,
}

impl ActionLog {
    /// How many of the last actions are kept in full.
    pub const KEPT: usize = 64;

    /// Takes down an action that has ended.
    pub fn ended(&mut self, ended: Ended) {
        let key = (label::clean(&ended.pool), ended.action, ended.outcome);
        *self.counts.entry(key).or_default() += 1;
        if self.last.len() == Self::KEPT {
            self.last.pop_front();
        }
        self.last.push_back(ended);
    }

    /// The last actions, oldest first.
    pub fn last(&self) -> impl Iterator<Item = &Ended> {
        self.last.iter()
    }

    /// How many times that was done in that pool with that outcome.
    pub fn count(&self, pool: &str, action: ActionKind, outcome: Outcome) -> u64 {
        let key = (label::clean(pool), action, outcome);
        self.counts.get(&key).copied().unwrap_or(0)
    }

    /// The pools in which something was done.
    pub(crate) fn pools(&self) -> impl Iterator<Item = &str> {
        self.counts.keys().map(|(pool, ..)| &**pool)
    }
}
