//! Clones that failed, as it is noted where the next server finds it: for each pool in `$MVM_HOME`, since
//! one that was not made has no folder, and in the folder of each that crashed as soon as it was made.

use super::hand::note;
use mvm_fleet::actions::Ended;
use mvm_fleet::policy::Crashed;
use mvm_fleet::{ActionKind, Facts, FailedAction, Now, Outcome, Policy, View};
use mvm_protocol::Timestamp;
use mvm_registry::{Home, VmName, VmState, notes};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What is noted of them.
#[derive(Debug)]
pub(super) struct Clones {
    home: Home,
    /// Those that crashed and are taken down, with when they were made: what cannot be noted in a folder
    /// is not to be taken down again and again.
    taken_down: BTreeSet<(Arc<str>, Option<Timestamp>)>,
}

impl Clones {
    pub(super) fn of(home: &Home) -> Self {
        Self {
            home: home.clone(),
            taken_down: BTreeSet::new(),
        }
    }

    /// What the server before this one has seen fail.
    pub(super) fn noted(&self) -> BTreeMap<String, FailedAction> {
        let noted = self.home.failed_clones().into_iter();
        let failed = noted.map(|(pool, noted)| {
            let failed = FailedAction {
                action: ActionKind::Clone,
                at: noted.at,
                times: noted.times,
            };
            (pool, failed)
        });
        failed.collect()
    }

    /// One more of its pool has failed.
    pub(super) fn failed(&self, ended: &Ended, facts: &mut Facts, policy: &Policy) {
        let failed = &mut facts.failed_clones;
        let times = failed.get(&*ended.pool).map_or(0, |failed| failed.times);
        let last = FailedAction {
            action: ActionKind::Clone,
            at: ended.at,
            times: times.saturating_add(1),
        };
        failed.insert(ended.pool.to_string(), last);
        // Of those that no policy has any more nobody asks.
        failed.retain(|pool, _| policy.pool(pool).is_some());
        self.note(failed);
    }

    /// Clones of these pools have come to something since the last one that failed.
    pub(super) fn proved(&self, pools: &BTreeSet<Arc<str>>, facts: &mut Facts) {
        let before = facts.failed_clones.len();
        facts
            .failed_clones
            .retain(|pool, _| !pools.contains(&**pool));
        if facts.failed_clones.len() != before {
            self.note(&facts.failed_clones);
        }
    }

    fn note(&self, failed: &BTreeMap<String, FailedAction>) {
        let noted = failed.iter().map(|(pool, failed)| {
            let note = notes::FailedAction {
                action: failed.action.as_str().to_owned(),
                at: failed.at,
                times: failed.times,
                problem: String::new(),
            };
            (pool.clone(), note)
        });
        // What cannot be noted is tried sooner again than it should by the next one.
        let _ = self.home.note_failed_clones(&noted.collect());
    }

    /// Those of the crashed ones that were not taken down yet, each as a clone that failed. That it was is
    /// noted in its folder.
    pub(super) fn take_down(
        &mut self,
        crashed: Vec<Crashed>,
        view: &View,
        now: &Now,
    ) -> Vec<Ended> {
        let made_at = |vm: &str| view.vm(vm).and_then(mvm_fleet::view::Vm::started_at);
        // Another one may have that name by now.
        self.taken_down
            .retain(|(vm, at)| view.vm(vm).is_some() && made_at(vm) == *at);
        let mut ended = Vec::new();
        for one in crashed {
            let at = made_at(&one.vm);
            if self.taken_down.insert((one.vm.clone(), at)) {
                ended.push(self.take_one_down(&one, now));
            }
        }
        ended
    }

    fn take_one_down(&self, crashed: &Crashed, now: &Now) -> Ended {
        let mut problem = crashed.to_string();
        if let Ok(vm) = VmName::new(&crashed.vm) {
            let folder = self.home.vm(&vm);
            if let Some(VmState::Ended(how)) = folder.vm().map(|vm| vm.state) {
                problem = format!("{problem}: {how}");
            }
            // If it cannot be noted it is remembered here.
            note(&folder, ActionKind::Clone, Some(&problem));
        }
        Ended {
            at: now.wall,
            pool: (*crashed.pool).into(),
            vm: (*crashed.vm).into(),
            action: ActionKind::Clone,
            outcome: Outcome::Failed,
            reason: "it was made, and did not last".to_owned(),
            problem: Some(problem),
        }
    }
}
