//! One VM of the view: what its folder says, what its agent says, and what state that makes.

use super::Settings;
use super::detail::Detail;
use super::worker::Observed;
use crate::input::{AgentEvent, Registered, RunState};
use crate::label;
use crate::state::State;
use crate::{FailedAction, Now};
use mvm_protocol::Timestamp;
use mvm_protocol::answer::Change;
use mvm_protocol::status::{Health, Lifecycle};
use std::sync::Arc;
use std::time::Duration;

/// A VM in the view.
#[derive(Debug)]
pub struct Vm {
    pub(crate) name: Arc<str>,
    pub(crate) pool: Arc<str>,
    pub(super) run_state: RunState,
    pub(super) since: Option<Timestamp>,
    pub(super) started_at: Option<Timestamp>,
    pub(super) has_crashed: bool,
    pub(super) made_by_fleet: bool,
    pub(super) pinned: bool,
    pub(super) touched_at: Option<Timestamp>,
    pub(super) keep_until: Option<Timestamp>,
    pub(super) failed: Option<FailedAction>,

    /// By which what comes from its agent is known to be of this run. None if it is not watched.
    pub(super) ticket: Option<u64>,
    /// Since when (`CLOCK_BOOTTIME`) it has that ticket, is starting, or was seen to have ended.
    pub(super) from: Duration,
    /// Whether it has answered or failed once.
    pub(super) has_answered: bool,
    /// Whether its start took longer than any should.
    pub(super) is_overdue: bool,
    pub(super) observed: Option<Observed>,
    pub(super) detail: Option<Box<Detail>>,

    /// When the view looks at it again: no later than it has to.
    pub(super) deadline: Option<Duration>,
    /// As what it is counted in its pool.
    pub(super) counted: State,
    pub(super) is_pending: bool,
}

impl Vm {
    pub(super) fn new(name: Arc<str>, pool: Arc<str>, registered: &Registered) -> Self {
        Self {
            name,
            pool,
            run_state: registered.run_state,
            since: registered.since,
            started_at: registered.started_at,
            has_crashed: registered.has_crashed,
            made_by_fleet: registered.made_by_fleet,
            pinned: registered.pinned,
            touched_at: registered.touched_at,
            keep_until: registered.keep_until,
            failed: registered.failed,
            ticket: None,
            from: Duration::ZERO,
            has_answered: false,
            is_overdue: false,
            observed: None,
            detail: None,
            deadline: None,
            counted: State::Unknown,
            is_pending: false,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its pool: its label, or its name without the number.
    pub fn pool(&self) -> &str {
        &self.pool
    }

    /// Its state in the view.
    pub fn state(&self) -> State {
        self.counted
    }

    /// What its folder and processes say.
    pub fn run_state(&self) -> RunState {
        self.run_state
    }

    /// Whether the fleet must leave it alone.
    pub fn is_pinned(&self) -> bool {
        self.pinned
    }

    /// Whether the fleet made it.
    pub fn is_made_by_fleet(&self) -> bool {
        self.made_by_fleet
    }

    /// For how long it ran, if it ended by itself and not in order: as far as that was seen.
    pub fn crashed_after(&self, now: &Now) -> Option<Duration> {
        let ago = self.seen_for(now);
        self.has_crashed.then(|| self.age(now).saturating_sub(ago))
    }

    /// The fleet's last action on it that failed, if nothing has made up for that since.
    pub fn failed(&self) -> Option<FailedAction> {
        self.failed
    }

    /// When it was started or cloned, if that is known.
    pub fn started_at(&self) -> Option<Timestamp> {
        self.started_at
    }

    /// Until when a host wants it kept as it is, if that is not over.
    pub fn kept_until(&self, now: &Now) -> Option<Timestamp> {
        self.keep_until.filter(|until| *until > now.wall)
    }

    /// Since when it is what its folder says, if that is known.
    pub fn changed_at(&self) -> Option<Timestamp> {
        self.since
    }

    /// How old it is; zero if nobody knows.
    pub fn age(&self, now: &Now) -> Duration {
        self.started_at
            .map_or(Duration::ZERO, |start| now.since(start))
    }

    /// For how long it has been what its folder says; since it was seen so where nobody has noted it.
    pub(crate) fn so_for(&self, now: &Now) -> Duration {
        self.since
            .map_or_else(|| self.seen_for(now), |since| now.since(since))
    }

    /// For how long it has been what its folder says, by the host's clock, and no host has touched it;
    /// zero if nobody knows. When it ended by itself nobody notes: for that time it was seen so.
    pub fn untouched_for(&self, now: &Now) -> Duration {
        let since = match (self.since, self.run_state) {
            (Some(since), _) => now.since(since),
            (None, RunState::Ended) => self.seen_for(now),
            (None, _) => Duration::ZERO,
        };
        self.touched_at
            .map_or(since, |touched| since.min(now.since(touched)))
    }

    /// For how long it has been seen in this run of it, or to have ended.
    fn seen_for(&self, now: &Now) -> Duration {
        now.boottime.saturating_sub(self.from)
    }

    /// What its agent says, while it answers.
    pub(crate) fn seen(&self) -> Option<(&Observed, &Detail)> {
        self.observed.as_ref().zip(self.detail.as_deref())
    }

    /// What its folder says now.
    pub(super) fn take(&mut self, registered: &Registered) {
        self.run_state = registered.run_state;
        self.since = registered.since;
        self.started_at = registered.started_at;
        self.has_crashed = registered.has_crashed;
        self.made_by_fleet = registered.made_by_fleet;
        self.pinned = registered.pinned;
        self.touched_at = registered.touched_at;
        self.keep_until = registered.keep_until;
        self.failed = registered.failed;
    }

    /// Takes what came of watching its agent. Returns how many more of its series are left out.
    pub(super) fn hear(&mut self, event: AgentEvent, now: Duration) -> usize {
        let mut dropped = 0;
        match event {
            AgentEvent::Status(status) => {
                self.has_answered = true;
                match &mut self.observed {
                    Some(observed) => observed.status(status, now),
                    none => *none = Some(Observed::new(status, now)),
                }
                dropped += self.detail.get_or_insert_default().status(status);
            }
            AgentEvent::Inspect(inspect) => {
                dropped += self.hear(AgentEvent::Status(&inspect.status), now);
                dropped += self.detail.get_or_insert_default().inspect(inspect);
            }
            AgentEvent::AskedStatus(status) => {
                if let (Some(observed), Some(detail)) = (&mut self.observed, &mut self.detail) {
                    dropped += detail.status(status);
                    observed.health = detail.health(observed.health);
                    observed.load(&status.worker);
                }
            }
            AgentEvent::AskedInspect(inspect) => {
                dropped += self.hear(AgentEvent::AskedStatus(&inspect.status), now);
                if let Some(detail) = &mut self.detail {
                    dropped += detail.inspect(inspect);
                }
            }
            AgentEvent::Event(event) => {
                // Without a status what an event changes is not known.
                let (Some(observed), Some(detail)) = (&mut self.observed, &mut self.detail) else {
                    return 0;
                };
                match &event.change {
                    Change::Worker { worker } => observed.worker(worker),
                    Change::Integration { integration } => {
                        dropped += detail.integration(integration);
                        observed.health = detail.health(observed.health);
                    }
                    Change::Lifecycle { lifecycle } => observed.lifecycle = *lifecycle,
                    Change::DropIns { drop_ins } => {
                        let errors = drop_ins.errors.len();
                        detail.drop_ins(errors.saturating_add(drop_ins.errors_omitted));
                    }
                    Change::Restored { .. } => detail.restored(),
                    Change::Heartbeat { .. } | Change::Unknown {} => {}
                }
                observed.heard(event.at, now);
            }
            AgentEvent::Lost => {
                self.has_answered = true;
                self.observed = None;
                self.detail = None;
            }
            AgentEvent::LetGo => {
                if let Some(observed) = &mut self.observed {
                    observed.lifecycle = Lifecycle::Ready.into();
                    observed.seen = now;
                }
            }
        }
        dropped
    }

    /// When it is to be looked at again if nothing is heard of it.
    pub(super) fn due(&self, settings: &Settings) -> Option<Duration> {
        match (self.ticket, &self.observed) {
            (Some(_), Some(observed)) => Some(observed.seen.saturating_add(settings.silence)),
            (Some(_), None) if !self.has_answered => {
                Some(self.from.saturating_add(settings.answer_deadline))
            }
            (None, _) if self.run_state == RunState::Starting && !self.is_overdue => {
                Some(self.from.saturating_add(settings.start_deadline))
            }
            _ => None,
        }
    }

    pub(super) fn pool_of(registered: &Registered) -> &str {
        registered
            .pool
            .as_deref()
            .unwrap_or_else(|| label::default_pool(&registered.name))
    }

    /// The state that all that is known of it makes.
    pub(super) fn assess(&self) -> State {
        match self.run_state {
            RunState::Running | RunState::NotOurs => match &self.observed {
                Some(observed) => assess(observed),
                None => State::Unknown,
            },
            RunState::Starting if self.is_overdue => State::Unknown,
            RunState::Starting => State::Starting,
            RunState::Paused { .. } => State::Paused,
            RunState::Asleep => State::Asleep,
            RunState::Stopped | RunState::Ended | RunState::StartBrokenOff => State::Stopped,
            RunState::Unreadable => State::Unknown,
        }
    }
}

/// What a guest is whose agent answers.
fn assess(observed: &Observed) -> State {
    match observed.lifecycle.known() {
        Some(Lifecycle::Running) if observed.is_busy => State::Busy,
        // No verdict yet.
        Some(Lifecycle::Running) if observed.health == Health::Starting => State::Starting,
        Some(Lifecycle::Running) => State::Idle,
        Some(Lifecycle::Waking) => State::Starting,
        // Somebody is making a snapshot of it. What we have no word for is at work, too.
        Some(Lifecycle::Preparing | Lifecycle::Ready) | None => State::Busy,
    }
}
