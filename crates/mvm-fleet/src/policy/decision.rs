//! One pool's part of a plan.

mod lifetimes;

use super::members::{LAST_NUMBER, Members, is_ours, number};
use super::plan::{Action, Cause, Facts, Held, Old, Plan, Reason, backoff};
use super::terms::PoolPolicy;
use crate::view::Vm;
use crate::{ActionKind, Now, View};
use std::time::Duration;

/// For how long one on its way up is enough for all connections that wait. They wait for a minute: if it
/// hangs, there is time for three others.
const ON_ITS_WAY: Duration = Duration::from_secs(15);

/// What is decided for one pool.
pub(super) struct Decision<'a> {
    name: &'a str,
    policy: &'a PoolPolicy,
    members: Members<'a>,
    view: &'a View,
    facts: &'a Facts,
    now: Now,
    plan: &'a mut Plan,
    waiting: u32,
    /// How many take room: with what is decided here.
    up: u32,
    raised: u32,
}

/// Those that could be brought up, the first choice last.
#[derive(Default)]
struct Ready<'a> {
    /// They have been down for their period.
    rested: Vec<&'a Vm>,
    /// They have not.
    recent: Vec<&'a Vm>,
    /// They are over their lifetime, and there is nothing to clone in their place.
    old: Vec<&'a Vm>,
    /// After how long another one may be.
    wait: Option<Duration>,
}

impl<'a> Decision<'a> {
    pub(super) fn new(
        name: &'a str,
        policy: &'a PoolPolicy,
        members: Members<'a>,
        view: &'a View,
        facts: &'a Facts,
        now: Now,
        plan: &'a mut Plan,
    ) -> Self {
        let up = members.busy
            + members.starting
            + members.unknown
            + number(&members.idle)
            + number(&members.paused)
            + members.coming
            + members.leaving;
        Self {
            name,
            policy,
            up,
            members,
            view,
            facts,
            now,
            plan,
            waiting: facts.waiting.get(name).copied().unwrap_or(0),
            raised: 0,
        }
    }

    pub(super) fn run(mut self) {
        if !self.view.is_pool_complete(self.name) {
            self.hold(Cause::Incomplete);
            return;
        }
        if self.members.unknown > 0 {
            let vms = self.members.unknown;
            self.hold(Cause::Unknown { vms });
        }
        self.await_lifetimes();
        self.end_the_oldest();
        let (mut fresh, expired): (Vec<_>, Vec<_>) = std::mem::take(&mut self.members.idle)
            .into_iter()
            .partition(|(_, vm)| !(is_ours(vm) && self.is_over_lifetime(vm)));
        // The one that has been idle for longest first; of two the one that comes first by name.
        fresh.sort_by_key(|(idle, _)| std::cmp::Reverse(*idle));
        let all_idle = number(&fresh) + number(&expired);
        self.bring_up(number(&fresh), all_idle);
        if self.waiting == 0 {
            self.end_expired(&expired, all_idle);
            self.put_down(&fresh);
            self.put_paused_to_sleep();
        }
        self.remove();
    }

    /// Resumes, wakes and clones what is missing.
    fn bring_up(&mut self, fresh: u32, all_idle: u32) {
        let bounds = self.policy.bounds;
        let Members {
            starting, coming, ..
        } = self.members;
        let taken = self.members.taken();
        let have = taken + fresh;
        // Those on their way up are to be the spare ones: see `Counts::wanted`.
        let on_their_way = starting + coming;
        let wanted = bounds.wanted(taken - on_their_way.min(bounds.spare));
        let missing = wanted.saturating_sub(have);
        let mut is_demanded = self.waiting > 0 && all_idle == 0;
        let on_its_way_for = self.members.on_its_way_for.filter(|_| on_their_way > 0);
        if is_demanded && let Some(ago) = on_its_way_for.filter(|ago| *ago < ON_ITS_WAY) {
            is_demanded = false;
            let for_now = ON_ITS_WAY.saturating_sub(ago);
            let vms = on_their_way;
            self.look_again(for_now);
            self.hold(Cause::OnTheirWay { vms, for_now });
        }
        let units = missing.max(u32::from(is_demanded));
        let asleep = std::mem::take(&mut self.members.asleep);
        let mut sleepers = self.ready(asleep, ActionKind::Wake, self.policy.idle_sleep_after);
        let paused = std::mem::take(&mut self.members.paused);
        let mut paused = self.ready(paused, ActionKind::Resume, self.policy.idle_pause_after);
        for unit in 0..units {
            let reason = if unit == 0 && is_demanded {
                let waiting = self.waiting;
                Reason::Demand { waiting, old: None }
            } else if have + unit < bounds.min {
                let (up, min, old) = (have + unit, bounds.min, None);
                Reason::BelowMin { up, min, old }
            } else {
                let (idle, spare) = (fresh + on_their_way + unit, bounds.spare);
                Reason::FewSpare { idle, spare }
            };
            if let Err(cause) = self.bring_up_one(reason, &mut sleepers, &mut paused) {
                if let Cause::Waiting { for_now } = cause {
                    self.look_again(for_now);
                }
                self.hold(cause);
                break;
            }
            self.raised += 1;
        }
        self.members.asleep.extend(sleepers.left());
        self.members.paused.extend(paused.left());
    }

    fn bring_up_one(
        &mut self,
        reason: Reason,
        sleepers: &mut Ready<'a>,
        paused: &mut Ready<'a>,
    ) -> Result<(), Cause> {
        // Only what is asked for from outside cuts short the time for which a VM is down.
        let is_urgent = !matches!(reason, Reason::FewSpare { .. });
        let max = self.policy.bounds.max;
        let has_room = self.up < max;
        // It takes its room already, and is up at once.
        if let Some(vm) = paused.take(is_urgent) {
            self.act(ActionKind::Resume, vm, reason);
            return Ok(());
        }
        if has_room && let Some(vm) = sleepers.take(is_urgent) {
            self.up += 1;
            self.act(ActionKind::Wake, vm, reason);
            return Ok(());
        }
        if is_urgent && let Some(vm) = paused.old.pop() {
            self.act(ActionKind::Resume, vm, self.despite(reason, vm));
            return Ok(());
        }
        if !has_room {
            let up = self.up;
            return Err(Cause::AtMax { up, max });
        }
        if is_urgent && let Some(vm) = sleepers.old.pop() {
            self.up += 1;
            self.act(ActionKind::Wake, vm, self.despite(reason, vm));
            return Ok(());
        }
        let resting = [&*sleepers, &*paused];
        let resting = resting.into_iter().filter(|ready| !ready.recent.is_empty());
        if let Some(for_now) = resting.filter_map(|ready| ready.wait).min() {
            return Err(Cause::Waiting { for_now });
        }
        let failed = self.facts.failed_clones.get(self.name).copied();
        let failed = backoff(failed, ActionKind::Clone, &self.now);
        let waits = [sleepers.wait, paused.wait, failed];
        if self.policy.golden.is_none() {
            let wait = waits.into_iter().flatten().min();
            let vms = number(&sleepers.old) + number(&paused.old);
            return Err(match (wait, self.policy.max_lifetime) {
                (Some(for_now), _) => Cause::Waiting { for_now },
                (None, Some(after)) if vms > 0 => Cause::TooOld { vms, after },
                (None, _) => Cause::NoneLeft,
            });
        }
        if let Some(for_now) = waits[2] {
            return Err(Cause::Waiting { for_now });
        }
        // Who sleeps on is nobody's to wake, and takes no room: but for those that should wake and do not,
        // which are not to become ever more.
        let asleep = self.members.asleep.iter();
        let failing = asleep.filter(|vm| vm.failed().is_some()).count();
        let vms = u32::try_from(failing).unwrap_or(u32::MAX);
        if vms >= max.saturating_mul(2) {
            return Err(Cause::NotWoken { vms });
        }
        let name = self.new_name();
        self.up += 1;
        self.push(ActionKind::Clone, &name, reason);
        Ok(())
    }

    /// Those of the sleepers or paused ones that may be brought up. The others stay members.
    fn ready(
        &mut self,
        mut down: Vec<&'a Vm>,
        kind: ActionKind,
        period: Option<Duration>,
    ) -> Ready<'a> {
        let mut ready = Ready::default();
        let period = period.unwrap_or_default();
        // Last: the one that went down last, so that the others get old enough to be removed.
        down.sort_by_key(|vm| std::cmp::Reverse(vm.untouched_for(&self.now)));
        let mut rest = Vec::new();
        for vm in down {
            let is_old = self.is_over_lifetime(vm);
            if !is_ours(vm) || is_old && self.policy.golden.is_some() {
                rest.push(vm);
                continue;
            }
            if let Some(left) = backoff(vm.failed(), kind, &self.now) {
                ready.wait_for(left);
                rest.push(vm);
                continue;
            }
            if is_old {
                ready.old.push(vm);
                continue;
            }
            let down_for = self.now.since(vm.changed_at().unwrap_or(self.now.wall));
            if down_for < period {
                ready.wait_for(period.saturating_sub(down_for));
                ready.recent.push(vm);
            } else {
                ready.rested.push(vm);
            }
        }
        // Last: the one that has been down for longest.
        ready.recent.reverse();
        match kind {
            ActionKind::Wake => self.members.asleep = rest,
            _ => self.members.paused = rest,
        }
        ready
    }

    /// Pauses, or puts to sleep, what is idle beyond what is to be at hand.
    fn put_down(&mut self, fresh: &[(Duration, &'a Vm)]) {
        let bounds = self.policy.bounds;
        let busy = self.members.busy;
        let taken = self.members.taken();
        let at_hand = bounds.wanted(taken).saturating_sub(taken);
        let keep = at_hand.max(bounds.min.saturating_sub(busy));
        let mut surplus = number(fresh).saturating_sub(keep);
        for (idle, vm) in fresh {
            if surplus == 0 {
                break;
            }
            if is_ours(vm) && !self.is_kept(vm) && self.put_down_one(*idle, vm) {
                surplus -= 1;
            }
        }
    }

    /// Whether something is done to it.
    fn put_down_one(&mut self, idle: Duration, vm: &'a Vm) -> bool {
        if let Some(after) = self.policy.idle_sleep_after {
            if idle >= after {
                // One that cannot be put to sleep runs on until the next try, and is not paused.
                return self.act(ActionKind::Sleep, vm, Reason::Idle { idle, after });
            }
            self.look_again(after.saturating_sub(idle));
        }
        if let Some(after) = self.policy.idle_pause_after {
            if idle >= after {
                return self.act(ActionKind::Pause, vm, Reason::Idle { idle, after });
            }
            self.look_again(after.saturating_sub(idle));
        }
        false
    }

    fn put_paused_to_sleep(&mut self) {
        let paused = std::mem::take(&mut self.members.paused);
        let pause = self.policy.idle_pause_after.unwrap_or_default();
        let sleep = self
            .policy
            .idle_sleep_after
            .map(|after| after.saturating_sub(pause));
        for vm in paused {
            if !is_ours(vm) || self.is_kept(vm) {
                continue;
            }
            if let Some(after) = self
                .policy
                .max_lifetime
                .filter(|after| vm.age(&self.now) >= *after)
            {
                let age = vm.age(&self.now);
                self.act(ActionKind::Stop, vm, Reason::Lifetime { age, after });
                continue;
            }
            let paused = vm.untouched_for(&self.now);
            match sleep {
                Some(after) if paused >= after => {
                    self.act(ActionKind::Sleep, vm, Reason::Paused { paused, after });
                }
                Some(after) => self.look_again(after.saturating_sub(paused)),
                None => {}
            }
        }
    }

    /// The reason to bring up one that is over its lifetime.
    fn despite(&self, reason: Reason, vm: &Vm) -> Reason {
        let age = vm.age(&self.now);
        let old = self.policy.max_lifetime.map(|after| Old { age, after });
        match reason {
            Reason::Demand { waiting, .. } => Reason::Demand { waiting, old },
            Reason::BelowMin { up, min, .. } => Reason::BelowMin { up, min, old },
            reason => reason,
        }
    }

    fn is_over_lifetime(&self, vm: &Vm) -> bool {
        let lifetime = self.policy.max_lifetime;
        lifetime.is_some_and(|lifetime| vm.age(&self.now) >= lifetime)
    }

    /// Whether a host wants it kept as it is, or it serves connections.
    fn is_kept(&mut self, vm: &Vm) -> bool {
        if self
            .facts
            .joined
            .get(vm.name())
            .is_some_and(|joined| *joined > 0)
        {
            return true;
        }
        let until = vm.kept_until(&self.now);
        if let Some(until) = until {
            self.look_again(self.now.until(until));
        }
        until.is_some()
    }

    /// Puts an action into the plan, unless it failed just now. Says whether it did.
    fn act(&mut self, kind: ActionKind, vm: &Vm, reason: Reason) -> bool {
        if let Some(left) = backoff(vm.failed(), kind, &self.now) {
            self.look_again(left);
            return false;
        }
        self.push(kind, vm.name(), reason);
        true
    }

    fn push(&mut self, kind: ActionKind, vm: &str, reason: Reason) {
        self.plan.actions.push(Action {
            kind,
            vm: vm.into(),
            pool: self.name.into(),
            reason,
        });
    }

    fn hold(&mut self, cause: Cause) {
        let pool = self.name.into();
        self.plan.held.push(Held { pool, cause });
    }

    fn look_again(&mut self, after: Duration) {
        let next = self.plan.look_again_after.get_or_insert(after);
        *next = (*next).min(after);
    }

    /// A name for a clone: with the number after the highest one that is there, so that names, and with
    /// them series, are seldom used again.
    fn new_name(&mut self) -> String {
        let is_free = |name: &String| {
            self.view.vm(name).is_none() && !self.facts.under_way.contains_key(name)
        };
        let next = self.members.last_number + 1;
        let higher = (next..=LAST_NUMBER).chain(1..next);
        let names = higher.map(|number| (number, format!("{}-{number}", self.name)));
        // There are more numbers than VMs can be.
        let found = names.into_iter().find(|(_, name)| is_free(name));
        let (number, name) = found.unwrap_or((next, format!("{}-{next}", self.name)));
        self.members.last_number = number;
        name
    }
}

impl<'a> Ready<'a> {
    fn take(&mut self, is_urgent: bool) -> Option<&'a Vm> {
        self.rested.pop().or_else(|| {
            let recent = is_urgent.then(|| self.recent.pop());
            recent.flatten()
        })
    }

    /// Those that nobody has taken.
    fn left(&mut self) -> impl Iterator<Item = &'a Vm> {
        let lists = [&mut self.rested, &mut self.recent, &mut self.old];
        lists.into_iter().flat_map(std::mem::take)
    }

    fn wait_for(&mut self, wait: Duration) {
        self.wait = Some(self.wait.map_or(wait, |known| known.min(wait)));
    }
}
