//! What the view of a fleet is fed with: `mvmctl fleet serve` and `vm top` have it from here.
//!
//! ```text
//! folders   what the VMs' folders say, followed      ── Fed::Registry ──►  Sink
//! watching  a watch connection for each VM that      ── Fed::Agent    ──►
//!           should answer, as the view asks
//! clock     the host's clocks, read together      ── Now ──►
//! ```

pub(crate) mod clock;
pub(crate) mod folders;
pub(crate) mod watching;

use mvm_fleet::{AgentEvent, RegistryEvent, Ticket};
use mvm_protocol::answer::Event;
use mvm_protocol::status::{Inspect, Status};

/// How many inputs of a view may wait. Whoever has more waits himself: agents that send faster than
/// they are taken are read more slowly.
pub(crate) const WAITING: usize = 1024;

/// What has come about.
#[derive(Debug)]
pub(crate) enum Fed {
    /// In the folders.
    Registry(RegistryEvent),
    /// On a VM's watch connection.
    Agent(Ticket, Heard),
    /// The folders that could not be looked at are others than before; none of them any more if it is
    /// empty. What could be seen was told before.
    Unreadable(Vec<Unreadable>),
}

/// A folder that could not be looked at: there may be VMs in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unreadable {
    /// Which, and why.
    pub(crate) problem: String,
    /// What to do next.
    pub(crate) hint: Option<&'static str>,
}

/// An [`AgentEvent`] on its way.
#[derive(Debug)]
pub(crate) enum Heard {
    Status(Box<Status>),
    Inspect(Box<Inspect>),
    AskedStatus(Box<Status>),
    AskedInspect(Box<Inspect>),
    Event(Box<Event>),
    Lost,
    LetGo,
}

impl Heard {
    /// The event, as the view takes it.
    pub(crate) fn event(&self) -> AgentEvent<'_> {
        match self {
            Self::Status(status) => AgentEvent::Status(status),
            Self::Inspect(inspect) => AgentEvent::Inspect(inspect),
            Self::AskedStatus(status) => AgentEvent::AskedStatus(status),
            Self::AskedInspect(inspect) => AgentEvent::AskedInspect(inspect),
            Self::Event(event) => AgentEvent::Event(event),
            Self::Lost => AgentEvent::Lost,
            Self::LetGo => AgentEvent::LetGo,
        }
    }
}

/// Where it goes: to the one who owns the view.
pub(crate) trait Sink: Clone + Send + Sync + 'static {
    /// Hands it in, when there is room. An owner that has ended needs none.
    fn feed(&self, fed: Fed) -> impl Future<Output = ()> + Send;
}
