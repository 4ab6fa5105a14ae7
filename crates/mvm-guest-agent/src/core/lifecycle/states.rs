//! The lifecycle's states, each with what it has to remember.

use super::terms::{Participant, Task, WakeAsked};
use crate::core::WaiterId;
use mvm_protocol::lifecycle::{Step, Token, WakeCause};
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
    pub(super) plan: VecDeque<Task>,
    pub(super) current: Option<Task>,
    pub(super) steps: Vec<Step>,
    pub(super) waiters: Vec<WaiterId>,
    /// `sleep-prep`s that failed, and why.
    pub(super) sleepers: Vec<WaiterId>,
    pub(super) reason: String,
    pub(super) fingerprint: Option<u64>,
}

impl Waking {
    pub(super) fn because(reason: impl Into<String>) -> Self {
        Self {
            token: None,
            was_ready: false,
            restored: false,
            plan: VecDeque::new(),
            current: None,
            steps: Vec::new(),
            waiters: Vec::new(),
            sleepers: Vec::new(),
            reason: reason.into(),
            fingerprint: None,
        }
    }

    /// A host's wake. From a snapshot come a new seed and a right clock, whatever else holds.
    pub(super) fn asked(waiter: WaiterId, asked: &WakeAsked, was_ready: bool) -> Self {
        let mut waking = Self::because("the host woke the guest");
        waking.token = asked.wake.token.clone();
        waking.was_ready = was_ready;
        waking.join(waiter, asked);
        waking
    }

    /// Another wake while this one is under way. What was begun for another reason (a lease that
    /// ran out just as the snapshot was restored) still gets a new seed and a right clock first:
    /// without them two clones would go on with the same random numbers.
    pub(super) fn join(&mut self, waiter: WaiterId, asked: &WakeAsked) {
        self.waiters.push(waiter);
        let first = self.fingerprint.is_none();
        self.fingerprint = self.fingerprint.or(Some(asked.fingerprint));
        if self.restored {
            return;
        }
        match asked.wake.cause {
            WakeCause::Restored => {
                self.restored = true;
                for task in [Task::Identity, Task::Clock, Task::Reseed] {
                    self.plan.push_front(task);
                }
            }
            // A guest that was frozen and runs on has stood still as well: its clock is late by as
            // long as its state took to be written.
            WakeCause::Aborted if first && asked.wake.wall_clock.is_some() => {
                self.plan.push_front(Task::Clock);
            }
            WakeCause::Aborted => {}
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
            _ => true,
        }
    }
}
