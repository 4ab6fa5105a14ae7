//! What dev builds have open for hosts: commands, files and ports, and the jobs that go on without.
//!
//! The core admits and numbers them, has them ended when a sleep begins, waits for them before
//! the first checkpoint, and counts them for the worker's state. Jobs are not open to anybody: they
//! are held while the guest sleeps.

use super::lifecycle::Task;
use super::worker::Sample;
use super::{Action, Core, Now, RunId, WaiterId, busy};
use mvm_protocol::lifecycle::Outcome;
use mvm_protocol::status::Lifecycle as Phase;

/// What becomes of an open request when the guest goes to sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It acts in the guest: refused unless the guest runs, and ended before a sleep.
    Active,
    /// It only reads what is there: admitted at any time, and left alone.
    Observer,
}

/// What is open, and whether jobs are held.
#[derive(Debug, Default)]
pub(super) struct Open {
    /// In the order in which they were opened. There are as many as connections at most.
    requests: Vec<(RunId, Kind)>,
    /// What was read last, to be judged anew when something is opened or closed.
    sample: Sample,
    frozen: bool,
}

impl Open {
    /// How many keep a sleep from going on.
    pub(super) fn working(&self) -> usize {
        self.working_runs().count()
    }

    fn working_runs(&self) -> impl Iterator<Item = RunId> {
        let working = |(run, kind): &(RunId, Kind)| (*kind == Kind::Active).then_some(*run);
        self.requests.iter().filter_map(working)
    }

    /// All that are open.
    pub(super) fn runs(&self) -> impl Iterator<Item = RunId> {
        self.requests.iter().map(|(run, _)| *run)
    }

    /// Adds what is open to what was read.
    pub(super) fn count_into(&mut self, sample: &mut Sample) {
        sample.sessions = self.requests.len();
        self.sample = *sample;
    }
}

impl Core {
    pub(super) fn open_asked(
        &mut self,
        waiter: WaiterId,
        kind: Kind,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        if kind == Kind::Active && self.lifecycle.phase() != Phase::Running {
            actions.push(busy(
                waiter,
                "the guest is not running: wake it, or wait until it is awake",
            ));
            return;
        }
        let run = RunId(self.number());
        self.open.requests.push((run, kind));
        actions.push(Action::Admit(waiter, run));
        self.judge(self.open.sample, now, actions);
    }

    pub(super) fn closed(&mut self, run: RunId, now: Now, actions: &mut Vec<Action>) {
        let open = self.open.requests.len();
        self.open.requests.retain(|(other, _)| *other != run);
        if self.open.requests.len() < open {
            self.judge(self.open.sample, now, actions);
            self.drained(now, actions);
        }
    }

    /// A sleep begins: what works is ended.
    pub(super) fn end_open(&self, actions: &mut Vec<Action>) {
        actions.extend(self.open.working_runs().map(Action::End));
    }

    /// Jobs are frozen from before the first sync, so that what is written stays consistent, until the
    /// clock, the generator and the identity are the guest's own again.
    pub(super) fn freeze_jobs_for(&mut self, task: &Task, actions: &mut Vec<Action>) {
        match task {
            Task::Sync if !self.open.frozen => {
                self.open.frozen = true;
                actions.push(Action::FreezeJobs);
            }
            Task::Restore(_) | Task::Resume if self.open.frozen => {
                self.open.frozen = false;
                actions.push(Action::ThawJobs);
            }
            _ => {}
        }
    }
}

/// What the drain reports: what hosts had open, what is left of it, and what it did with checks.
pub(super) fn drained(
    open: usize,
    left: usize,
    checks: Option<String>,
) -> (Outcome, Option<String>) {
    let mut parts: Vec<String> = checks.into_iter().collect();
    let mut add = |count: usize, before: &str, after: &str| {
        if count > 0 {
            parts.push(format!("{before} {count} {after}"));
        }
    };
    add(
        open.saturating_sub(left),
        "ended",
        "commands, files or ports",
    );
    add(left, "left", "that did not end in time");
    let outcome = if left > 0 {
        Outcome::TimedOut
    } else {
        Outcome::Ok
    };
    (outcome, (!parts.is_empty()).then(|| parts.join(", ")))
}

#[cfg(test)]
#[path = "open_tests.rs"]
mod tests;
