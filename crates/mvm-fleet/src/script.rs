//! For tests: a fleet that a script moves, and guests that have a clock of their own.

use crate::input::{AgentEvent, Registered, RegistryEvent, RunState};
use crate::view::{Effect, Settings, Ticket};
use crate::{Facts, Now, Policy, View, decide};
use mvm_protocol::Timestamp;
use mvm_protocol::answer::{Change, Event};
use mvm_protocol::status::{Health, IntegrationStatus, Lifecycle, Status, Worker, WorkerState};
use std::collections::BTreeMap;
use std::time::Duration;

/// When a script begins: the wall clock.
pub(crate) const START: Timestamp = Timestamp(1_795_000_000_000);

pub(crate) fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// A moment some seconds after the script's start; before it if negative.
pub(crate) fn at(secs: i64) -> Timestamp {
    Timestamp(START.0 + secs * 1000)
}

/// A view, its clock, and the guests.
pub(crate) struct Script {
    pub(crate) view: View,
    pub(crate) now: Now,
    pub(crate) tickets: BTreeMap<String, Ticket>,
    /// By how much the guests' clocks are ahead of the host's, in seconds.
    pub(crate) guests_ahead: i64,
}

impl Script {
    /// A view that has listed those VMs, at second 0. Uptime and boottime are a day, monotonic half.
    pub(crate) fn new(vms: Vec<Registered>) -> Self {
        let mut script = Self {
            view: View::new(Settings::default()),
            now: Now {
                monotonic: secs(43_200),
                boottime: secs(86_400),
                wall: START,
            },
            tickets: BTreeMap::new(),
            guests_ahead: 0,
        };
        script.registry(RegistryEvent::Listed { vms, whole: true });
        script
    }

    /// Running VMs of those names, up for an hour.
    pub(crate) fn running(names: &[&str]) -> Self {
        Self::new(names.iter().map(|name| up(name, -3600)).collect())
    }

    /// Lets time pass; guests that were idle or busy stay so, silently.
    pub(crate) fn pass(&mut self, seconds: u64) {
        self.now.monotonic += secs(seconds);
        self.now.boottime += secs(seconds);
        self.now.wall.0 += i64::try_from(seconds * 1000).unwrap();
        let effects = self.view.tick(&self.now);
        self.note(effects);
    }

    /// Suspends the host.
    pub(crate) fn suspend(&mut self, seconds: u64) {
        self.now.boottime += secs(seconds);
        self.now.wall.0 += i64::try_from(seconds * 1000).unwrap();
    }

    pub(crate) fn registry(&mut self, event: RegistryEvent) {
        let effects = self.view.registry(event, &self.now);
        self.note(effects);
    }

    pub(crate) fn changed(&mut self, vm: Registered) {
        self.registry(RegistryEvent::Changed(vm));
    }

    fn note(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Watch { name, ticket } => {
                    self.tickets.insert(name.to_string(), ticket);
                }
                Effect::Unwatch { ticket } => self.tickets.retain(|_, other| *other != ticket),
                Effect::Ask { .. } | Effect::AwaitResume { .. } => {}
            }
        }
    }

    pub(crate) fn agent(&mut self, vm: &str, event: AgentEvent) {
        let ticket = self.tickets[vm];
        let effects = self.view.agent(ticket, event, &self.now);
        self.note(effects);
    }

    /// The guest's time.
    pub(crate) fn guest_time(&self) -> Timestamp {
        Timestamp(self.now.wall.0 + self.guests_ahead * 1000)
    }

    /// The agent answers: idle, by its own clock since so many seconds.
    pub(crate) fn idle(&mut self, vm: &str, since: i64) {
        let since = Timestamp(self.guest_time().0 - since * 1000);
        self.agent(vm, AgentEvent::Status(&status(worker(false, since))));
        self.heartbeat(vm);
    }

    pub(crate) fn busy(&mut self, vm: &str) {
        let since = self.guest_time();
        self.agent(vm, AgentEvent::Status(&status(worker(true, since))));
    }

    pub(crate) fn event(&mut self, vm: &str, change: Change) {
        let at = self.guest_time();
        self.agent(vm, AgentEvent::Event(&Event { at, change }));
    }

    pub(crate) fn heartbeat(&mut self, vm: &str) {
        self.event(vm, Change::Heartbeat { heartbeat: true });
    }

    /// Time passes, and all guests say that they are there.
    pub(crate) fn beat(&mut self, seconds: u64) {
        let mut left = seconds;
        while left > 0 {
            // Within the view's deadline.
            let step = left.min(40);
            left -= step;
            self.pass(step);
            let names: Vec<String> = self.tickets.keys().cloned().collect();
            for name in names {
                self.heartbeat(&name);
            }
        }
    }

    /// `web-1 busy, web-2 idle 30` and `?` behind it while the view is not complete.
    pub(crate) fn told(&self) -> String {
        let vms = self.view.vms().map(|vm| {
            let idle = self.view.idle_for(vm, &self.now);
            let idle = idle.map(|idle| format!(" {}", idle.as_secs()));
            format!(
                "{} {}{}",
                vm.name(),
                vm.state().as_str(),
                idle.unwrap_or_default()
            )
        });
        let vms = vms.collect::<Vec<_>>().join(", ");
        let mark = if self.view.is_complete() { "" } else { " ?" };
        format!("{vms}{mark}")
    }

    /// What is to be done: `sleep web-1: idle for 5m, over 5m`, a line each; then what is held.
    pub(crate) fn plan(&mut self, policy: &str, facts: &Facts) -> String {
        let policy = Policy::parse(policy, "fleet.toml").unwrap();
        let effects = self.view.tick(&self.now);
        self.note(effects);
        let plan = decide(&self.view, &policy, facts, &self.now);
        let actions = plan.actions.iter();
        let actions = actions.map(|one| format!("{} {}: {}", one.kind, one.vm, one.reason));
        let held = plan.held.iter();
        let held = held.map(|held| format!("{} held: {}", held.pool, held.cause));
        actions.chain(held).collect::<Vec<_>>().join("\n")
    }
}

/// A VM that runs since that second.
pub(crate) fn up(name: &str, since: i64) -> Registered {
    Registered {
        since: Some(at(since)),
        started_at: Some(at(since)),
        ..Registered::new(name, RunState::Running)
    }
}

/// A VM that is that since that second, and was started an hour before the script.
pub(crate) fn down(name: &str, run_state: RunState, since: i64) -> Registered {
    Registered {
        run_state,
        since: Some(at(since)),
        ..up(name, -3600)
    }
}

pub(crate) fn worker(is_busy: bool, since: Timestamp) -> Worker {
    let state = if is_busy {
        WorkerState::Busy
    } else {
        WorkerState::Idle
    };
    Worker {
        state: state.into(),
        since,
        last_busy_at: Some(since),
        because: Vec::new(),
        held_by: Vec::new(),
        load1: 0.0,
        load1_counted: None,
        runnable: 1,
    }
}

pub(crate) fn status(worker: Worker) -> Status {
    Status {
        lifecycle: Lifecycle::Running.into(),
        health: Health::Healthy.into(),
        uptime_secs: 3600.0,
        now: None,
        worker,
        integrations: Vec::new(),
        integrations_omitted: 0,
    }
}

pub(crate) fn integration(name: &str, health: Health) -> IntegrationStatus {
    IntegrationStatus {
        name: name.to_owned(),
        health: health.into(),
        since: START,
        consecutive_failures: 0,
        checks: 9,
        failures: 1,
        first_healthy_secs: None,
        last_check: None,
    }
}
