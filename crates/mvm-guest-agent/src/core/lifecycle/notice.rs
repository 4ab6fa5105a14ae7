//! A restore that the agent notices by itself, in each state.
//!
//! A host that restores the guest of a snapshot says so by a `wake`. Until then nobody knows whether
//! it will: a guest that sleeps waits for it, and only one that runs, or comes to run for another
//! reason, is a guest whose restore nobody announced. Such a guest gets a seed, a clock and a
//! generation before its work goes on, and those who watch are told. It is not personalized, since
//! nobody has said who it is.

use super::Lifecycle;
use super::states::{State, Waking};
use super::terms::{Act, Cause, Task};
use mvm_protocol::status::{Lifecycle as Phase, RestoreSign};
use std::time::Duration;

/// How long at least the lease of a guest lasts that was restored while it was `ready`: whoever
/// restored it is about to wake it, however short its lease was when its state was written.
const WAKE_WITHIN: Duration = Duration::from_secs(30);

impl Lifecycle {
    /// The guest was restored: so says a sign that no `wake` has explained.
    pub(crate) fn noticed(&mut self, by: RestoreSign) -> Vec<Act> {
        self.journal.noticed = Some(by);
        match &mut self.state {
            State::Running => {
                let mut waking = Waking::because(Cause::Restored, "the guest was restored");
                waking.notice();
                waking.thaw_if(self.still_frozen);
                waking.plan.push_back(Task::Resume);
                self.journal.asleep = true;
                self.state = State::Waking(waking);
                let mut acts = vec![Act::Hold, Act::Enter(Phase::Waking)];
                self.proceed(&mut acts);
                return acts;
            }
            State::Waking(waking) => waking.notice(),
            State::Preparing(_) | State::Ready { .. } | State::Held(_) => {}
        }
        self.expect_wake();
        vec![Act::Keep(self.journal.clone())]
    }

    /// The guest has stood still, and a wake may be about to come: the lease does not end before it.
    pub(crate) fn expect_wake(&mut self) {
        if let State::Ready { lease, .. } = &mut self.state {
            lease.0 = lease.0.max(WAKE_WITHIN);
        }
    }
}
