//! A host's `wake`, in each state.

use super::Lifecycle;
use super::states::{Preparing, State, Waking};
use super::terms::{Act, Task, WakeAsked};
use crate::core::WaiterId;
use mvm_protocol::lifecycle::Awake;
use mvm_protocol::status::Lifecycle as Phase;

impl Lifecycle {
    /// A host says that the guest runs on.
    pub(crate) fn wake(&mut self, waiter: WaiterId, asked: &WakeAsked) -> Vec<Act> {
        let token = match &self.state {
            State::Running => None,
            State::Preparing(Preparing { token, .. }) | State::Ready { token, .. } => Some(token),
            State::Waking(waking) => waking.token.as_ref(),
        };
        if let (Some(held), Some(given)) = (token, &asked.wake.token)
            && held != given
        {
            return vec![Act::WrongToken(waiter)];
        }
        match &mut self.state {
            State::Running => self.wake_running(waiter, asked),
            State::Preparing(preparing) => match &mut preparing.undo {
                Some(waking) => {
                    waking.join(waiter, asked);
                    Vec::new()
                }
                None => self.undo(Waking::asked(waiter, asked, false)),
            },
            State::Ready { token, .. } => {
                let mut waking = Waking::asked(waiter, asked, true);
                waking.token = Some(token.clone());
                self.leave_ready(waking)
            }
            State::Waking(waking) => {
                waking.join(waiter, asked);
                Vec::new()
            }
        }
    }

    fn wake_running(&mut self, waiter: WaiterId, asked: &WakeAsked) -> Vec<Act> {
        match &self.answered {
            Some((fingerprint, awake))
                if asked.wake.token.is_some() && *fingerprint == asked.fingerprint =>
            {
                return vec![Act::Awake(waiter, awake.clone())];
            }
            _ => {}
        }
        let mut waking = Waking::asked(waiter, asked, false);
        if !waking.restored {
            let lease_expired = std::mem::take(&mut self.journal.lease_expired);
            let generation = self.journal.generation;
            let awake = Awake {
                was_ready: false,
                lease_expired,
                generation,
                steps: Vec::new(),
            };
            return vec![Act::Keep(self.journal.clone()), Act::Awake(waiter, awake)];
        }
        waking.plan.push_back(Task::Resume);
        self.journal.asleep = true;
        self.state = State::Waking(waking);
        let mut acts = vec![Act::Hold, Act::Enter(Phase::Waking)];
        self.proceed(&mut acts);
        acts
    }
}
