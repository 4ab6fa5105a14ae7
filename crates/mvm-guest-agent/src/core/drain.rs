//! What runs when a sleep begins is waited for, and ended if that takes too long.

use super::lifecycle::{DRAIN_GRACE, Done};
use super::{Action, Core, Now};
use std::time::Duration;

/// Checks that run when a sleep begins.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Drain {
    began: Duration,
    kill_at: Option<Duration>,
    runs: usize,
    /// What hosts had open.
    open: usize,
    /// Whether the sleep is given up: then open requests, which have been told to end, are not
    /// waited for.
    given_up: bool,
}

impl Drain {
    pub(super) fn new(now: Duration, limit: Duration, runs: usize, open: usize) -> Self {
        Self {
            began: now,
            kill_at: Some(now.saturating_add(DRAIN_GRACE.min(limit))),
            runs,
            open,
            given_up: false,
        }
    }
}

impl Core {
    pub(super) fn cancel(&mut self, now: Now, actions: &mut Vec<Action>) {
        match &mut self.drain {
            Some(drain) => {
                drain.kill_at = None;
                drain.given_up = true;
                self.kill_runs(actions);
                self.drained(now, actions);
            }
            None => actions.push(Action::CancelStep),
        }
    }

    fn kill_runs(&self, actions: &mut Vec<Action>) {
        actions.extend(self.runs.iter().map(|(run, _)| Action::Kill(*run)));
    }

    /// When running checks are to be killed, if any hold up a sleep.
    pub(super) fn drain_deadline(&self) -> Option<Duration> {
        self.drain.and_then(|drain| drain.kill_at)
    }

    /// Ends the drain once nothing runs, or kills what does.
    pub(super) fn drained(&mut self, now: Now, actions: &mut Vec<Action>) {
        let Some(drain) = &mut self.drain else { return };
        let open = self.open.working();
        let waits = open > 0 && !drain.given_up;
        if self.runs.is_empty() && !waits {
            let took = now.mono.saturating_sub(drain.began);
            let detail = match (drain.runs, drain.kill_at) {
                (0, _) => None,
                (runs, Some(_)) => Some(format!("waited for {runs} running checks")),
                (runs, None) => Some(format!("ended {runs} running checks")),
            };
            let (outcome, detail) = super::open::drained(drain.open, open, detail);
            let duration_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
            self.drain = None;
            self.step_done(
                &Done {
                    outcome,
                    duration_ms,
                    detail,
                },
                now,
                actions,
            );
        } else if drain.kill_at.is_some_and(|at| now.mono >= at) {
            drain.kill_at = None;
            self.kill_runs(actions);
        }
    }
}
