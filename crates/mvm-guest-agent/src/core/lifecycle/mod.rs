//! Sleep and wake: a pure function from state and event to state and actions.
//!
//! ```text
//!                sleep-prep                      all steps ok
//!    running ───────────────────▶ preparing ─────────────────────▶ ready
//!     ▲  │                          │  a required step fails,        │  wake,
//!     │  │ wake: reseed, clock      │  deadline, lease, wake         │  lease
//!     │  ▼                          ▼                                ▼
//!     └──────────────────────────  waking  ◀─────────────────────────┘
//!         all steps done            ▲
//!                                   └── the agent starts and the journal says that it was not running
//! ```
//!
//! # The happy path
//!
//! A host asks for `sleep-prep`. The guest is `preparing` at once: checks are held, running ones are
//! drained, checkpoint commands run in reverse load order, filesystems are synced, its work is frozen,
//! what it wrote meanwhile is synced, the page cache is dropped, and it is looked whether all is frozen
//! still. With the last step the guest is `ready`, and the host gets its answer. From here the agent runs
//! and writes nothing, so the VM can be frozen at any moment.
//!
//! After the VM was restored, or its snapshot was aborted, a host asks for `wake`. The guest is
//! `waking`: for a restore the random generator is reseeded, the clock set and the identity renewed;
//! then restore commands run in load order, and checks are released. With the last step the guest is
//! `running`, and the host gets its answer.
//!
//! One step is under way at a time. This module names it ([`Act::Do`]), the machine runs it and
//! reports its outcome ([`Lifecycle::done`]).
//!
//! # Who leaves a state, and why
//!
//! - `running`: by a request, a `sleep-prep` or the `wake` of a restore, or by the sign of a restore
//!   that no host has announced.
//! - `preparing`: by its last step, or by whatever makes it fail.
//! - `ready`: by a `wake`, or when the lease runs out, so that a host that never returns cannot keep a
//!   guest asleep.
//! - `waking`: when its last step has ended, with whatever outcome. A restore that fails is reported
//!   and not repeated: a guest must not stay asleep for it.
//!
//! # What can fail
//!
//! - **A required step fails, or the deadline passes.** The preparation is undone by `waking`, the only
//!   way back; a step that is under way is cancelled first, and its outcome awaited. The host is
//!   answered `sleep-prep-failed` once the guest runs again.
//! - **The host goes away.** The lease counts on in every state before `waking`, and undoes the sleep.
//!   The next `wake` reports that it expired.
//! - **The agent is killed.** Before a checkpoint command starts, its restore is written to the journal
//!   as owed; if the journal cannot be written, the command does not start. An agent that finds the
//!   journal asleep, or restores owed, begins in `waking` and runs each owed restore. A restore that was
//!   interrupted runs again, one that has ended does not.
//! - **Two hosts ask.** The token decides: the same token joins what is under way, another one is
//!   answered `busy`, or `wrong-token` for a `wake`.
//! - **The answer is lost.** The host repeats its request. A `sleep-prep` with the same token is
//!   answered again; a `wake` with the same fingerprint gets the recorded answer, and nothing runs.
//! - **The clock jumps** when the VM is restored. Deadline and lease are counted in ticks of at most a
//!   second of the agent's own time, so that a jump costs one tick.
//! - **A restore is not announced.** A sign of one that comes while the guest sleeps waits for the
//!   `wake`. If the sleep ends in another way, and in a guest that runs, a new seed, the clock and a
//!   new generation come before its work goes on.
//! - **A wake meets a running rollback**, for example of a lease that ran out just as the snapshot was
//!   taken. It joins, and its reseed, clock and identity come first: two clones must not go on with
//!   the same random numbers.

mod debts;
mod notice;
mod progress;
mod sleep;
mod states;
mod terms;
mod wake;

use debts::{keep_what_can_be_paid, restores};
use mvm_protocol::Timestamp;
use mvm_protocol::lifecycle::{Awake, Outcome};
use mvm_protocol::status::Lifecycle as Phase;
use states::{Preparing, State, Untold, Waking, is_amiss};
use std::time::Duration;
pub(crate) use terms::{
    Act, Cause, DRAIN_GRACE, Done, Journal, Participant, TICK, Task, WakeAsked,
};

const LEASE_RAN_OUT: &str = "the lease ran out";

/// The lifecycle of one guest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Lifecycle {
    state: State,
    journal: Journal,
    last_tick: Duration,
    /// Whether the integrations are known, so that debts can be paid.
    started: bool,
    /// The last wake that was answered, for a host that lost the answer.
    answered: Option<(u64, Awake)>,
    untold: Untold,
    /// The last thaw has failed: the next wake tries again. An agent that starts thaws what is listed
    /// anyway.
    still_frozen: bool,
}

impl Lifecycle {
    /// The lifecycle of an agent that starts, with what an earlier one left behind.
    pub(crate) fn new(journal: Journal, now: Duration) -> Self {
        let owes = journal.asleep || !journal.owed.is_empty() || journal.frozen;
        let state = if owes {
            State::Waking(Waking::because(Cause::Restart, "the agent was restarted"))
        } else {
            State::Running
        };
        Self {
            state,
            journal,
            last_tick: now,
            started: false,
            answered: None,
            untold: Untold::default(),
            still_frozen: false,
        }
    }

    /// The integrations are known: pays the debts that an earlier agent left.
    pub(crate) fn start(&mut self, participants: &[Participant]) -> Vec<Act> {
        let mut acts = Vec::new();
        if std::mem::replace(&mut self.started, true) {
            return acts;
        }
        // One that has begun meanwhile, of a guest that ran, has no debts to pay.
        if let State::Waking(waking @ Waking { current: None, .. }) = &mut self.state {
            keep_what_can_be_paid(&mut self.journal.owed, participants);
            // It was killed between a restore and the thaw: a clone must not come up as its twin.
            match self.journal.restoring {
                Some(restoring) if !restoring.unannounced => {
                    waking.clone = restoring.clone;
                    waking.restore(participants, self.journal.frozen);
                }
                _ => {}
            }
            let restores = restores(&self.journal.owed, participants);
            waking.way_back(&self.journal, self.journal.frozen, restores);
            acts.extend([Act::Hold, Act::Enter(Phase::Waking)]);
            self.proceed(&mut acts);
        }
        acts
    }

    /// Whether the integrations are known.
    pub(crate) fn is_started(&self) -> bool {
        self.started
    }

    /// The phase, as `status` tells it.
    pub(crate) fn phase(&self) -> Phase {
        match self.state {
            State::Running => Phase::Running,
            State::Preparing(_) => Phase::Preparing,
            State::Ready { .. } => Phase::Ready,
            State::Waking(_) | State::Held(_) => Phase::Waking,
        }
    }

    /// Whether the sleep under way is to fail unless all of the work is frozen.
    pub(crate) fn requires_freeze(&self) -> bool {
        matches!(&self.state, State::Preparing(preparing) if preparing.require_freeze)
    }

    /// Whether an agent that is stopped by its init thaws the work: not if a restored guest is not
    /// personalized yet.
    pub(crate) fn thaws_when_stopped(&self) -> bool {
        let restoring = self.journal.restoring;
        self.journal.frozen && restoring.is_none_or(|restoring| restoring.unannounced)
    }

    /// What survives the agent.
    pub(crate) fn journal(&self) -> &Journal {
        &self.journal
    }

    /// When a tick is due: in ticks while anything is counted down, else never.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        let left = match &self.state {
            State::Preparing(it @ Preparing { undo: None, .. }) => it.deadline.0.min(it.lease.0),
            State::Ready { lease, .. } => lease.0,
            State::Running | State::Waking(_) | State::Held(_) | State::Preparing(_) => {
                return None;
            }
        };
        Some(
            self.last_tick
                .saturating_add(left.clamp(Duration::from_millis(1), TICK)),
        )
    }

    /// Time has passed.
    pub(crate) fn tick(&mut self, now: Duration) -> Vec<Act> {
        let elapsed = now.saturating_sub(self.last_tick).min(TICK);
        self.last_tick = now;
        match &mut self.state {
            State::Preparing(preparing) => {
                preparing.deadline.spend(elapsed);
                preparing.lease.spend(elapsed);
                match preparing {
                    Preparing { undo: Some(_), .. } => Vec::new(),
                    Preparing { lease, .. } if lease.is_spent() => {
                        self.journal.lease_expired = true;
                        // What is under way may take its time to end, and the agent may not live
                        // to see it.
                        let mut acts = vec![Act::Keep(self.journal.clone())];
                        acts.extend(self.undo(Waking::because(Cause::Lease, LEASE_RAN_OUT)));
                        acts
                    }
                    Preparing { deadline, .. } if deadline.is_spent() => {
                        self.undo(Waking::because(Cause::Rollback, "the deadline passed"))
                    }
                    Preparing { .. } => Vec::new(),
                }
            }
            State::Ready { lease, .. } => {
                lease.spend(elapsed);
                if !lease.is_spent() {
                    return Vec::new();
                }
                self.journal.lease_expired = true;
                self.leave_ready(Waking::because(Cause::Lease, LEASE_RAN_OUT))
            }
            State::Running | State::Waking(_) | State::Held(_) => Vec::new(),
        }
    }

    /// The task that was to be under way was not begun. A checkpoint command that was not started
    /// is owed nothing, and nothing was frozen.
    pub(crate) fn refused(&mut self, done: &Done, at: Timestamp) -> Vec<Act> {
        if let State::Preparing(preparing) = &self.state {
            match &preparing.current {
                Some(Task::Checkpoint(name)) => self.journal.owed.retain(|owed| owed != name),
                Some(Task::Freeze) => self.journal.frozen = false,
                _ => {}
            }
        }
        self.done(done, at)
    }

    /// The task that is under way has ended.
    pub(crate) fn done(&mut self, done: &Done, at: Timestamp) -> Vec<Act> {
        let mut acts = Vec::new();
        match &mut self.state {
            State::Preparing(preparing) => {
                let Some(task) = preparing.current.take() else {
                    return acts;
                };
                if !task.is_silent(done) {
                    preparing.steps.push(task.step(done));
                }
                let skipped = done.outcome == Outcome::Skipped;
                if task == Task::Freeze && skipped {
                    self.journal.frozen = false;
                    preparing.plan.retain(|task| *task != Task::CheckFrozen);
                }
                let failed = done.has_failed() || (task == Task::Freeze && skipped);
                match preparing.undo.take() {
                    Some(waking) => self.roll_back(waking, &mut acts),
                    None if failed && preparing.requires(&task) => {
                        let reason = task.failure(done);
                        self.roll_back(Waking::because(Cause::Rollback, reason), &mut acts);
                    }
                    None => {
                        // Before the journal is kept for the last time: an agent that is killed
                        // while the guest is ready would forget it.
                        if preparing.plan.is_empty() {
                            self.journal.last_sleep_ms = Some(at.0);
                        }
                        self.proceed(&mut acts);
                    }
                }
            }
            State::Waking(waking) => {
                let Some(task) = waking.current.take() else {
                    return acts;
                };
                match &task {
                    Task::Restore(name) => self.journal.owed.retain(|owed| owed != name),
                    Task::Resume if waking.is_from_sleep() => {
                        self.journal.last_wake_ms = Some(at.0);
                    }
                    Task::Generation => self.journal.restoring = None,
                    Task::Thaw => {
                        self.journal.frozen = false;
                        self.still_frozen = done.has_failed();
                    }
                    _ => {}
                }
                waking.note(&task, done, &self.journal);
                if !task.is_silent(done) {
                    let step = task.step(done);
                    if is_amiss(&step) {
                        acts.push(Act::Amiss(task.failure(done)));
                    }
                    waking.steps.push(step);
                }
                self.proceed(&mut acts);
            }
            State::Running | State::Ready { .. } | State::Held(_) => {}
        }
        acts
    }

    /// Undoes a preparation: at once if no task is under way, else when that has ended.
    fn undo(&mut self, waking: Waking) -> Vec<Act> {
        let State::Preparing(preparing) = &mut self.state else {
            return Vec::new();
        };
        if preparing.current.is_some() {
            preparing.undo = Some(waking);
            return vec![Act::Cancel];
        }
        let mut acts = Vec::new();
        self.roll_back(waking, &mut acts);
        acts
    }

    /// Whether there is something to thaw, as far as anybody knows.
    fn is_frozen(&self) -> bool {
        self.journal.frozen || self.still_frozen
    }

    fn roll_back(&mut self, mut waking: Waking, acts: &mut Vec<Act>) {
        let State::Preparing(preparing) = std::mem::replace(&mut self.state, State::Running) else {
            return;
        };
        waking.token = Some(preparing.token);
        waking.sleepers.extend(preparing.waiters);
        waking.steps = preparing.steps;
        let restores = restores(&self.journal.owed, &preparing.participants);
        waking.way_back(&self.journal, self.is_frozen(), restores);
        self.state = State::Waking(waking);
        acts.push(Act::Enter(Phase::Waking));
        self.proceed(acts);
    }

    /// From `ready`, or from being held: both have nothing under way.
    fn leave_ready(&mut self, mut waking: Waking) -> Vec<Act> {
        // Paid in load order, which is the reverse of the order in which the debts were made.
        let restores = self.journal.owed.iter().rev().cloned().map(Task::Restore);
        waking.way_back(&self.journal, self.is_frozen(), restores);
        self.state = State::Waking(waking);
        let mut acts = vec![Act::Enter(Phase::Waking)];
        self.proceed(&mut acts);
        acts
    }
}

#[cfg(test)]
mod search;
#[cfg(test)]
mod tests;
