//! From one task to the next, and into the state that follows the last.

use super::Lifecycle;
use super::states::{Held, State, Waking};
use super::terms::{Act, Journal, Restoring, TICK, Task};
use mvm_protocol::lifecycle::{Awake, Ready as ReadyAnswer};
use mvm_protocol::status::Lifecycle as Phase;

impl Lifecycle {
    /// Begins the next task, or enters the next state.
    pub(super) fn proceed(&mut self, acts: &mut Vec<Act>) {
        match &mut self.state {
            State::Preparing(preparing) => {
                while let Some(task) = preparing.plan.pop_front() {
                    if let Task::Checkpoint(name) = &task {
                        let it = preparing.participants.iter().find(|it| it.name == *name);
                        if it.is_some_and(|it| it.restore) {
                            self.journal.owed.push(name.clone());
                        }
                        // Nothing to run before a snapshot, but something after it.
                        if it.is_none_or(|it| !it.checkpoint) {
                            continue;
                        }
                    }
                    if task == Task::Freeze {
                        // Known before the first cgroup is frozen: an agent that is killed must thaw it.
                        self.journal.frozen = true;
                        // With all else.
                        self.still_frozen = false;
                    }
                    preparing.current = Some(task.clone());
                    let limit = preparing.deadline.0;
                    acts.push(Act::Do {
                        task,
                        limit,
                        journal: self.journal.clone(),
                        cause: None,
                    });
                    return;
                }
                self.become_ready(acts);
            }
            State::Waking(waking) => match waking.plan.pop_front() {
                Some(task) if waking.hold && !matches!(task, Task::Personalize(_)) => {
                    self.become_held(acts);
                }
                Some(task) => {
                    if task == Task::Reseed {
                        begin_restoring(&mut self.journal, waking, acts);
                    }
                    waking.current = Some(task.clone());
                    let limit = TICK * 60;
                    acts.push(Act::Do {
                        task,
                        limit,
                        journal: self.journal.clone(),
                        cause: Some(waking.cause),
                    });
                }
                None => self.become_running(acts),
            },
            State::Running | State::Ready { .. } | State::Held(_) => {}
        }
    }

    fn become_ready(&mut self, acts: &mut Vec<Act>) {
        let State::Preparing(preparing) = std::mem::replace(&mut self.state, State::Running) else {
            return;
        };
        let (token, steps) = (preparing.token, preparing.steps);
        acts.push(Act::Keep(self.journal.clone()));
        acts.push(Act::Enter(Phase::Ready));
        for waiter in preparing.waiters {
            let answer = ReadyAnswer {
                token: token.clone(),
                steps: steps.clone(),
                steps_omitted: 0,
            };
            acts.push(Act::Ready(waiter, answer));
        }
        self.state = State::Ready {
            token,
            steps,
            lease: preparing.lease,
        };
    }

    /// The work stays frozen until a host's next wake, which may bring another payload.
    fn become_held(&mut self, acts: &mut Vec<Act>) {
        let State::Waking(waking) = std::mem::replace(&mut self.state, State::Running) else {
            return;
        };
        acts.push(Act::Keep(self.journal.clone()));
        let reason = waking.failure.unwrap_or_default();
        for waiter in waking.sleepers.into_iter().chain(waking.waiters) {
            acts.push(Act::Held(waiter, reason.clone(), waking.steps.clone()));
        }
        self.state = State::Held(Held {
            token: waking.token,
            was_ready: waking.was_ready,
        });
    }

    fn become_running(&mut self, acts: &mut Vec<Act>) {
        let State::Waking(waking) = std::mem::replace(&mut self.state, State::Running) else {
            return;
        };
        self.journal.asleep = false;
        let told = !waking.waiters.is_empty();
        let lease_expired = self.journal.lease_expired;
        let steps = if told {
            self.untold.before(waking.steps)
        } else if waking.sleepers.is_empty() {
            self.untold.keep(waking.steps);
            Vec::new()
        } else {
            waking.steps
        };
        let awake = Awake {
            was_ready: waking.was_ready,
            lease_expired,
            generation: self.journal.generation,
            steps,
            steps_omitted: 0,
        };
        if told {
            self.journal.lease_expired = false;
        }
        acts.extend([
            Act::Keep(self.journal.clone()),
            Act::Release,
            Act::Enter(Phase::Running),
        ]);
        for waiter in waking.sleepers {
            acts.push(Act::Failed(
                waiter,
                waking.reason.clone(),
                awake.steps.clone(),
            ));
        }
        if let Some(reason) = waking.failure {
            // The host's next wake is to run the steps again.
            self.answered = None;
            for waiter in waking.waiters {
                acts.push(Act::NotPersonalized(
                    waiter,
                    reason.clone(),
                    awake.steps.clone(),
                ));
            }
            return;
        }
        for waiter in waking.waiters {
            acts.push(Act::Awake(waiter, awake.clone()));
        }
        self.answered = waking.fingerprint.map(|fingerprint| (fingerprint, awake));
    }
}

/// A restored guest gets its new seed, and with it its new generation: one for each restore, however
/// often that is begun anew.
fn begin_restoring(journal: &mut Journal, waking: &Waking, acts: &mut Vec<Act>) {
    let noticed = journal.noticed.take();
    if journal.restoring.is_none() || noticed.is_some() {
        journal.generation = journal.generation.saturating_add(1);
    }
    if let Some(by) = noticed {
        journal.unannounced = journal.unannounced.saturating_add(1);
        acts.push(Act::Unannounced(by));
    }
    // One that an agent before this one knew to be a clone stays one, though a retry does not say so again.
    let was_clone = journal.restoring.as_ref().is_some_and(|it| it.clone);
    journal.restoring = Some(Restoring {
        clone: waking.clone || was_clone,
        unannounced: !waking.restored,
    });
}
