//! VMs that begin to run while others are followed.

use crate::feed::folders::{self, Following};
use crate::feed::{Fed, Sink, WAITING};
use mvm_fleet::{Registered, RegistryEvent, RunState};
use mvm_protocol::Timestamp;
use mvm_registry::Inventory;
use std::collections::{BTreeMap, BTreeSet};
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// What the folders say from now on, and whom nobody follows yet.
pub(super) struct Later {
    events: Receiver<RegistryEvent>,
    runs: Runs,
    _following: Following,
}

#[derive(Clone)]
struct Events(Sender<RegistryEvent>);

impl Sink for Events {
    async fn feed(&self, fed: Fed) {
        if let Fed::Registry(event) = fed {
            let _ = self.0.send(event).await;
        }
    }
}

impl Later {
    /// With those that are followed already.
    pub(super) fn than(followed: impl IntoIterator<Item = String>, inventory: Inventory) -> Self {
        let (sender, events) = channel(WAITING);
        Self {
            events,
            runs: Runs::of(followed),
            _following: folders::watch(inventory, Events(sender)),
        }
    }

    /// Waits for others that are to be followed from now on.
    pub(super) async fn next(&mut self) -> Vec<String> {
        loop {
            // It ends with the process alone.
            let Some(event) = self.events.recv().await else {
                return std::future::pending().await;
            };
            let begun = self.runs.take(event);
            if !begun.is_empty() {
                return begun;
            }
        }
    }

    /// Nobody follows that one any more.
    pub(super) fn is_over(&mut self, name: &str) {
        self.runs.followed.remove(name);
    }
}

/// Which runs of VMs are known. One that was given up is not followed again until it was started anew.
#[derive(Debug, Default)]
struct Runs {
    /// Whom somebody follows.
    followed: BTreeSet<String>,
    /// When those that are, or were, were started, where that is known.
    known: BTreeMap<String, Option<Timestamp>>,
    /// Those that were followed before the folders were read for the first time: that is when it is
    /// learned when they were started.
    unread: BTreeSet<String>,
}

impl Runs {
    fn of(followed: impl IntoIterator<Item = String>) -> Self {
        let followed: BTreeSet<_> = followed.into_iter().collect();
        Self {
            unread: followed.clone(),
            known: followed.iter().map(|name| (name.clone(), None)).collect(),
            followed,
        }
    }

    /// What the folders say; gives those that are to be followed from now on.
    fn take(&mut self, event: RegistryEvent) -> Vec<String> {
        match event {
            RegistryEvent::Listed { vms, whole } => {
                if whole {
                    let there: BTreeSet<_> = vms.iter().map(|vm| vm.name.as_str()).collect();
                    self.known.retain(|name, _| there.contains(name.as_str()));
                }
                let unread = std::mem::take(&mut self.unread);
                let begun = vms
                    .into_iter()
                    .filter(|vm| self.begins(vm, unread.contains(&vm.name)));
                begun.map(|vm| vm.name).collect()
            }
            RegistryEvent::Changed(vm) => {
                let begins = self.begins(&vm, false);
                begins.then_some(vm.name).into_iter().collect()
            }
            RegistryEvent::Gone { name } => {
                self.known.remove(&name);
                Vec::new()
            }
        }
    }

    /// Whether it runs and nobody follows it, or did in this run of it.
    fn begins(&mut self, vm: &Registered, is_known: bool) -> bool {
        if !matches!(vm.run_state, RunState::Running | RunState::NotOurs) {
            return false;
        }
        let known = self.known.insert(vm.name.clone(), vm.started_at);
        if is_known || known == Some(vm.started_at) {
            return false;
        }
        self.followed.insert(vm.name.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(name: &str, run_state: RunState, started_at: i64) -> Registered {
        Registered {
            started_at: Some(Timestamp(started_at)),
            ..Registered::new(name, run_state)
        }
    }

    fn changed(runs: &mut Runs, vm: Registered) -> Vec<String> {
        runs.take(RegistryEvent::Changed(vm))
    }

    fn listed(vms: impl IntoIterator<Item = Registered>) -> RegistryEvent {
        RegistryEvent::Listed {
            vms: vms.into_iter().collect(),
            whole: true,
        }
    }

    const NONE: [&str; 0] = [];

    #[test]
    fn those_that_begin_to_run_are_followed_once() {
        let mut runs = Runs::of(["a".to_owned()]);
        let all = [
            vm("a", RunState::Running, 1),
            vm("asleep", RunState::Asleep, 2),
            vm("b", RunState::Running, 3),
        ];
        assert_eq!(runs.take(listed(all.clone())), ["b"]);
        assert_eq!(runs.take(listed(all)), NONE);
        let later = vm("c", RunState::Starting, 4);
        assert_eq!(changed(&mut runs, later.clone()), NONE);
        let runs_now = RunState::Running;
        let later = Registered {
            run_state: runs_now,
            ..later
        };
        assert_eq!(changed(&mut runs, later.clone()), ["c"]);
        assert_eq!(changed(&mut runs, later), NONE);
        assert_eq!(changed(&mut runs, vm("asleep", runs_now, 2)), ["asleep"]);
        let stranger = Registered::new("d", RunState::NotOurs);
        assert_eq!(changed(&mut runs, stranger.clone()), ["d"]);
        assert_eq!(changed(&mut runs, stranger), NONE);
    }

    #[test]
    fn one_that_was_given_up_is_followed_when_it_is_started_again() {
        let mut runs = Runs::of(["a".to_owned()]);
        // Given up before the folders were read.
        runs.followed.remove("a");
        assert_eq!(runs.take(listed([vm("a", RunState::Running, 1)])), NONE);
        assert_eq!(changed(&mut runs, vm("a", RunState::Ended, 1)), NONE);
        assert_eq!(changed(&mut runs, vm("a", RunState::Running, 1)), NONE);
        assert_eq!(changed(&mut runs, vm("a", RunState::Running, 2)), ["a"]);
        // Whoever follows it goes on over that by himself.
        assert_eq!(changed(&mut runs, vm("a", RunState::Running, 3)), NONE);
        runs.followed.remove("a");
        assert_eq!(changed(&mut runs, vm("a", RunState::Running, 3)), NONE);
    }

    #[test]
    fn one_that_was_removed_is_another_when_it_comes_back() {
        let mut runs = Runs::of([]);
        let stranger = || Registered::new("a", RunState::NotOurs);
        for gone in [RegistryEvent::Gone { name: "a".into() }, listed([])] {
            assert_eq!(changed(&mut runs, stranger()), ["a"]);
            runs.followed.remove("a");
            assert_eq!(changed(&mut runs, stranger()), NONE);
            runs.take(gone);
        }
        assert_eq!(changed(&mut runs, stranger()), ["a"]);
    }
}
