//! A host's `wake`, in each state.

use super::Lifecycle;
use super::states::{Held, Preparing, State, Waking};
use super::terms::{Act, Participant, Task, WakeAsked};
use crate::core::WaiterId;
use mvm_protocol::lifecycle::{Awake, WakeCause};
use mvm_protocol::status::Lifecycle as Phase;

impl Lifecycle {
    /// A host says that the guest runs on.
    pub(crate) fn wake(
        &mut self,
        waiter: WaiterId,
        asked: &WakeAsked,
        participants: &[Participant],
    ) -> Vec<Act> {
        let token = match &self.state {
            State::Running => None,
            State::Preparing(Preparing { token, .. }) | State::Ready { token, .. } => Some(token),
            State::Waking(Waking { token, .. }) | State::Held(Held { token, .. }) => token.as_ref(),
        };
        if let (Some(held), Some(given)) = (token, &asked.wake.token)
            && held != given
        {
            return vec![Act::WrongToken(waiter)];
        }
        // Whatever was noticed before is the restore that this host announces.
        if asked.wake.cause == WakeCause::Restored || matches!(self.state, State::Held(_)) {
            self.journal.noticed = None;
        }
        match &mut self.state {
            State::Running => self.wake_running(waiter, asked, participants),
            State::Preparing(preparing) => {
                if let Some(waking) = &mut preparing.undo {
                    waking.join(waiter, asked, participants, self.journal.frozen);
                    return Vec::new();
                }
                let frozen = self.journal.frozen;
                self.undo(Waking::asked(waiter, asked, false, participants, frozen))
            }
            State::Ready { token, .. } => {
                let frozen = self.journal.frozen;
                let mut waking = Waking::asked(waiter, asked, true, participants, frozen);
                waking.token = Some(token.clone());
                self.leave_ready(waking)
            }
            State::Waking(waking) => {
                waking.join(waiter, asked, participants, self.journal.frozen);
                Vec::new()
            }
            // Whatever the host says of the cause: it was restored, and is not personalized yet.
            State::Held(held) => {
                let mut waking = Waking::asked(waiter, asked, held.was_ready, participants, true);
                waking.token = held.token.clone();
                if !waking.restored {
                    waking.plan.clear();
                    waking.restore(participants, true);
                }
                self.leave_ready(waking)
            }
        }
    }

    fn wake_running(
        &mut self,
        waiter: WaiterId,
        asked: &WakeAsked,
        participants: &[Participant],
    ) -> Vec<Act> {
        match &self.answered {
            Some((fingerprint, awake))
                if asked.wake.token.is_some() && *fingerprint == asked.fingerprint =>
            {
                return vec![Act::Awake(waiter, awake.clone())];
            }
            _ => {}
        }
        let mut waking = Waking::asked(waiter, asked, false, participants, false);
        // One that woke by itself when its lease ran out may have stood still before: its clock is late,
        // and this is the first host that tells it the time.
        let sets_clock = self.journal.lease_expired && !waking.plan.is_empty();
        if !waking.restored && !sets_clock && !self.still_frozen {
            let lease_expired = std::mem::take(&mut self.journal.lease_expired);
            let generation = self.journal.generation;
            let awake = Awake {
                was_ready: false,
                lease_expired,
                generation,
                steps: self.untold.before(Vec::new()),
                steps_omitted: 0,
            };
            return vec![Act::Keep(self.journal.clone()), Act::Awake(waiter, awake)];
        }
        waking.thaw_if(self.still_frozen);
        waking.plan.push_back(Task::Resume);
        self.journal.asleep = true;
        self.state = State::Waking(waking);
        let mut acts = vec![Act::Hold, Act::Enter(Phase::Waking)];
        self.proceed(&mut acts);
        acts
    }
}
