//! What is handed in: what the VMs' folders say, and what the guests' agents say.

use crate::actions::ActionKind;
use mvm_protocol::Timestamp;
use mvm_protocol::answer::{Change, Event};
use mvm_protocol::status::{Inspect, Status};

/// What came about in the folders in which VMs are looked for.
#[derive(Debug, Clone, PartialEq)]
pub enum RegistryEvent {
    /// All folders were looked at. What is not listed is gone.
    Listed {
        /// All VMs that were found.
        vms: Vec<Registered>,
        /// Whether every folder could be looked at. If not there may be more VMs, so none is taken
        /// for gone, and the view is not complete until a later listing is.
        whole: bool,
    },
    /// A VM is new, or its folder says something else than before.
    Changed(Registered),
    /// A VM's folder is gone.
    Gone {
        /// Its name.
        name: String,
    },
}

/// What a VM's folder and processes say of it.
///
/// Moments are those of the host's wall clock, since they outlive every process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    /// Its name.
    pub name: String,
    /// Its label `pool`, if it has one.
    pub pool: Option<String>,
    /// What it is now.
    pub run_state: RunState,
    /// Since when it is that. None where nobody has noted it: then no period counts for it.
    pub since: Option<Timestamp>,
    /// When it was started or cloned. A sleep and a wake do not change it.
    pub started_at: Option<Timestamp>,
    /// Whether it ended by itself, and not in order: it crashed, panicked or was killed.
    pub has_crashed: bool,
    /// Whether the fleet made it, as a clone of its pool's `golden`. Only such are removed once they
    /// have ended.
    pub made_by_fleet: bool,
    /// Whether the fleet must leave it alone.
    pub pinned: bool,
    /// When a host last said that it is in use.
    pub touched_at: Option<Timestamp>,
    /// Until when a host wants it kept as it is.
    pub keep_until: Option<Timestamp>,
    /// The fleet's last action on it that failed, if none has succeeded since that
    /// [clears](ActionKind::clears) it.
    pub failed: Option<FailedAction>,
}

impl Registered {
    /// A VM of which its folder says nothing but what it is.
    pub fn new(name: impl Into<String>, run_state: RunState) -> Self {
        Self {
            name: name.into(),
            pool: None,
            run_state,
            since: None,
            started_at: None,
            has_crashed: false,
            made_by_fleet: false,
            pinned: false,
            touched_at: None,
            keep_until: None,
            failed: None,
        }
    }
}

/// What a VM is, by its record and its processes, without asking its guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RunState {
    /// Its processes are being started.
    Starting,
    /// It runs, so its agent should answer.
    Running,
    /// Its vCPUs stand still.
    Paused {
        /// Whether the fleet has paused it. What somebody else has paused is theirs to resume.
        by_fleet: bool,
    },
    /// It was snapshotted, and its VMM has ended.
    Asleep,
    /// It was stopped.
    Stopped,
    /// Its VMM ended by itself.
    Ended,
    /// Whoever started it did not live to see it run.
    StartBrokenOff,
    /// Somebody else runs it: it can be asked, and nothing else.
    NotOurs,
    /// Its record cannot be read, so that nobody can say.
    Unreadable,
}

impl RunState {
    /// Whether its agent should answer.
    pub fn is_watched(self) -> bool {
        match self {
            Self::Running | Self::NotOurs => true,
            Self::Starting
            | Self::Paused { .. }
            | Self::Asleep
            | Self::Stopped
            | Self::Ended
            | Self::StartBrokenOff
            | Self::Unreadable => false,
        }
    }
}

/// An action of the fleet on a VM that failed, as its folder has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailedAction {
    /// What was tried.
    pub action: ActionKind,
    /// When it failed last.
    pub at: Timestamp,
    /// How many times in a row it has failed: 1 or more.
    pub times: u32,
}

/// What came of watching a VM's agent.
#[derive(Debug, Clone, Copy)]
pub enum AgentEvent<'a> {
    /// The first frame of a `watch`, or the answer to a `status` before it on the same connection.
    Status(&'a Status),
    /// The answer to an `inspect`, likewise.
    Inspect(&'a Inspect),
    /// The answer to a `status` on a connection of its own, as [`Effect::Ask`](crate::Effect::Ask) wants
    /// it. It may be older than what the watch has told since: it says what integrations there are, and
    /// not what the guest does, nor that it is there.
    AskedStatus(&'a Status),
    /// The answer to an `inspect`, likewise.
    AskedInspect(&'a Inspect),
    /// An event of a `watch`, heartbeats included.
    Event(&'a Event),
    /// It could not be reached, or the watch ended by an error or a deadline.
    Lost,
    /// The guest is about to be frozen, and the connection was closed for that.
    LetGo,
}

impl AgentEvent<'_> {
    /// Whether integrations or probes may have come or gone, so that the agent is to be asked anew.
    pub(crate) fn is_stale(&self) -> bool {
        matches!(self, Self::Event(event) if matches!(event.change, Change::DropIns { .. }))
    }
}
