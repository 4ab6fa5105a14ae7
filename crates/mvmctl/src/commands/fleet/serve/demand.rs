//! Connections that wait for a VM of a pool, and those that have one.

use super::inputs::{Given, Joined};
use mvm_fleet::view::Vm;
use mvm_fleet::{Facts, Now, RunState, State, View};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// All of them, as the owner has them.
#[derive(Debug, Default)]
pub(super) struct Demand {
    /// Those that wait, by pool.
    waiting: BTreeMap<String, Vec<oneshot::Sender<Given>>>,
    /// Those that have a VM, by that.
    joined: BTreeMap<Arc<str>, Joined>,
}

impl Demand {
    /// One more waits for a VM of that pool.
    pub(super) fn add(&mut self, pool: String, answer: oneshot::Sender<Given>) {
        self.waiting.entry(pool).or_default().push(answer);
    }

    /// A VM has come up: it is for those who wait that it was brought up, whatever is heard of it yet.
    pub(super) fn came_up(&mut self, pool: &str, vm: &str) {
        let waiting = self.waiting.remove(pool).unwrap_or_default();
        self.give(&vm.into(), waiting);
    }

    fn give(&mut self, vm: &Arc<str>, waiting: Vec<oneshot::Sender<Given>>) {
        for answer in waiting {
            let joined = self.joined.entry(Arc::clone(vm)).or_default();
            // Whoever has gone meanwhile takes none.
            let _ = answer.send(joined.give(Arc::clone(vm)));
        }
    }

    /// Gives those who wait to idle VMs, cuts those of VMs that do not run any more, and notes how many
    /// there are; whether they are others than before.
    pub(super) fn follow(&mut self, view: &View, facts: &mut Facts, now: &Now) -> bool {
        self.joined.retain(|name, joined| {
            let run_state = view.vm(name).map(Vm::run_state);
            if !matches!(run_state, Some(RunState::Running | RunState::NotOurs)) {
                joined.cut();
            }
            joined.count() > 0
        });
        self.waiting.retain(|_, waiting| {
            waiting.retain(|answer| !answer.is_closed());
            !waiting.is_empty()
        });
        for (pool, vm) in self.idle(view, facts, now) {
            let waiting = self.waiting.remove(&pool).unwrap_or_default();
            self.give(&vm, waiting);
        }
        let joined = self.joined.iter();
        let joined = joined.map(|(name, joined)| (name.to_string(), joined.count()));
        let joined: BTreeMap<_, _> = joined.collect();
        let waiting = self.waiting.iter();
        let waiting = waiting.map(|(pool, waiting)| {
            let count = u32::try_from(waiting.len()).unwrap_or(u32::MAX);
            (pool.clone(), count)
        });
        let waiting: BTreeMap<_, _> = waiting.collect();
        let has_changed = facts.joined != joined || facts.waiting != waiting;
        facts.joined = joined;
        facts.waiting = waiting;
        has_changed
    }

    /// For each pool for which connections wait, the idle VM that serves the fewest; of two, the one that
    /// has been idle for the shorter time: the others get old enough to be put down.
    fn idle(&self, view: &View, facts: &Facts, now: &Now) -> Vec<(String, Arc<str>)> {
        let mut found: BTreeMap<&str, (u32, Duration, &str)> = BTreeMap::new();
        if self.waiting.is_empty() {
            return Vec::new();
        }
        for vm in view.vms() {
            if vm.state() != State::Idle
                || !self.waiting.contains_key(vm.pool())
                || facts.under_way.contains_key(vm.name())
            {
                continue;
            }
            let idle = view.idle_for(vm, now).unwrap_or_default();
            let joined = self.joined.get(vm.name()).map_or(0, Joined::count);
            let one = (joined, idle, vm.name());
            let best = found.entry(vm.pool()).or_insert(one);
            *best = (*best).min(one);
        }
        let found = found.into_iter();
        found
            .map(|(pool, (.., vm))| (pool.to_owned(), vm.into()))
            .collect()
    }
}
