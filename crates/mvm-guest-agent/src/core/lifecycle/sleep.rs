//! A host's `sleep-prep`, in each state.

use super::Lifecycle;
use super::states::{Budget, Preparing, State};
use super::terms::{Act, Participant, Task};
use crate::core::WaiterId;
use mvm_protocol::lifecycle::{Ready as ReadyAnswer, SleepPrep, Token};
use mvm_protocol::status::Lifecycle as Phase;
use std::collections::VecDeque;
use std::time::Duration;

impl Lifecycle {
    /// A host asks for the guest to be made ready.
    pub(crate) fn sleep_prep(
        &mut self,
        waiter: WaiterId,
        asked: &SleepPrep,
        made_up: Token,
        participants: Vec<Participant>,
        now: Duration,
    ) -> Vec<Act> {
        match &mut self.state {
            State::Running => self.prepare(waiter, asked, made_up, participants, now),
            State::Preparing(preparing) if asked.token.as_ref() == Some(&preparing.token) => {
                match &mut preparing.undo {
                    Some(waking) => waking.sleepers.push(waiter),
                    None => preparing.waiters.push(waiter),
                }
                Vec::new()
            }
            State::Ready { token, steps, .. } if asked.token.as_ref() == Some(token) => {
                vec![Act::Ready(
                    waiter,
                    ReadyAnswer {
                        token: token.clone(),
                        steps: steps.clone(),
                        steps_omitted: 0,
                    },
                )]
            }
            State::Preparing(_) | State::Ready { .. } => {
                vec![Act::Busy(waiter, "another host's sleep holds the guest")]
            }
            State::Waking(_) => vec![Act::Busy(waiter, "the guest is waking")],
            State::Held(_) => vec![Act::Busy(
                waiter,
                "the guest is frozen, since it could not be personalized: wake it again",
            )],
        }
    }

    fn prepare(
        &mut self,
        waiter: WaiterId,
        asked: &SleepPrep,
        made_up: Token,
        participants: Vec<Participant>,
        now: Duration,
    ) -> Vec<Act> {
        let mut plan = VecDeque::from([Task::Drain]);
        let takes_part = participants
            .iter()
            .rev()
            .filter(|it| it.checkpoint || it.restore);
        plan.extend(takes_part.map(|it| Task::Checkpoint(it.name.clone())));
        plan.extend([
            Task::Sync,
            Task::Freeze,
            Task::LastSync,
            Task::DropCaches,
            Task::CheckFrozen,
        ]);
        self.journal.asleep = true;
        self.journal.lease_expired = false;
        self.answered = None;
        self.last_tick = now;
        self.state = State::Preparing(Preparing {
            token: asked.token.clone().unwrap_or(made_up),
            participants,
            plan,
            current: None,
            steps: Vec::new(),
            deadline: Budget(asked.deadline()),
            lease: Budget(asked.lease_secs.duration()),
            require_freeze: asked.require_freeze,
            waiters: vec![waiter],
            undo: None,
        });
        let mut acts = vec![Act::Hold, Act::Enter(Phase::Preparing)];
        self.proceed(&mut acts);
        acts
    }
}
