//! What has become of clones after they were made: one that crashes at once is as good as one that failed,
//! since the next one would crash, too.

use super::{Facts, Policy};
use crate::input::RunState;
use crate::view::Vm;
use crate::{ActionKind, Now, View};
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A clone that crashes so soon has not come to anything.
const SHORT_LIVED: Duration = Duration::from_secs(60);

/// What has become of the clones of a policy's pools.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fates {
    /// Those that crashed soon after they were made. Whoever has taken one down as a failed clone notes
    /// that in its folder, as its failed action: then it is no more among these.
    pub crashed: Vec<Crashed>,
    /// The pools of which a clone has come to something that was made after the last one that failed.
    pub proved: BTreeSet<Arc<str>>,
}

/// A clone that crashed soon after it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crashed {
    /// The clone.
    pub vm: Arc<str>,
    /// Its pool.
    pub pool: Arc<str>,
    /// For how long it ran, as far as that was seen.
    pub after: Duration,
}

impl fmt::Display for Crashed {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "it crashed {}s after it was made", self.after.as_secs())
    }
}

/// What has become of clones by now.
pub fn fates(view: &View, policy: &Policy, facts: &Facts, now: &Now) -> Fates {
    let mut fates = Fates::default();
    let made = view.vms().filter(|vm| {
        vm.is_made_by_fleet()
            && policy.pool(vm.pool()).is_some()
            && !facts.under_way.contains_key(vm.name())
            // It was taken down already.
            && vm.failed().is_none_or(|failed| failed.action != ActionKind::Clone)
    });
    for vm in made {
        let (name, pool) = (vm.name.clone(), vm.pool.clone());
        if let Some(after) = vm.crashed_after(now).filter(|after| *after < SHORT_LIVED) {
            let vm = name;
            fates.crashed.push(Crashed { vm, pool, after });
        } else if is_later_than_failed(vm, facts) && has_come_to_something(vm, now) {
            fates.proved.insert(pool);
        }
    }
    fates
}

fn is_later_than_failed(vm: &Vm, facts: &Facts) -> bool {
    let failed = facts.failed_clones.get(vm.pool());
    failed.is_some_and(|failed| vm.started_at().is_some_and(|made| made > failed.at))
}

/// Whether one that has not crashed too soon has lived for long enough, or was done before that.
fn has_come_to_something(vm: &Vm, now: &Now) -> bool {
    match vm.run_state() {
        RunState::Starting | RunState::StartBrokenOff | RunState::Unreadable => false,
        RunState::Stopped | RunState::Ended => true,
        RunState::Running | RunState::NotOurs | RunState::Paused { .. } | RunState::Asleep => {
            vm.age(now) >= SHORT_LIVED
        }
    }
}
