//! The pure core: an event and the time in, actions and the next deadline out.
//!
//! The core is the only owner of state. It opens no file, starts no process, reads no clock and
//! knows no connection but the number of one that waits for an answer. So every promise about what
//! runs when, and what status is reported, can be tested and replayed without waiting.

pub(crate) mod baseline;
pub(crate) mod boot;
pub(crate) mod drain;
pub(crate) mod ended;
pub(crate) mod lifecycle;
pub(crate) mod open;
pub(crate) mod registry;
pub(crate) mod reloading;
pub(crate) mod schedule;
pub(crate) mod signs;
pub(crate) mod sleeping;
pub(crate) mod timeline;
mod told;
pub(crate) mod verdict;
pub(crate) mod worker;

use baseline::Baseline;
use boot::Boot;
use drain::Drain;
use ended::Ended;
use lifecycle::{Done, Journal, Lifecycle, TICK, WakeAsked};
use mvm_protocol::Timestamp;
use mvm_protocol::answer::{Answer, Change, Checked, ErrorAnswer, ErrorCode};
use mvm_protocol::lifecycle::{SleepPrep, Token};
use mvm_protocol::request::{self, CheckKind};
use mvm_protocol::status::{DropInError, Lifecycle as Phase};
use registry::{Check, Command, Loaded};
use reloading::Reload;
use schedule::{CheckId, Schedule, slot_after};
use signs::{Marks, Signs};
use sleeping::{Frozen, StepWork, Told};
use std::time::Duration;
use timeline::{Moment, Timeline};
use worker::{BusyPolicy, Counted, Sample, Worker};

/// Both clocks at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Now {
    /// `CLOCK_MONOTONIC`, for everything that is waited for.
    pub(crate) mono: Duration,
    /// `CLOCK_REALTIME`, for what is shown to people alone: it may jump by years. What is shown of
    /// the past goes by the [`Timeline`].
    pub(crate) wall: Timestamp,
}

/// The number of one run of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RunId(pub(crate) u64);

/// The number of a request whose answer comes later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct WaiterId(pub(crate) u64);

/// What came about on the machine, or was asked for.
#[derive(Debug)]
pub(crate) enum Event {
    /// The deadline has passed.
    Tick,
    /// The signals were read.
    Sampled(Sample),
    /// The kernel says that the VM's generation id is another one.
    VmgenidChanged,
    /// The marks of a restore were read.
    MarksRead(Marks),
    /// A command has ended.
    RunEnded(RunId, Ended),
    /// Something changed in a drop-in folder.
    DropInsChanged,
    /// The drop-in folders were read, or why they could not be for now.
    DropInsLoaded(Result<Loaded, String>),
    /// A host asks for a check now.
    CheckAsked(WaiterId, request::Check),
    /// A host, or a SIGHUP, asks for a reload now.
    ReloadAsked(Option<WaiterId>),
    /// A host asks for the guest to be made ready; the token is for if it gave none.
    SleepAsked(WaiterId, SleepPrep, Token),
    /// A host says that the guest runs on.
    WakeAsked(WaiterId, Box<WakeAsked>),
    /// A step of sleeping or waking has ended.
    StepDone(Done),
    /// It was not begun, and why.
    StepRefused(String),
    /// A host asks for a command, a file or a port.
    OpenAsked(WaiterId, open::Kind),
    /// That has ended.
    Closed(RunId),
}

/// What the driver is to do.
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
    /// Log a line.
    Log(String),
    /// Take a step of sleeping or waking, and report its end.
    Step(Box<StepWork>),
    /// End the step that is under way: its end is reported all the same.
    CancelStep,
    /// Keep what has to survive the agent.
    Keep(Journal),
    /// The guest runs again: notify the host that asked for it.
    Woke,
    /// Answer a request.
    Answer(WaiterId, Box<Answer>),
    /// Admit what a host asked for, under this number, and report its end.
    Admit(WaiterId, RunId),
    /// End what a host has open: its end is reported all the same.
    End(RunId),
    /// Freeze all jobs.
    FreezeJobs,
    /// Thaw them.
    ThawJobs,
    /// The guest has stood still for that time, by its monotonic clock: it counts for no job.
    StoodStill(Duration),
}

/// What the core is held to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    pub(crate) max_concurrent_checks: usize,
    pub(crate) sample_interval: Duration,
    pub(crate) busy: BusyPolicy,
    /// Where the moments come from at which checks start.
    pub(crate) seed: u64,
    /// How long ago the guest's boot began when the agent started.
    pub(crate) since_boot: Duration,
}

/// All state of the agent.
#[derive(Debug)]
pub(crate) struct Core {
    settings: Settings,
    timeline: Timeline,
    started: Moment,
    boot: Boot,
    /// Whether the drop-ins have been read once.
    has_loaded: bool,
    schedule: Schedule,
    checks: Vec<Check>,
    /// The checks that run: as many as may run at once, at most.
    runs: Vec<(RunId, CheckId)>,
    drop_in_errors: Vec<DropInError>,
    worker: Worker,
    baseline: Baseline,
    /// What counted of the last sample that was read while the guest ran: what a sleep or a wake
    /// uses of the machine is no work of its own.
    counted: Counted,
    next_sample: Duration,
    reload: Reload,
    /// Who waits for the load that is under way.
    loading_for: Vec<WaiterId>,
    /// Who waits for the load after it.
    reload_waiters: Vec<WaiterId>,
    next_number: u64,
    lifecycle: Lifecycle,
    /// The wake under way.
    wake: Option<Told>,
    /// Those that came before the drop-ins were read, and when.
    early_wakes: Vec<(WaiterId, Box<WakeAsked>, Duration)>,
    frozen: Frozen,
    drain: Option<Drain>,
    seed: u64,
    open: open::Open,
    signs: Signs,
}

/// A deadline that is missed by more was not slept over: the guest stood still, or its clock jumped.
pub(crate) const STOOD_STILL: Duration = Duration::from_secs(5);

impl Core {
    /// The core at its start: it reads the drop-ins and the signals at its first tick.
    pub(crate) fn new(settings: Settings, journal: Journal, now: Now) -> Self {
        let timeline = Timeline::new(now);
        let lifecycle = Lifecycle::new(journal, now.mono);
        // An agent that comes up in a guest that sleeps knows nothing from before.
        let frozen = if lifecycle.phase() == Phase::Running {
            Frozen::No
        } else {
            Frozen::Was
        };
        Self {
            timeline,
            started: timeline.moment(),
            boot: Boot::new(settings.since_boot, now, frozen == Frozen::Was),
            has_loaded: false,
            schedule: Schedule::new(settings.max_concurrent_checks, settings.seed),
            checks: Vec::new(),
            runs: Vec::new(),
            drop_in_errors: Vec::new(),
            worker: Worker::unsampled(timeline.moment()),
            baseline: Baseline::default(),
            counted: Counted::default(),
            next_sample: now.mono,
            reload: Reload::Settling {
                at: now.mono,
                at_most: now.mono,
            },
            loading_for: Vec::new(),
            reload_waiters: Vec::new(),
            next_number: 0,
            lifecycle,
            wake: None,
            early_wakes: Vec::new(),
            frozen,
            drain: None,
            seed: settings.seed,
            signs: Signs::new(settings.sample_interval),
            settings,
            open: open::Open::default(),
        }
    }

    /// Takes an event and says what to do about it, in this order.
    pub(crate) fn handle(&mut self, event: Event, now: Now) -> Vec<Action> {
        let mut actions = Vec::new();
        let missed_by = self.missed_by(now);
        self.timeline = self.timeline_at(now);
        if missed_by > STOOD_STILL {
            self.stood_still(missed_by, now, &mut actions);
        }
        match event {
            Event::Tick => {
                let acts = self.lifecycle.tick(now.mono);
                self.apply(acts, now, &mut actions);
                self.drained(now, &mut actions);
            }
            Event::SleepAsked(waiter, asked, made_up) => {
                self.sleep_asked(waiter, &asked, made_up, now, &mut actions);
            }
            Event::WakeAsked(waiter, asked) => self.wake_asked(waiter, asked, now, &mut actions),
            Event::StepDone(done) => self.step_done(&done, now, &mut actions),
            Event::StepRefused(why) => self.step_refused(why, now, &mut actions),
            Event::Sampled(sample) => self.sampled(sample, now, &mut actions),
            Event::VmgenidChanged => {
                let sign = self.signs.vmgenid(now.mono);
                self.notice(sign, now, &mut actions);
            }
            Event::MarksRead(marks) => {
                let sign = self.signs.read(marks, now.mono);
                self.notice(sign, now, &mut actions);
            }
            Event::RunEnded(run, ended) => self.run_ended(run, &ended, now, &mut actions),
            Event::DropInsChanged => self.drop_ins_changed(now),
            Event::DropInsLoaded(Ok(loaded)) => self.loaded(loaded, now, &mut actions),
            Event::DropInsLoaded(Err(why)) => self.not_loaded(&why, now, &mut actions),
            Event::CheckAsked(waiter, check) => self.check_asked(waiter, &check, &mut actions),
            Event::ReloadAsked(waiter) => self.reload_asked(waiter, now, &mut actions),
            Event::OpenAsked(waiter, kind) => self.open_asked(waiter, kind, &mut actions),
            Event::Closed(run) => self.closed(run, now, &mut actions),
        }
        self.act_on_deadlines(now, &mut actions);
        actions
    }

    /// When a [`Event::Tick`] is due if nothing else comes about.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        let sample = (!self.is_ready()).then_some(self.next_sample);
        [
            sample,
            self.reload_deadline(),
            self.schedule.deadline(),
            self.lifecycle.deadline(),
            self.drain_deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn timeline_at(&self, now: Now) -> Timeline {
        // In a guest that is `ready` the agent's ticks are the only time that passes.
        let ran_at_most = if self.is_ready() {
            Some(TICK)
        } else {
            let missed_by = self.missed_by(now);
            let passed = now.mono.saturating_sub(self.timeline.now());
            (missed_by > STOOD_STILL).then(|| passed.saturating_sub(missed_by))
        };
        self.timeline.at(now, ran_at_most)
    }

    /// By how much the last deadline is missed.
    fn missed_by(&self, now: Now) -> Duration {
        self.deadline()
            .map_or(Duration::ZERO, |due| now.mono.saturating_sub(due))
    }

    /// All deadlines are overdue at once, since the guest stood still: its checks start one after the
    /// other as after a wake, and a lease waits for the wake that may be about to come.
    fn stood_still(&mut self, time: Duration, now: Now, actions: &mut Vec<Action>) {
        self.lifecycle.expect_wake();
        if self.lifecycle.phase() == Phase::Running {
            self.seed = self.seed.wrapping_add(1);
            self.schedule.release(now.mono, self.seed, |_| true);
        }
        actions.push(Action::StoodStill(time));
    }

    fn sampled(&mut self, sample: Sample, now: Now, actions: &mut Vec<Action>) {
        if self.lifecycle.phase() == Phase::Running {
            self.counted = self.baseline.take(&sample, now.mono);
        }
        self.judge(sample, actions);
        let sign = self.signs.read(sample.marks, now.mono);
        self.notice(sign, now, actions);
    }

    /// Judges idle or busy by what was read, and by what hosts have open.
    fn judge(&mut self, mut sample: Sample, actions: &mut Vec<Action>) {
        self.open.count_into(&mut sample);
        let policy = &self.settings.busy;
        let at = self.timeline.moment();
        if policy.apply(&mut self.worker, &sample, &self.counted, at) {
            self.publish_worker(actions);
        }
    }

    fn publish_worker(&self, actions: &mut Vec<Action>) {
        let worker = self.worker.told(&self.timeline);
        actions.push(Action::Publish(Change::Worker { worker }));
    }

    /// Whether the guest is about to be frozen: then nothing is run, read or written.
    fn is_ready(&self) -> bool {
        self.lifecycle.phase() == Phase::Ready
    }

    fn act_on_deadlines(&mut self, now: Now, actions: &mut Vec<Action>) {
        if now.mono >= self.next_sample && !self.is_ready() {
            self.next_sample =
                slot_after(self.next_sample, self.settings.sample_interval, now.mono);
            actions.push(Action::Sample);
        }
        self.reload_if_due(now, actions);
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
            self.runs.push((run, id));
            actions.push(Action::Run(run, command));
        }
    }

    fn run_ended(&mut self, run: RunId, ended: &Ended, now: Now, actions: &mut Vec<Action>) {
        let Some(at) = self.runs.iter().position(|(other, _)| *other == run) else {
            return;
        };
        let (_, id) = self.runs.remove(at);
        self.schedule.ended(id);
        let running = |check: &&mut Check| check.running == Some(run);
        let Some(check) = self.checks.iter_mut().find(running) else {
            self.drained(now, actions);
            return;
        };
        let counts = check.ended();
        // What a check says while the guest goes to sleep or wakes says nothing of its service.
        if self.lifecycle.phase() != Phase::Running {
            check.cut_short();
            self.drained(now, actions);
            return;
        }
        if !counts {
            self.schedule.ask(id);
            return;
        }
        let timeline = &self.timeline;
        let changed = check.record(ended, now.mono, timeline.moment());
        if let Some(at) = self.boot.now(now) {
            check.note_health(at);
        }
        if changed && let Some(integration) = check.integration_status(timeline) {
            let integration = Box::new(integration);
            actions.push(Action::Publish(Change::Integration { integration }));
        }
        let checked = Checked {
            integration: check.integration_status(timeline),
            probe: check.probe_status(timeline),
        };
        for waiter in check.run_waiters.drain(..) {
            actions.push(answer(waiter, Answer::Checked(checked.clone())));
        }
        self.note_ready(now);
    }

    fn check_asked(&mut self, waiter: WaiterId, asked: &request::Check, actions: &mut Vec<Action>) {
        if self.lifecycle.phase() != Phase::Running {
            actions.push(busy(waiter, "the guest is not running"));
            return;
        }
        if !self.lifecycle.is_started() {
            actions.push(busy(waiter, READING));
            return;
        }
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
            Some(_) => "has neither health_cmd nor health_argv: there is nothing to check",
            None => "is not loaded; `inspect` lists what is, and files that were rejected",
        };
        let kind = kind_name(asked.kind);
        let name = mvm_protocol::object::printable(&asked.name);
        let error = ErrorAnswer::new(ErrorCode::NotFound, format!("{kind} `{name}` {reason}"));
        actions.push(answer(waiter, Answer::Error(error)));
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    /// What is under way: the runs of checks, and what hosts have open.
    pub(crate) fn runs(&self) -> impl Iterator<Item = RunId> {
        let checks = self.runs.iter().map(|(run, _)| *run);
        checks.chain(self.open.runs())
    }
}

/// Why what is about drop-ins is `busy` before they are read for the first time.
const READING: &str = "the agent is still reading its drop-ins";

fn answer(waiter: WaiterId, answer: Answer) -> Action {
    Action::Answer(waiter, Box::new(answer))
}

fn busy(waiter: WaiterId, reason: &str) -> Action {
    let error = ErrorAnswer::new(ErrorCode::Busy, reason);
    answer(waiter, Answer::Error(error))
}

fn kind_name(kind: CheckKind) -> &'static str {
    match kind {
        CheckKind::Integration => "integration",
        CheckKind::Probe => "probe",
    }
}

#[cfg(test)]
mod idle_tests;
#[cfg(test)]
mod tests;
