//! What is too old, has slept for too long, or is left over.

use super::super::members::is_ours;
use super::super::plan::Reason;
use super::{Decision, Members};
use crate::ActionKind;
use crate::input::RunState;
use crate::view::Vm;
use std::time::Duration;

/// How long one that is over its lifetime has to be idle where the policy has no idle period: the
/// load average, by which agents tell idle from busy, looks back over one minute.
const LIFETIME_IDLE: Duration = Duration::from_secs(60);

/// How long a VM that the fleet made stays after it was stopped or has ended: for somebody to look at
/// its console.
const LEFT_OVER: Duration = Duration::from_secs(600);

impl<'a> Decision<'a> {
    /// Looks again when the next one has lived for its lifetime, or for twice that: nothing else may come
    /// about by then.
    pub(super) fn await_lifetimes(&mut self) {
        let Some(after) = self.policy.max_lifetime else {
            return;
        };
        let Members {
            at_work,
            idle,
            paused,
            asleep,
            ..
        } = &self.members;
        let idle = idle.iter().map(|(_, vm)| vm);
        let all = idle.chain(at_work).chain(paused).chain(asleep);
        let ours = all.filter(|vm| is_ours(vm));
        let next = ours.filter_map(|vm| {
            let (age, last) = (vm.age(&self.now), self.last_age(vm, after));
            let mut ends = [after, last].into_iter();
            ends.find(|end| age < *end)
                .map(|end| end.saturating_sub(age))
        });
        if let Some(next) = next.min() {
            self.look_again(next);
        }
    }

    /// At which age it is stopped whatever it does: twice its lifetime, or one lifetime more than it had
    /// when it was brought up. One that was over its lifetime then, which somebody needed, is not to be
    /// ended at once.
    fn last_age(&self, vm: &Vm, after: Duration) -> Duration {
        let age = vm.age(&self.now);
        let up_for = vm.changed_at().map_or(age, |since| self.now.since(since));
        let brought_up_at = age.saturating_sub(up_for);
        brought_up_at.max(after).saturating_add(after)
    }

    /// Stops what has lived for twice its lifetime, whatever it does, but for what is unknown, and what a
    /// host keeps.
    pub(super) fn end_the_oldest(&mut self) {
        let Some(after) = self.policy.max_lifetime else {
            return;
        };
        let mut at_work = std::mem::take(&mut self.members.at_work);
        let mut idle = std::mem::take(&mut self.members.idle);
        let mut lives_on = |vm: &Vm| {
            let age = vm.age(&self.now);
            let reason = Reason::TwiceLifetime { age, after };
            if !is_ours(vm) || age < self.last_age(vm, after) {
                return true;
            }
            if let Some(until) = vm.kept_until(&self.now) {
                self.look_again(self.now.until(until));
                return true;
            }
            !self.act(ActionKind::Stop, vm, reason)
        };
        at_work.retain(|vm| lives_on(vm));
        idle.retain(|(_, vm)| lives_on(vm));
        self.members.idle = idle;
        // They take room until they have ended, and do not count as what they were any more.
        let states = |state| at_work.iter().filter(|vm| vm.state() == state).count();
        let busy = u32::try_from(states(crate::State::Busy)).unwrap_or(u32::MAX);
        let starting = u32::try_from(states(crate::State::Starting)).unwrap_or(u32::MAX);
        self.members.busy = busy;
        self.members.starting = starting;
    }

    /// Stops those that are over their lifetime and idle, unless others are on their way to stand in
    /// for them.
    pub(super) fn end_expired(&mut self, expired: &[(Duration, &'a Vm)], all_idle: u32) {
        let Some(after) = self.policy.max_lifetime else {
            return;
        };
        let periods = [self.policy.idle_pause_after, self.policy.idle_sleep_after];
        let quiet = periods.into_iter().flatten().min().unwrap_or(LIFETIME_IDLE);
        let mut idle_left = all_idle;
        for (idle, vm) in expired {
            let stands_in = self.members.busy + idle_left > self.policy.bounds.min;
            if self.raised > 0 || self.members.coming > 0 || !stands_in {
                continue;
            }
            if *idle < quiet {
                self.look_again(quiet.saturating_sub(*idle));
            } else if !self.is_kept(vm) {
                let age = vm.age(&self.now);
                let reason = Reason::Lifetime { age, after };
                idle_left -= u32::from(self.act(ActionKind::Stop, vm, reason));
            }
        }
    }

    /// Removes what has slept for too long, and what the fleet made and nobody needs any more.
    pub(super) fn remove(&mut self) {
        for vm in std::mem::take(&mut self.members.asleep) {
            if !is_ours(vm) || self.is_kept(vm) {
                continue;
            }
            let asleep = vm.untouched_for(&self.now);
            let lifetime = self
                .policy
                .max_lifetime
                .filter(|_| self.is_over_lifetime(vm));
            match (self.policy.asleep_remove_after, lifetime) {
                (Some(after), _) if asleep >= after => {
                    self.act(ActionKind::Remove, vm, Reason::Asleep { asleep, after });
                }
                (_, Some(after)) if vm.is_made_by_fleet() => {
                    let age = vm.age(&self.now);
                    self.act(ActionKind::Remove, vm, Reason::Lifetime { age, after });
                }
                (Some(after), _) => self.look_again(after.saturating_sub(asleep)),
                (None, _) => {}
            }
        }
        for vm in std::mem::take(&mut self.members.stopped) {
            if !vm.is_made_by_fleet() || !is_ours(vm) || self.is_kept(vm) {
                continue;
            }
            let stopped = vm.untouched_for(&self.now);
            if vm.run_state() == RunState::StartBrokenOff {
                self.act(ActionKind::Remove, vm, Reason::BrokenOff);
            } else if stopped >= LEFT_OVER {
                self.act(ActionKind::Remove, vm, Reason::LeftOver { stopped });
            } else {
                self.look_again(LEFT_OVER.saturating_sub(stopped));
            }
        }
    }
}
