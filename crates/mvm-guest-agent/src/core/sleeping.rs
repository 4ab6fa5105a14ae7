//! What the lifecycle's acts mean to the rest of the core: who is held, who is told, what is run.

use super::drain::Drain;
use super::lifecycle::{Act, Cause, Done, Journal, Participant, Task, WakeAsked};
use super::registry::{Body, Check, Command, LifecycleContext};
use super::schedule::CheckId;
use super::worker::Counted;
use super::{Action, Core, Now, READING, RunId, WaiterId, answer, busy};
use mvm_protocol::Timestamp;
use mvm_protocol::answer::{Answer, Change, ErrorAnswer, ErrorCode};
use mvm_protocol::lifecycle::{Entropy, Outcome, Payload, SleepPrep, Step, Token, Wake, WakeCause};
use mvm_protocol::status::{Lifecycle as Phase, RestoreSign, Restored, Snapshot};
use std::collections::HashSet;
use std::time::Duration;

/// A step that the machine takes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StepWork {
    pub(crate) work: Work,
    /// When it is given up.
    pub(crate) limit: Duration,
    /// What is to be kept before it begins.
    pub(crate) journal: Journal,
    /// Whether it is not to begin if that cannot be kept. On the way to sleep a debt that nobody
    /// would remember is not made; on the way back each step is taken whatever became of the one
    /// before.
    pub(crate) needs_journal: bool,
}

/// What the step does.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Work {
    /// Run a checkpoint or restore command; its run's number.
    Command(RunId, Command),
    /// Sync each writable local filesystem; the number of the run that does it.
    Sync(RunId),
    /// Freeze the guest's work; `required` makes whatever cannot be frozen a failure.
    Freeze { required: bool },
    /// Look whether all that was frozen still is, and freeze again what somebody else has thawed.
    CheckFrozen { required: bool },
    /// Let the work run again.
    Thaw,
    /// Drop the page cache; the number of the run that does it.
    DropCaches(RunId),
    /// Reseed the kernel's random generator.
    Reseed(Option<Entropy>),
    /// Set the wall clock: the host's time, and when it was told on the monotonic clock.
    Clock(Option<(Timestamp, Duration)>),
    /// Give a clone a new identity; does nothing for what is no clone.
    Identity { clone: bool },
    /// Put the payload into its file.
    Payload(PayloadWork),
    /// Write the generation's number into its file.
    Generation(u64),
}

/// What becomes of the payload's file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum PayloadWork {
    /// The host sent one.
    Write(Payload),
    /// The host sent none: that of the wake before is not this one's.
    Remove,
    /// The restore that it came with is not over: the agent was restarted in it and no host has spoken,
    /// or a personalize command failed and the host tries again without one.
    Keep,
}

/// What a host's wake says.
#[derive(Debug, Clone)]
pub(super) struct Told {
    wake: Wake,
    /// When it came, on the monotonic clock.
    at: Duration,
    /// Whether a host's restore was under way before it: this goes on with that.
    goes_on: bool,
}

/// How many wakes wait for the drop-ins to be read.
const MOST_EARLY_WAKES: usize = 16;

/// Whether the guest stood still, and what it found out before is no longer to be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Frozen {
    /// Not since it last ran.
    No,
    /// It may at any moment.
    Perhaps,
    /// It has; what it found out before is given up, and it does not run yet.
    Was,
}

impl Core {
    pub(super) fn sleep_asked(
        &mut self,
        waiter: WaiterId,
        asked: &SleepPrep,
        made_up: Token,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        if !self.lifecycle.is_started() {
            actions.push(busy(waiter, READING));
            return;
        }
        let participants = self.participants();
        let acts = self
            .lifecycle
            .sleep_prep(waiter, asked, made_up, participants, now.mono);
        self.apply(acts, now, actions);
    }

    /// A host's wake: at once, or when it is known by which commands a clone is personalized.
    pub(super) fn wake_asked(
        &mut self,
        waiter: WaiterId,
        asked: Box<WakeAsked>,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        if self.lifecycle.is_started() {
            self.wake(waiter, &asked, now.mono, now, actions);
        } else if self.early_wakes.len() < MOST_EARLY_WAKES {
            self.early_wakes.push((waiter, asked, now.mono));
        } else {
            actions.push(busy(waiter, READING));
        }
    }

    /// The same of one that came at that time.
    pub(super) fn wake(
        &mut self,
        waiter: WaiterId,
        asked: &WakeAsked,
        at: Duration,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        let participants = self.participants();
        let journal = self.lifecycle.journal();
        let noticed = journal.noticed.is_some();
        let goes_on = journal.restoring.is_some_and(|it| !it.unannounced);
        let acts = self.lifecycle.wake(waiter, asked, &participants);
        let accepted = !matches!(acts.as_slice(), [Act::WrongToken(_)]);
        // The first host's bytes and time are as good as a second one's, which would be too late
        // for steps that have been taken.
        let first = match &self.wake {
            None => true,
            Some(told) => {
                told.wake.cause == WakeCause::Aborted && asked.wake.cause == WakeCause::Restored
            }
        };
        if accepted && first {
            self.wake = Some(Told {
                wake: asked.wake.clone(),
                at,
                goes_on,
            });
            // Clones of one snapshot share the agent's memory, but not what their hosts tell them.
            self.seed ^= asked.fingerprint;
        }
        self.apply(acts, now, actions);
        let restored = asked.wake.cause == WakeCause::Restored;
        if accepted && restored && self.lifecycle.phase() != Phase::Running {
            self.signs.announced(noticed, now.mono);
            self.was_frozen(actions);
            if asked.wake.clone {
                self.worker.forget(self.timeline.moment());
                self.publish_worker(actions);
            }
        }
        if self.lifecycle.phase() == Phase::Running {
            self.wake = None;
        }
    }

    /// Takes note of a sign of a restore that no host has announced.
    pub(super) fn notice(
        &mut self,
        sign: Option<RestoreSign>,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        if let Some(by) = sign {
            let acts = self.lifecycle.noticed(by);
            self.apply(acts, now, actions);
        }
    }

    pub(super) fn step_refused(&mut self, why: String, now: Now, actions: &mut Vec<Action>) {
        let acts = self
            .lifecycle
            .refused(&done(Outcome::Failed, Some(why)), now.wall);
        self.apply(acts, now, actions);
    }

    pub(super) fn step_done(&mut self, done: &Done, now: Now, actions: &mut Vec<Action>) {
        let acts = self.lifecycle.done(done, now.wall);
        self.apply(acts, now, actions);
    }

    pub(super) fn apply(&mut self, acts: Vec<Act>, now: Now, actions: &mut Vec<Action>) {
        for act in acts {
            match act {
                Act::Do {
                    task,
                    limit,
                    journal,
                    cause,
                } => self.begin(&task, limit, journal, cause, now, actions),
                Act::Cancel => self.cancel(now, actions),
                Act::Keep(journal) => actions.push(Action::Keep(journal)),
                Act::Hold => self.hold(actions),
                Act::Release => {
                    self.seed = self.seed.wrapping_add(1);
                    self.wake = None;
                    self.run_on(now);
                    actions.push(Action::Woke);
                }
                Act::Unannounced(by) => {
                    let (announced, by) = (false, by.into());
                    let restored = Restored { announced, by };
                    actions.push(Action::Publish(Change::Restored { restored }));
                    // Clones of one snapshot come up at different times, if nothing else tells them
                    // apart.
                    self.seed ^= now.wall.0.unsigned_abs();
                    self.was_frozen(actions);
                }
                Act::Amiss(what) => actions.push(Action::Log(what)),
                Act::Enter(lifecycle) => {
                    if lifecycle != Phase::Running {
                        self.boot.end();
                    }
                    actions.push(Action::Publish(Change::Lifecycle {
                        lifecycle: lifecycle.into(),
                    }));
                    match lifecycle {
                        Phase::Ready => self.frozen = Frozen::Perhaps,
                        Phase::Waking if self.frozen == Frozen::Perhaps => {
                            self.was_frozen(actions);
                        }
                        _ => {}
                    }
                }
                Act::Ready(waiter, ready) => actions.push(answer(waiter, Answer::Ready(ready))),
                Act::Awake(waiter, awake) => actions.push(answer(waiter, Answer::Awake(awake))),
                Act::Failed(waiter, reason, steps) => {
                    let message = format!("{reason}; the guest was rolled back and runs");
                    let code = ErrorCode::SleepPrepFailed;
                    actions.push(failed(waiter, code, message, steps));
                }
                Act::Held(waiter, reason, steps) => {
                    // The next wake brings what this one lacked.
                    self.wake = None;
                    let message = format!(
                        "{reason}; the guest's work stays frozen until a wake whose personalize \
                         commands succeed"
                    );
                    actions.push(failed(waiter, ErrorCode::Failed, message, steps));
                }
                Act::NotPersonalized(waiter, reason, steps) => {
                    let message = format!(
                        "{reason}; the guest's work was not frozen, and runs: end it, or send the \
                         wake again"
                    );
                    actions.push(failed(waiter, ErrorCode::Failed, message, steps));
                }
                Act::Busy(waiter, reason) => actions.push(busy(waiter, reason)),
                Act::WrongToken(waiter) => {
                    let message = "another token holds the guest";
                    let error = ErrorAnswer::new(ErrorCode::WrongToken, message);
                    actions.push(answer(waiter, Answer::Error(error)));
                }
            }
        }
    }

    /// The guest has stood still, for whatever time: what was found out before is no verdict on how
    /// things are now, and whatever made it busy is over.
    fn was_frozen(&mut self, actions: &mut Vec<Action>) {
        if self.frozen == Frozen::Was {
            return;
        }
        self.boot.end();
        self.frozen = Frozen::Was;
        self.counted = Counted::default();
        for check in &mut self.checks {
            if check.distrust(self.timeline.moment())
                && let Some(integration) = check.integration_status(&self.timeline)
            {
                let integration = Box::new(integration);
                actions.push(Action::Publish(Change::Integration { integration }));
            }
        }
    }

    /// The guest runs again.
    fn run_on(&mut self, now: Now) {
        let was_frozen = std::mem::replace(&mut self.frozen, Frozen::No) == Frozen::Was;
        let checks = self.checks.iter();
        let overdue = checks.filter(|check| was_frozen || check.is_overdue());
        let overdue: HashSet<CheckId> = overdue.map(|check| check.id).collect();
        self.schedule
            .release(now.mono, self.seed, |id| overdue.contains(&id));
        if was_frozen {
            for check in &mut self.checks {
                check.renew_grace(now.mono);
            }
        }
        self.baseline.woke();
        self.next_sample = now.mono;
    }

    /// Holds checks. Requests that wait for one are answered `busy`.
    fn hold(&mut self, actions: &mut Vec<Action>) {
        self.schedule.hold();
        for check in &mut self.checks {
            for waiter in check.waiters.drain(..).chain(check.run_waiters.drain(..)) {
                actions.push(busy(waiter, "the guest is going to sleep"));
            }
        }
    }

    fn begin(
        &mut self,
        task: &Task,
        limit: Duration,
        journal: Journal,
        cause: Option<Cause>,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        let told = self.wake.clone();
        let needs_journal = task.needs_journal();
        let clone = journal.restoring.is_some_and(|restoring| restoring.clone);
        self.freeze_jobs_for(task, actions);
        let work = match task {
            Task::Drain => {
                actions.push(Action::Keep(journal));
                self.end_open(actions);
                let (runs, open) = (self.runs.len(), self.open.working());
                self.drain = Some(Drain::new(now.mono, limit, runs, open));
                self.drained(now, actions);
                return;
            }
            Task::Resume => {
                actions.push(Action::Keep(journal));
                self.step_done(&done(Outcome::Ok, None), now, actions);
                return;
            }
            Task::Checkpoint(name) | Task::Personalize(name) | Task::Restore(name) => {
                let Some(mut command) = self.lifecycle_command(name, task) else {
                    actions.push(Action::Keep(journal));
                    let detail = "its drop-in is not loaded any more".to_owned();
                    self.step_done(&done(Outcome::Failed, Some(detail)), now, actions);
                    return;
                };
                if matches!(task, Task::Checkpoint(_)) {
                    command.timeout = command.timeout.min(limit);
                }
                command.context = Some(LifecycleContext {
                    generation: journal.generation,
                    cause,
                    clone: clone || told.is_some_and(|told| told.wake.clone),
                });
                Work::Command(RunId(self.number()), command)
            }
            Task::Sync | Task::LastSync => Work::Sync(RunId(self.number())),
            Task::Freeze => Work::Freeze {
                required: self.lifecycle.requires_freeze(),
            },
            Task::CheckFrozen => Work::CheckFrozen {
                required: self.lifecycle.requires_freeze(),
            },
            Task::Thaw => Work::Thaw,
            Task::DropCaches => Work::DropCaches(RunId(self.number())),
            Task::Reseed => Work::Reseed(told.and_then(|told| told.wake.entropy)),
            Task::Clock => {
                Work::Clock(told.and_then(|told| Some((told.wake.wall_clock?, told.at))))
            }
            Task::Identity => Work::Identity { clone },
            Task::Payload => {
                Work::Payload(match told.map(|told| (told.wake.payload, told.goes_on)) {
                    Some((Some(payload), _)) => PayloadWork::Write(payload),
                    Some((None, false)) => PayloadWork::Remove,
                    Some((None, true)) | None => PayloadWork::Keep,
                })
            }
            Task::Generation => Work::Generation(journal.generation),
        };
        actions.push(Action::Step(Box::new(StepWork {
            work,
            limit,
            journal,
            needs_journal,
        })));
    }

    /// The integrations, as the lifecycle knows them.
    pub(super) fn participants(&self) -> Vec<Participant> {
        self.checks
            .iter()
            .filter_map(|check| match &check.body {
                Body::Integration { spec, .. } => Some(Participant {
                    name: spec.name.as_str().to_owned(),
                    checkpoint: spec.checkpoint().is_some(),
                    personalize: spec.personalize().is_some(),
                    restore: spec.restore().is_some(),
                    critical: spec.critical,
                }),
                Body::Probe { .. } => None,
            })
            .collect()
    }

    fn lifecycle_command(&self, name: &str, task: &Task) -> Option<Command> {
        self.checks
            .iter()
            .find_map(|check| lifecycle_command(check, name, task))
    }

    /// Whether an agent that is stopped thaws the guest's work.
    pub(crate) fn thaws_when_stopped(&self) -> bool {
        self.lifecycle.thaws_when_stopped()
    }

    /// The guest's history of snapshots.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let journal = self.lifecycle.journal();
        Snapshot {
            generation: journal.generation,
            last_sleep: journal.last_sleep_ms.map(Timestamp),
            last_wake: journal.last_wake_ms.map(Timestamp),
            unannounced: journal.unannounced,
        }
    }
}

fn lifecycle_command(check: &Check, name: &str, task: &Task) -> Option<Command> {
    let Body::Integration { spec, .. } = &check.body else {
        return None;
    };
    if spec.name.as_str() != name {
        return None;
    }
    let (what, argv, timeout) = match task {
        Task::Checkpoint(_) => (
            "checkpoint of",
            spec.checkpoint(),
            spec.checkpoint_timeout_secs,
        ),
        Task::Personalize(_) => (
            "personalize of",
            spec.personalize(),
            spec.personalize_timeout_secs,
        ),
        _ => ("restore of", spec.restore(), spec.restore_timeout_secs),
    };
    Some(Command {
        what: format!("{what} {name}"),
        argv: argv?,
        user: spec.user.as_ref().map(|user| user.as_str().to_owned()),
        timeout: timeout.duration(),
        split: false,
        context: None,
        pays: matches!(task, Task::Restore(_)).then(|| name.to_owned()),
    })
}

/// A sleep or a wake that did not come to its end, with the steps that were taken. A wake may be sent
/// again.
fn failed(waiter: WaiterId, code: ErrorCode, message: String, steps: Vec<Step>) -> Action {
    let mut error = ErrorAnswer::new(code, message);
    error.retryable |= code == ErrorCode::Failed;
    error.steps = Some(steps);
    answer(waiter, Answer::Error(error))
}

pub(super) fn done(outcome: Outcome, detail: Option<String>) -> Done {
    Done {
        outcome,
        duration_ms: 0,
        detail,
    }
}
