//! The pure core: an event and the time in, actions and the next deadline out.
//!
//! The core is the only owner of state. It opens no file, starts no process, reads no clock and
//! knows no connection but the number of one that waits for an answer. So every promise about what
//! runs when, and what is said of it, can be tested and replayed without waiting.

pub(crate) mod ended;
pub(crate) mod lifecycle;
pub(crate) mod registry;
pub(crate) mod schedule;
pub(crate) mod verdict;
pub(crate) mod worker;

use ended::Ended;
use mvm_protocol::answer::{Answer, Change, Checked, ErrorAnswer, ErrorCode, Reloaded};
use mvm_protocol::request::{self, CheckKind};
use mvm_protocol::status::{DropIns, Health, Lifecycle, ProbeStatus, Status, Worker};
use mvm_protocol::{Timestamp, drop_in};
use registry::{Check, Command, Loaded};
use schedule::{CheckId, Schedule, slot_after};
use std::collections::HashMap;
use std::time::Duration;
use worker::{BusyPolicy, Sample};

/// Both clocks at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Now {
    /// `CLOCK_MONOTONIC`, for everything that is waited for.
    pub(crate) mono: Duration,
    /// `CLOCK_REALTIME`, for what is shown to people alone: it may jump by years.
    pub(crate) wall: Timestamp,
}

/// The number of one run of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RunId(pub(crate) u64);

/// The number of a request whose answer comes later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct WaiterId(pub(crate) u64);

/// What came about in the world.
#[derive(Debug)]
pub(crate) enum Event {
    /// The deadline has passed.
    Tick,
    /// The signals were read.
    Sampled(Sample),
    /// A command has ended.
    RunEnded(RunId, Ended),
    /// Something changed in a drop-in folder.
    DropInsChanged,
    /// The drop-in folders were read.
    DropInsLoaded(Loaded),
    /// A host asks for a check now.
    CheckAsked(WaiterId, request::Check),
    /// A host, or a SIGHUP, asks for a reload now.
    ReloadAsked(Option<WaiterId>),
}

/// What the edge is to do.
#[derive(Debug, PartialEq)]
pub(crate) enum Action {
    /// Run a command, and report its end.
    Run(RunId, Command),
    /// Kill a run: nobody wants its outcome any more. Its end is reported all the same.
    Kill(RunId),
    /// Read the signals, and report them.
    Sample,
    /// Read the drop-in folders, and report them.
    LoadDropIns,
    /// Tell all watchers.
    Publish(Change),
    /// Answer a request.
    Answer(WaiterId, Box<Answer>),
}

/// What the core is held to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    pub(crate) max_concurrent_checks: usize,
    pub(crate) sample_interval: Duration,
    pub(crate) busy: BusyPolicy,
}

/// How long a drop-in folder has to be quiet before it is read.
pub(crate) const SETTLE: Duration = Duration::from_millis(250);

/// After this long it is read even if it never gets quiet.
const SETTLE_AT_MOST: Duration = Duration::from_secs(5);

/// Where reading the drop-ins stands.
///
/// ```text
///   idle ──changed──▶ settling ──quiet for 250 ms, or asked──▶ loading ──loaded──▶ idle
///     └───────────────────────asked──────────────────────────────▲  └─asked or changed: again
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
enum Reload {
    Idle,
    Settling { at: Duration, at_most: Duration },
    Loading { again: bool },
}

/// All state of the agent.
#[derive(Debug)]
pub(crate) struct Core {
    settings: Settings,
    schedule: Schedule,
    checks: Vec<Check>,
    runs: HashMap<RunId, CheckId>,
    drop_in_errors: Vec<mvm_protocol::status::DropInError>,
    worker: Worker,
    next_sample: Duration,
    reload: Reload,
    /// Who is told of the load that is under way.
    loading_for: Vec<WaiterId>,
    /// Who is told of the load after it.
    reload_waiters: Vec<WaiterId>,
    next_number: u64,
}

impl Core {
    /// The core at its start: it reads the drop-ins and the signals at its first tick.
    pub(crate) fn new(settings: Settings, now: Now) -> Self {
        Self {
            schedule: Schedule::new(settings.max_concurrent_checks),
            checks: Vec::new(),
            runs: HashMap::new(),
            drop_in_errors: Vec::new(),
            worker: BusyPolicy::unsampled(now.wall),
            next_sample: now.mono,
            reload: Reload::Settling {
                at: now.mono,
                at_most: now.mono,
            },
            loading_for: Vec::new(),
            reload_waiters: Vec::new(),
            next_number: 0,
            settings,
        }
    }

    /// Takes an event and says what to do about it, in this order.
    pub(crate) fn handle(&mut self, event: Event, now: Now) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Tick => {}
            Event::Sampled(sample) => {
                if self
                    .settings
                    .busy
                    .apply(&mut self.worker, &sample, now.wall)
                {
                    actions.push(Action::Publish(Change::Worker {
                        worker: self.worker.clone(),
                    }));
                }
            }
            Event::RunEnded(run, ended) => self.run_ended(run, &ended, now, &mut actions),
            Event::DropInsChanged => self.drop_ins_changed(now),
            Event::DropInsLoaded(loaded) => self.loaded(loaded, now, &mut actions),
            Event::CheckAsked(waiter, check) => self.check_asked(waiter, &check, &mut actions),
            Event::ReloadAsked(waiter) => {
                self.reload_waiters.extend(waiter);
                match &mut self.reload {
                    Reload::Loading { again } => *again = true,
                    Reload::Idle | Reload::Settling { .. } => self.load(&mut actions),
                }
            }
        }
        self.act_on_deadlines(now, &mut actions);
        actions
    }

    /// When a [`Event::Tick`] is due if nothing else comes about.
    pub(crate) fn deadline(&self) -> Duration {
        let settled = match self.reload {
            Reload::Settling { at, .. } => Some(at),
            Reload::Idle | Reload::Loading { .. } => None,
        };
        [settled, self.schedule.deadline()]
            .into_iter()
            .flatten()
            .fold(self.next_sample, Ord::min)
    }

    fn act_on_deadlines(&mut self, now: Now, actions: &mut Vec<Action>) {
        if now.mono >= self.next_sample {
            self.next_sample =
                slot_after(self.next_sample, self.settings.sample_interval, now.mono);
            actions.push(Action::Sample);
        }
        if matches!(self.reload, Reload::Settling { at, .. } if now.mono >= at) {
            self.load(actions);
        }
        while let Some(id) = self.schedule.next(now.mono) {
            let run = RunId(self.number());
            let Some(check) = self.checks.iter_mut().find(|check| check.id == id) else {
                self.schedule.ended(id);
                continue;
            };
            let Some(command) = check.command() else {
                self.schedule.ended(id);
                continue;
            };
            check.running = Some(run);
            check.run_waiters.append(&mut check.waiters);
            self.runs.insert(run, id);
            actions.push(Action::Run(run, command));
        }
    }

    fn run_ended(&mut self, run: RunId, ended: &Ended, now: Now, actions: &mut Vec<Action>) {
        let Some(id) = self.runs.remove(&run) else {
            return;
        };
        self.schedule.ended(id);
        let Some(check) = self
            .checks
            .iter_mut()
            .find(|check| check.running == Some(run))
        else {
            return;
        };
        check.running = None;
        if check.record(ended, now)
            && let Some(integration) = check.integration_status()
        {
            let integration = Box::new(integration);
            actions.push(Action::Publish(Change::Integration { integration }));
        }
        let checked = Checked {
            integration: check.integration_status(),
            probe: check.probe_status(),
        };
        for waiter in check.run_waiters.drain(..) {
            actions.push(answer(waiter, Answer::Checked(checked.clone())));
        }
    }

    fn check_asked(&mut self, waiter: WaiterId, asked: &request::Check, actions: &mut Vec<Action>) {
        let found = self
            .checks
            .iter_mut()
            .find(|check| check.is(asked.kind, &asked.name));
        let reason = match found {
            Some(check) if check.interval().is_some() => {
                check.waiters.push(waiter);
                self.schedule.ask(check.id);
                return;
            }
            Some(_) => "has no health_cmd: there is nothing to check",
            None => "is not loaded; `inspect` lists what is, and files that were rejected",
        };
        let kind = kind_name(asked.kind);
        let name = mvm_protocol::object::printable(&asked.name);
        let error = ErrorAnswer::new(ErrorCode::NotFound, format!("{kind} `{name}` {reason}"));
        actions.push(answer(waiter, Answer::Error(error)));
    }

    fn drop_ins_changed(&mut self, now: Now) {
        self.reload = match self.reload {
            Reload::Idle => Reload::Settling {
                at: now.mono.saturating_add(SETTLE),
                at_most: now.mono.saturating_add(SETTLE_AT_MOST),
            },
            Reload::Settling { at_most, .. } => Reload::Settling {
                at: now.mono.saturating_add(SETTLE).min(at_most),
                at_most,
            },
            Reload::Loading { .. } => Reload::Loading { again: true },
        };
    }

    fn load(&mut self, actions: &mut Vec<Action>) {
        self.reload = Reload::Loading { again: false };
        self.loading_for.append(&mut self.reload_waiters);
        actions.push(Action::LoadDropIns);
    }

    /// Takes what the folders hold now. What is unchanged keeps its state, its run and its slots;
    /// what changed begins anew.
    fn loaded(&mut self, loaded: Loaded, now: Now, actions: &mut Vec<Action>) {
        let mut old: HashMap<(CheckKind, String), Check> = std::mem::take(&mut self.checks)
            .into_iter()
            .map(|check| ((check.kind(), check.name().to_owned()), check))
            .collect();
        let drop_ins = DropIns {
            integrations: loaded.integrations.len(),
            probes: loaded.probes.len(),
            errors: loaded.errors.clone(),
        };
        for spec in loaded.integrations {
            let key = (
                CheckKind::Integration,
                drop_in::DropIn::name(&spec).to_owned(),
            );
            match old.remove(&key) {
                Some(check) if check.has_integration(&spec) => self.checks.push(check),
                changed => {
                    old.extend(changed.map(|check| (key, check)));
                    let id = CheckId(self.number());
                    self.add(Check::integration(id, spec, now), now);
                }
            }
        }
        for spec in loaded.probes {
            let key = (CheckKind::Probe, drop_in::DropIn::name(&spec).to_owned());
            match old.remove(&key) {
                Some(check) if check.has_probe(&spec) => self.checks.push(check),
                changed => {
                    old.extend(changed.map(|check| (key, check)));
                    let id = CheckId(self.number());
                    self.add(Check::probe(id, spec), now);
                }
            }
        }
        for check in old.into_values() {
            self.drop_check(check, actions);
        }
        self.drop_in_errors = loaded.errors;
        let reloaded = Reloaded {
            integrations: drop_ins.integrations,
            probes: drop_ins.probes,
            errors: drop_ins.errors.clone(),
        };
        for waiter in self.loading_for.drain(..) {
            actions.push(answer(waiter, Answer::Reloaded(reloaded.clone())));
        }
        actions.push(Action::Publish(Change::DropIns { drop_ins }));
        if std::mem::replace(&mut self.reload, Reload::Idle) == (Reload::Loading { again: true }) {
            self.load(actions);
        }
    }

    fn add(&mut self, check: Check, now: Now) {
        if let Some(interval) = check.interval() {
            self.schedule.add(check.id, interval, now.mono);
        }
        self.checks.push(check);
    }

    fn drop_check(&mut self, check: Check, actions: &mut Vec<Action>) {
        self.schedule.remove(check.id);
        actions.extend(check.running.map(Action::Kill));
        let kind = kind_name(check.kind());
        let message = format!(
            "{kind} `{}` was removed or changed by a reload",
            check.name()
        );
        for waiter in check.waiters.into_iter().chain(check.run_waiters) {
            let error = ErrorAnswer::new(ErrorCode::NotFound, message.clone());
            actions.push(answer(waiter, Answer::Error(error)));
        }
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    /// What `status` answers, all but what the edge alone knows.
    pub(crate) fn status(&self, uptime: Duration) -> Status {
        Status {
            lifecycle: Lifecycle::Running,
            health: Health::of_guest(self.checks.iter().filter_map(Check::health)),
            // Milliseconds are all that a reader wants of it.
            uptime_secs: uptime.as_millis() as f64 / 1000.0,
            worker: self.worker.clone(),
            integrations: self
                .checks
                .iter()
                .filter_map(Check::integration_status)
                .collect(),
            integrations_omitted: 0,
        }
    }

    /// The probes, in load order.
    pub(crate) fn probes(&self) -> Vec<ProbeStatus> {
        self.checks.iter().filter_map(Check::probe_status).collect()
    }

    /// The files that were rejected.
    pub(crate) fn drop_in_errors(&self) -> &[mvm_protocol::status::DropInError] {
        &self.drop_in_errors
    }

    /// The runs that are under way.
    pub(crate) fn runs(&self) -> impl Iterator<Item = RunId> {
        self.runs.keys().copied()
    }
}

fn answer(waiter: WaiterId, answer: Answer) -> Action {
    Action::Answer(waiter, Box::new(answer))
}

fn kind_name(kind: CheckKind) -> &'static str {
    match kind {
        CheckKind::Integration => "integration",
        CheckKind::Probe => "probe",
    }
}

#[cfg(test)]
mod tests;
