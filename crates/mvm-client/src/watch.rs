//! A status, then what changes, until somebody ends it.

use crate::handshake::Stream;
use crate::session::Incoming;
use crate::{Awaited, Error, Session};
use mvm_protocol::answer::{Change, Event};
use mvm_protocol::request::Watch;
use mvm_protocol::status::{Health, IntegrationStatus, Lifecycle, Status};
use mvm_protocol::{Answer, Lenient, MAX_BODY, Request};
use std::fmt;
use std::time::Duration;
use tokio::time::timeout;

/// How many heartbeats may be missing before a guest is taken for lost.
///
/// After a snapshot or a crash of the VMM the host's end of a connection can stay open and silent
/// for ever; one missing heartbeat may be a busy machine.
const MISSED: u32 = 3;

/// The events of one guest.
pub struct Watcher {
    stream: Option<Box<dyn Stream>>,
    incoming: Incoming,
    id: u64,
    silence: Duration,
}

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Watcher")
            .field("endpoint", &self.incoming.endpoint)
            .field("silence", &self.silence)
            .finish_non_exhaustive()
    }
}

impl Watcher {
    /// Begins to watch, and gives the status as it is now. `heartbeat` is how often a quiet guest
    /// says that it is there: 50 ms to a day.
    ///
    /// A guest that is `ready` already may be frozen at any moment: its connection is closed before
    /// this returns, and [`Watcher::next`] gives `None`.
    ///
    /// # Errors
    ///
    /// Those of [`Session::request`].
    pub async fn start(mut session: Session, heartbeat: Duration) -> Result<(Status, Self), Error> {
        let request = Request::Watch(Watch {
            heartbeat_secs: heartbeat.as_secs_f64(),
        });
        let id = session.next_id;
        let status = match session.request(&request).await? {
            Answer::Status(status) => status,
            other => return Err(session.incoming.astray(&other, "watch")),
        };
        let is_ready = status.lifecycle == Lifecycle::Ready;
        let watcher = Self {
            stream: (!is_ready).then_some(session.stream),
            incoming: session.incoming,
            id,
            silence: heartbeat.saturating_mul(MISSED),
        };
        Ok((status, watcher))
    }

    /// The next event, heartbeats included; `None` once the guest's lifecycle is `ready`: the
    /// connection is closed then, since the guest is about to be frozen. Events that this version
    /// does not know are left out. The future may be dropped without losing anything.
    ///
    /// # Errors
    ///
    /// [`Error::TimedOut`] with [`Awaited::Event`] when three heartbeats are missing,
    /// [`Error::Closed`] when the agent went away; the watch is over after any error.
    pub async fn next(&mut self) -> Result<Option<Event>, Error> {
        let event = self.receive().await;
        match &event {
            Ok(Some(event)) if !is_ready(event) => {}
            _ => self.stream = None,
        }
        event
    }

    async fn receive(&mut self) -> Result<Option<Event>, Error> {
        loop {
            let Some(stream) = &mut self.stream else {
                return Ok(None);
            };
            let answer = self.incoming.event(stream, self.id);
            match timeout(self.silence, answer).await {
                Err(_) => return Err(self.incoming.timed_out(Awaited::Event, self.silence)),
                Ok(Err(error)) => return Err(error),
                Ok(Ok(Err(refusal))) => return Err(Error::Refused(refusal)),
                Ok(Ok(Ok(Answer::Event(event)))) => match event.change {
                    Change::Unknown {} => {}
                    _ => return Ok(Some(event)),
                },
                Ok(Ok(Ok(other))) => return Err(self.incoming.astray(&other, "watch")),
            }
        }
    }
}

fn is_ready(event: &Event) -> bool {
    matches!(event.change, Change::Lifecycle { lifecycle } if lifecycle == Lifecycle::Ready)
}

/// What an event does to a status that is kept up to date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// The status shows the change.
    Shown,
    /// It cannot be shown: integrations may have come or gone, or are more than is kept
    /// ([`MOST_INTEGRATIONS`], [`MOST_TEXT`]). The status has to be asked for anew, after a pause: a
    /// guest can say so as often as it likes.
    Stale,
}

/// How many integrations a status that is kept up to date holds.
pub const MOST_INTEGRATIONS: usize = 4096;

/// How many bytes of text it holds: names, and what checks printed. That is four times as much as an
/// answer can have.
pub const MOST_TEXT: usize = 4 * MAX_BODY;

/// Brings a status up to date with a change. However many changes come, it stays within bounds.
pub fn apply(status: &mut Status, change: &Change) -> Applied {
    match change {
        Change::Worker { worker } => status.worker = worker.clone(),
        Change::Lifecycle { lifecycle } => status.lifecycle = *lifecycle,
        Change::Integration { integration } => {
            let text: usize = status.integrations.iter().map(text_of).sum();
            let room = MOST_TEXT.saturating_sub(text) >= text_of(integration);
            let count = status.integrations.len();
            let known = status
                .integrations
                .iter_mut()
                .find(|known| known.name == integration.name);
            let has_room = room && (known.is_some() || count < MOST_INTEGRATIONS);
            if !has_room {
                return Applied::Stale;
            }
            match known {
                Some(known) => known.clone_from(integration),
                // One of those for which the first frame had no room: they are healthy, and
                // nothing tells which of them this is.
                None if status.integrations_omitted > 0 => {
                    status.integrations_omitted -= 1;
                    status.integrations.push((**integration).clone());
                }
                None => status.integrations.push((**integration).clone()),
            }
            status.health = of_guest(&status.integrations);
        }
        Change::DropIns { .. } => return Applied::Stale,
        Change::Restored { .. } | Change::Heartbeat { .. } | Change::Unknown {} => {}
    }
    Applied::Shown
}

/// The bytes of text that an integration's entry holds.
fn text_of(integration: &IntegrationStatus) -> usize {
    let last = integration.last_check.as_ref();
    let printed = last.map_or(0, |last| {
        last.output.len() + last.signal.as_ref().map_or(0, String::len)
    });
    integration.name.len() + printed
}

/// The verdict on the guest, as the agent gives it; where an integration has one that we do not know,
/// and none is unhealthy, that one: it must not be taken for a better one than it is.
fn of_guest(integrations: &[IntegrationStatus]) -> Lenient<Health> {
    let known = integrations.iter().filter_map(|one| one.health.known());
    match Health::of_guest(known) {
        Health::Unhealthy => Health::Unhealthy.into(),
        verdict => integrations
            .iter()
            .map(|one| one.health)
            .find(|health| health.known().is_none())
            .unwrap_or(verdict.into()),
    }
}
