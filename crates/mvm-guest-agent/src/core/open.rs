//! What dev builds have open for hosts: commands, files and ports, and the jobs that go on without.
//!
//! The core lets them in and numbers them, has them ended when a sleep begins, waits for them before
//! the first checkpoint, and counts them for the worker's state. Jobs are not open to anybody: they
//! are held while the guest sleeps.

use super::lifecycle::Task;
use super::sleeping::busy;
use super::worker::Sample;
use super::{Action, Core, Now, RunId, WaiterId};
use mvm_protocol::answer::Change;
use mvm_protocol::lifecycle::Outcome;
use mvm_protocol::status::Lifecycle as Phase;
use std::collections::BTreeMap;

/// What becomes of an open request when the guest goes to sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It works in the guest: refused unless the guest runs, and ended before a sleep.
    Works,
    /// It looks on: let in at any time, and left alone.
    LooksOn,
}

/// What is open, and whether jobs are held.
#[derive(Debug, Default)]
pub(super) struct Open {
    requests: BTreeMap<RunId, Kind>,
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
        let working = |(run, kind): (&RunId, &Kind)| (*kind == Kind::Works).then_some(*run);
        self.requests.iter().filter_map(working)
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
        if kind == Kind::Works && self.lifecycle.phase() != Phase::Running {
            actions.push(busy(
                waiter,
                "the guest is not running: wake it, or wait until it is awake",
            ));
            return;
        }
        let run = RunId(self.number());
        self.open.requests.insert(run, kind);
        actions.push(Action::Admit(waiter, run));
        self.judge_open(now, actions);
    }

    pub(super) fn closed(&mut self, run: RunId, now: Now, actions: &mut Vec<Action>) {
        if self.open.requests.remove(&run).is_some() {
            self.judge_open(now, actions);
            self.drained(now, actions);
        }
    }

    /// A sleep begins: what works is ended.
    pub(super) fn end_open(&self, actions: &mut Vec<Action>) {
        actions.extend(self.open.working_runs().map(Action::End));
    }

    /// Jobs stand still from before the first sync, so that what is written stays true, until the
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

    fn judge_open(&mut self, now: Now, actions: &mut Vec<Action>) {
        let mut sample = self.open.sample;
        self.open.count_into(&mut sample);
        let policy = &self.settings.busy;
        if policy.apply(&mut self.worker, &sample, now.wall) {
            let worker = self.worker.clone();
            actions.push(Action::Publish(Change::Worker { worker }));
        }
    }
}

/// What the drain reports: what hosts had open, what is left of it, and what it did with checks.
pub(super) fn drained(
    open: usize,
    left: usize,
    checks: Option<String>,
) -> (Outcome, Option<String>) {
    let ended = open.saturating_sub(left);
    let ended = (ended > 0).then(|| format!("ended {ended} commands, files or ports"));
    let behind = (left > 0).then(|| format!("left {left} that did not end in time"));
    let outcome = if left > 0 {
        Outcome::TimedOut
    } else {
        Outcome::Ok
    };
    let parts: Vec<String> = [checks, ended, behind].into_iter().flatten().collect();
    (outcome, (!parts.is_empty()).then(|| parts.join(", ")))
}

#[cfg(test)]
#[path = "open_tests.rs"]
mod tests;
