//! The lifecycle's states, each with what it has to remember.

use super::terms::{Cause, Done, Journal, Participant, Task, WakeAsked};
use crate::core::WaiterId;
use mvm_protocol::lifecycle::{Outcome, Step, Token, WakeCause};
use std::collections::VecDeque;
use std::time::Duration;

/// Time that is counted down in ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Budget(pub(super) Duration);

impl Budget {
    pub(super) fn spend(&mut self, time: Duration) {
        self.0 = self.0.saturating_sub(time);
    }

    pub(super) fn is_spent(self) -> bool {
        self.0.is_zero()
    }
}

/// Whether it failed.
pub(super) fn is_amiss(step: &Step) -> bool {
    step.outcome == Outcome::Failed || step.outcome == Outcome::TimedOut
}

/// How many of them are kept.
const MOST_UNTOLD: usize = 64;

/// Failed steps of a way back for which no host waited, after a lease that ran out or a new start of the
/// agent: the next wake is answered with them. Nothing else depends on them, so that two lifecycles which
/// differ in them alone are one to whoever searches through all.
#[derive(Debug, Clone, Default)]
pub(super) struct Untold(Vec<Step>);

impl Untold {
    /// Keeps those that failed.
    pub(super) fn keep(&mut self, steps: Vec<Step>) {
        self.0.extend(steps.into_iter().filter(is_amiss));
        self.0.truncate(MOST_UNTOLD);
    }

    /// They are told before these.
    pub(super) fn before(&mut self, steps: Vec<Step>) -> Vec<Step> {
        let mut all = std::mem::take(&mut self.0);
        all.extend(steps);
        all
    }
}

impl PartialEq for Untold {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Untold {}

impl std::hash::Hash for Untold {
    fn hash<H: std::hash::Hasher>(&self, _: &mut H) {}
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum State {
    Running,
    Preparing(Preparing),
    Ready {
        token: Token,
        steps: Vec<Step>,
        lease: Budget,
    },
    Waking(Waking),
    Held(Held),
}

/// A restored guest whose critical personalize command failed. Its work is frozen, and no lease ends
/// that: a clone that has its twin's address must not come up.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Held {
    pub(super) token: Option<Token>,
    pub(super) was_ready: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Preparing {
    pub(super) token: Token,
    pub(super) participants: Vec<Participant>,
    pub(super) plan: VecDeque<Task>,
    pub(super) current: Option<Task>,
    pub(super) steps: Vec<Step>,
    pub(super) deadline: Budget,
    pub(super) lease: Budget,
    pub(super) require_freeze: bool,
    pub(super) waiters: Vec<WaiterId>,
    /// Why it is to be undone, once the task under way has ended.
    pub(super) undo: Option<Waking>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Waking {
    pub(super) token: Option<Token>,
    pub(super) was_ready: bool,
    /// Counts as a restore: the guest comes from a snapshot.
    pub(super) restored: bool,
    pub(super) cause: Cause,
    pub(super) clone: bool,
    pub(super) plan: VecDeque<Task>,
    pub(super) current: Option<Task>,
    pub(super) steps: Vec<Step>,
    pub(super) waiters: Vec<WaiterId>,
    /// `sleep-prep`s that failed, and why.
    pub(super) sleepers: Vec<WaiterId>,
    pub(super) reason: String,
    pub(super) fingerprint: Option<u64>,
    /// Whose failed personalize command fails the wake, and keeps a frozen guest frozen.
    pub(super) critical: Vec<String>,
    /// The first such failure.
    pub(super) failure: Option<String>,
    /// Whether the guest's work was frozen at that.
    pub(super) hold: bool,
}

impl Waking {
    pub(super) fn because(cause: Cause, reason: impl Into<String>) -> Self {
        Self {
            token: None,
            was_ready: false,
            restored: false,
            cause,
            clone: false,
            plan: VecDeque::new(),
            current: None,
            steps: Vec::new(),
            waiters: Vec::new(),
            sleepers: Vec::new(),
            reason: reason.into(),
            fingerprint: None,
            critical: Vec::new(),
            failure: None,
            hold: false,
        }
    }

    /// A host's wake. From a snapshot come a new seed and a right clock, whatever else holds.
    pub(super) fn asked(
        waiter: WaiterId,
        asked: &WakeAsked,
        was_ready: bool,
        participants: &[Participant],
        frozen: bool,
    ) -> Self {
        let mut waking = Self::because(Cause::Aborted, "the host woke the guest");
        waking.token = asked.wake.token.clone();
        waking.was_ready = was_ready;
        waking.join(waiter, asked, participants, frozen);
        waking
    }

    /// Another wake while this one is under way. What was begun for another reason (a lease that
    /// ran out just as the snapshot was restored) still gets a new seed and a right clock first:
    /// without them two clones would go on with the same random numbers.
    pub(super) fn join(
        &mut self,
        waiter: WaiterId,
        asked: &WakeAsked,
        participants: &[Participant],
        frozen: bool,
    ) {
        self.waiters.push(waiter);
        let first = self.fingerprint.is_none();
        self.fingerprint = self.fingerprint.or(Some(asked.fingerprint));
        // What an agent that was restarted began without a host begins anew with what the host says.
        if self.restored && self.cause != Cause::Restart {
            return;
        }
        match asked.wake.cause {
            WakeCause::Restored => {
                (self.failure, self.hold) = (None, false);
                self.cause = Cause::Restored;
                self.clone = asked.wake.clone;
                self.restore(participants, frozen);
            }
            // A guest that was frozen and runs on has stood still as well: its clock is late by as
            // long as its state took to be written.
            WakeCause::Aborted
                if first
                    && asked.wake.wall_clock.is_some()
                    && !self.plan.contains(&Task::Clock) =>
            {
                self.plan.push_front(Task::Clock);
            }
            WakeCause::Aborted => {}
        }
    }

    /// Puts before everything else what a restored guest needs before its work runs.
    pub(super) fn restore(&mut self, participants: &[Participant], frozen: bool) {
        self.restored = true;
        let personalized = || participants.iter().filter(|it| it.personalize);
        self.critical = personalized()
            .filter(|it| it.critical)
            .map(|it| it.name.clone())
            .collect();
        // What is just being thawed is not to be frozen again.
        let look = frozen && self.current != Some(Task::Thaw);
        let look = look.then_some(Task::CheckFrozen);
        let first = [Task::Reseed, Task::Clock, Task::Identity, Task::Payload];
        let personalize = personalized().map(|it| Task::Personalize(it.name.clone()));
        let before_work = look.into_iter().chain(first).chain(personalize);
        self.plan.retain(|task| !task.is_before_work());
        let mut plan: VecDeque<Task> = before_work.chain([Task::Generation]).collect();
        plan.append(&mut self.plan);
        self.plan = plan;
    }

    /// Whether it ends a sleep, or a host says so: else it undoes a preparation, or a guest that ran all the
    /// time has noticed a restore.
    pub(super) fn is_from_sleep(&self) -> bool {
        match self.cause {
            Cause::Rollback => false,
            Cause::Restored => self.fingerprint.is_some(),
            Cause::Aborted | Cause::Lease | Cause::Restart => true,
        }
    }

    /// The rest of a way back from a sleep, behind what is planned already.
    pub(super) fn way_back(
        &mut self,
        journal: &Journal,
        frozen: bool,
        restores: impl IntoIterator<Item = Task>,
    ) {
        self.notice_if_due(journal);
        self.thaw_if(frozen);
        self.plan.extend(restores);
        self.plan.push_back(Task::Resume);
    }

    /// Its work is thawed once all that was planned so far has been done.
    pub(super) fn thaw_if(&mut self, frozen: bool) {
        if frozen {
            self.plan.push_back(Task::Thaw);
        }
    }

    /// Puts first what a guest needs that was restored without being told. What a host would say is
    /// not known: it gets no identity, no payload, and is not personalized.
    pub(super) fn notice(&mut self) {
        if self.plan.contains(&Task::Reseed) {
            return;
        }
        self.plan.retain(|task| *task != Task::Clock);
        // One that a host has restored is written when it is personalized, and not before.
        if !self.plan.contains(&Task::Generation) {
            self.plan.push_front(Task::Generation);
        }
        self.plan.push_front(Task::Clock);
        self.plan.push_front(Task::Reseed);
    }

    /// The same for a guest of which that was noticed, or had been by an agent that was killed.
    pub(super) fn notice_if_due(&mut self, journal: &Journal) {
        let begun = journal.restoring.is_some_and(|it| it.unannounced);
        if journal.noticed.is_some() || begun {
            self.notice();
        }
    }

    /// Takes note of how a task ended. A critical personalize command that failed fails the wake, and
    /// keeps a frozen guest frozen; so does a payload that such a command would not get. The other ones
    /// are run all the same, so that the host hears of all that is amiss.
    pub(super) fn note(&mut self, task: &Task, done: &Done, journal: &Journal) {
        let is_critical = match task {
            Task::Personalize(name) => self.critical.contains(name),
            Task::Payload => !self.critical.is_empty(),
            _ => false,
        };
        if is_critical && done.outcome != Outcome::Ok {
            self.hold |= journal.frozen;
            self.failure.get_or_insert_with(|| task.failure(done));
        }
    }
}

impl Preparing {
    pub(super) fn requires(&self, task: &Task) -> bool {
        match task {
            Task::Checkpoint(name) => self
                .participants
                .iter()
                .find(|it| it.name == *name)
                .is_none_or(|it| it.critical),
            // A cache that stays makes the snapshot larger, not wrong.
            Task::DropCaches => false,
            Task::Freeze | Task::CheckFrozen => self.require_freeze,
            _ => true,
        }
    }
}
