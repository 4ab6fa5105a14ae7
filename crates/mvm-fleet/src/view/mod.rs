//! The view: which VMs there are, and which of the seven states each is in.
//!
//! ```text
//!    the folder says        the agent says                                     state
//!    ───────────────        ──────────────                                     ─────
//!    running, not ours ───▶ nothing yet, nothing any more, lost ─────────────▶ unknown
//!          │                busy, preparing, ready, a word we do not know ───▶ busy
//!          │                idle, and health has no verdict yet; waking ─────▶ starting
//!          │                idle ────────────────────────────────────────────▶ idle
//!    starting ────────────────────────────▶ starting, after `start_deadline` ▶ unknown
//!    paused, asleep ─────────────────────────────────────────────────────────▶ paused, asleep
//!    stopped, ended, start broken off ───────────────────────────────────────▶ stopped
//!    unreadable ─────────────────────────────────────────────────────────────▶ unknown
//! ```
//!
//! **A VM comes** by a registry event. If it runs, the view gives out a ticket: whoever watches its
//! agent shows it with each event. Until the first status the VM is unknown, and the view is not
//! complete. A status makes it busy, idle or starting; events keep it so. When it is paused, falls
//! asleep or ends, the ticket is void, and a later one is another.
//!
//! How it could be wrong, and is not:
//!
//! - *A guest hangs, its connection stays open.* Nothing is heard for `silence`: unknown. A guest that
//!   is never reported on at all counts as failed after `answer_deadline`, so that the view gets
//!   complete whatever happens.
//! - *What an old connection brings comes late*, after the VM slept and woke: its ticket is void.
//! - *The host was suspended*, or its wall clock was set: everything heard before is from another
//!   time, and may wait in sockets to be read. All tickets are void and given out anew, all watched
//!   VMs are unknown, the view is not complete, and idle times count from here on.
//! - *A folder cannot be read.* There may be VMs in it: none is taken for gone, and the view is not
//!   complete until all folders could be.
//! - *A guest lies.* It can make itself busy or idle, as it could by working or not; never another.
//! - *A guest's clock jumps.* Its idle time grows no faster than the host's clock, see `worker`.
//!
//! An event costs a look-up by number and at most one in the pools' names; a deadline is one entry in
//! an ordered set, moved when it is reached and not at each frame.

#[cfg(test)]
mod asked_tests;
#[cfg(test)]
mod clock_tests;
mod clocks;
mod detail;
#[cfg(test)]
mod tests;
mod vm;
mod worker;

use crate::Now;
use crate::input::{AgentEvent, Registered, RegistryEvent, RunState};
use crate::state::{Counts, State};
use clocks::Clocks;
pub use detail::MAX_SERIES;
pub(crate) use detail::{Detail, Inspected, Integration, Probe};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
pub use vm::Vm;
pub(crate) use worker::Observed;

/// For how long what was heard holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// How long nothing may be heard of an agent until its VM is unknown: some heartbeats.
    pub silence: Duration,
    /// How long a VM may be watched without a word on it until it counts as failed.
    pub answer_deadline: Duration,
    /// How long a start may take.
    pub start_deadline: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            // Three of the protocol's default heartbeats.
            silence: Duration::from_secs(45),
            // The client's deadlines for a handshake and an answer, and some room.
            answer_deadline: Duration::from_secs(15),
            // A big guest from a slow disk, without KVM.
            start_deadline: Duration::from_secs(300),
        }
    }
}

/// Shown with each event of an agent: for which run of which VM it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket {
    slot: usize,
    serial: u64,
}

/// What is to be done about watching agents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Watch this VM's agent, again and again if it cannot be reached, until the ticket is void.
    Watch {
        /// The VM.
        name: Arc<str>,
        /// To be shown with what comes of it.
        ticket: Ticket,
    },
    /// The ticket is void: end the watch, and never dial the VM by it again.
    Unwatch {
        /// The void ticket.
        ticket: Ticket,
    },
    /// Something else than the fleet has the VM stand still, and no folder tells when it goes on: look
    /// again and again until it does, and tell what it is then.
    AwaitResume {
        /// The VM.
        name: Arc<str>,
    },
    /// Ask the agent for `status` or `inspect` anew: integrations or probes may have come or gone.
    Ask {
        /// To be shown with the answer.
        ticket: Ticket,
    },
}

/// A pool in the view.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Pool {
    counts: Counts,
    pending: u32,
}

/// All VMs of this host, each in one state.
#[derive(Debug)]
pub struct View {
    settings: Settings,
    slots: Vec<Option<Vm>>,
    free: Vec<usize>,
    names: BTreeMap<Arc<str>, usize>,
    pools: BTreeMap<Arc<str>, Pool>,
    deadlines: BTreeSet<(Duration, usize)>,
    /// Whether all folders could be looked at, at the last listing.
    is_whole: bool,
    pending: u32,
    next_serial: u64,
    clocks: Clocks,
    /// When (`CLOCK_BOOTTIME`) a jump of the clocks was seen last.
    jumped_at: Option<Duration>,
    revision: u64,
    series_dropped: u64,
}

impl View {
    /// A view that has seen nothing: not complete.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            slots: Vec::new(),
            free: Vec::new(),
            names: BTreeMap::new(),
            pools: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            is_whole: false,
            pending: 0,
            next_serial: 0,
            clocks: Clocks::default(),
            jumped_at: None,
            revision: 0,
            series_dropped: 0,
        }
    }

    /// Whether every VM that should answer has answered or failed once since the start, or since the
    /// folders changed.
    pub fn is_complete(&self) -> bool {
        self.is_whole && self.pending == 0
    }

    /// Whether every VM that is known and should answer has answered or failed once. There may be more VMs,
    /// in folders that could not be looked at.
    pub fn have_all_answered(&self) -> bool {
        self.pending == 0
    }

    /// The same as [`View::is_complete`] for the VMs of one pool.
    pub fn is_pool_complete(&self, pool: &str) -> bool {
        self.is_whole && self.pools.get(pool).is_none_or(|pool| pool.pending == 0)
    }

    /// How many VMs of a pool are in each state; all zero if there is no VM in it.
    pub fn counts(&self, pool: &str) -> Counts {
        self.pools
            .get(pool)
            .map(|pool| pool.counts)
            .unwrap_or_default()
    }

    /// The pools that have VMs, in name order.
    pub fn pools(&self) -> impl Iterator<Item = (&str, &Counts)> {
        self.pools
            .iter()
            .map(|(name, pool)| (&**name, &pool.counts))
    }

    /// All VMs in name order.
    pub fn vms(&self) -> impl Iterator<Item = &Vm> {
        self.names.values().filter_map(|slot| self.at(*slot))
    }

    /// How many VMs there are.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is no VM. Says nothing of whether there really is none: see
    /// [`View::is_complete`].
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The VM of that name.
    pub fn vm(&self, name: &str) -> Option<&Vm> {
        self.names.get(name).and_then(|slot| self.at(*slot))
    }

    /// Grows whenever a VM comes, goes, or changes in what decisions depend on, but for idle times.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// How many integrations and probes of guests were left out of the metrics so far.
    pub fn series_dropped(&self) -> u64 {
        self.series_dropped
    }

    /// For how long a VM has been idle: by its guest's clock, at most since it runs without a break,
    /// since a host has touched it, and since the clocks jumped. None if it is not idle.
    pub fn idle_for(&self, vm: &Vm, now: &Now) -> Option<Duration> {
        let observed = vm.observed.as_ref().filter(|_| vm.counted == State::Idle)?;
        let run = match vm.run_state {
            // Nobody notes when others' VMs came to run.
            RunState::NotOurs if vm.since.is_none() => Duration::MAX,
            _ => vm.untouched_for(now),
        };
        let jump = self
            .jumped_at
            .map_or(Duration::MAX, |jump| now.boottime.saturating_sub(jump));
        Some(observed.idle_for().min(run).min(jump))
    }

    /// For how long the VM of which nothing was heard for longest has been silent, among those whose
    /// agent's word makes their state: how old the oldest part of the view is.
    pub fn age(&self, now: &Now) -> Duration {
        self.vms()
            .filter_map(|vm| Some(now.boottime.saturating_sub(vm.observed.as_ref()?.seen)))
            .max()
            .unwrap_or_default()
    }

    /// When [`View::tick`] has something to do, on `CLOCK_BOOTTIME`.
    pub fn deadline(&self) -> Option<Duration> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Time has passed. To be called at each deadline, every few seconds, and before anything is
    /// read from the view: otherwise a host that was suspended shows what was true before.
    pub fn tick(&mut self, now: &Now) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.look_for_jump(now, &mut effects);
        while let Some((deadline, slot)) = self.deadlines.first().copied()
            && deadline <= now.boottime
        {
            self.deadlines.remove(&(deadline, slot));
            self.deadline_reached(slot, now.boottime);
        }
        effects
    }

    /// Takes what came about in the VMs' folders.
    pub fn registry(&mut self, event: RegistryEvent, now: &Now) -> Vec<Effect> {
        let mut effects = self.tick(now);
        match event {
            RegistryEvent::Listed { vms, whole } => {
                if whole {
                    let listed: BTreeSet<&str> = vms.iter().map(|vm| vm.name.as_str()).collect();
                    let gone: Vec<_> = self.names.keys().cloned().collect();
                    for name in gone.iter().filter(|name| !listed.contains(&***name)) {
                        self.remove(name, &mut effects);
                    }
                }
                for vm in vms {
                    self.put(&vm, now, &mut effects);
                }
                self.revision += u64::from(self.is_whole != whole);
                self.is_whole = whole;
            }
            RegistryEvent::Changed(vm) => self.put(&vm, now, &mut effects),
            RegistryEvent::Gone { name } => self.remove(&name, &mut effects),
        }
        effects
    }

    /// Takes what came of watching an agent. What comes by a void ticket is passed over.
    pub fn agent(&mut self, ticket: Ticket, event: AgentEvent, now: &Now) -> Vec<Effect> {
        let mut effects = self.tick(now);
        let Some(vm) = self.slots.get_mut(ticket.slot).and_then(Option::as_mut) else {
            return effects;
        };
        if vm.ticket != Some(ticket.serial) {
            return effects;
        }
        self.series_dropped += vm.hear(event, now.boottime) as u64;
        if event.is_stale() && vm.observed.is_some() {
            effects.push(Effect::Ask { ticket });
        }
        self.reassess(ticket.slot);
        effects
    }

    fn at(&self, slot: usize) -> Option<&Vm> {
        self.slots.get(slot).and_then(Option::as_ref)
    }

    fn put(&mut self, registered: &Registered, now: &Now, effects: &mut Vec<Effect>) {
        let known = self.names.get(registered.name.as_str()).copied();
        let pool = Vm::pool_of(registered);
        let Some(slot) = known else {
            let name: Arc<str> = registered.name.as_str().into();
            let pool = self.enter_pool(pool);
            let vm = Vm::new(name.clone(), pool, registered);
            let slot = self.free.pop().unwrap_or(self.slots.len());
            if slot == self.slots.len() {
                self.slots.push(None);
            }
            if let Some(place) = self.slots.get_mut(slot) {
                *place = Some(vm);
            }
            self.names.insert(name, slot);
            self.revision += 1;
            self.begin(slot, now, effects);
            return;
        };
        let Some(vm) = self.at(slot) else { return };
        let is_other_run = vm.run_state != registered.run_state || vm.since != registered.since;
        if *vm.pool != *pool {
            let (old, state, pending) = (vm.pool.clone(), vm.counted, vm.is_pending);
            let new = self.enter_pool(pool);
            self.leave_pool(&old, state, pending);
            if let Some(vm) = self.slots.get_mut(slot).and_then(Option::as_mut) {
                vm.pool = new;
                // As what it entered.
                vm.counted = State::Unknown;
                vm.is_pending = false;
            }
        }
        if let Some(vm) = self.slots.get_mut(slot).and_then(Option::as_mut) {
            vm.take(registered);
            self.revision += 1;
        }
        if is_other_run {
            self.begin(slot, now, effects);
        } else {
            self.reassess(slot);
        }
    }

    /// A VM is another than before: what was heard of it is void.
    fn begin(&mut self, slot: usize, now: &Now, effects: &mut Vec<Effect>) {
        let serial = self.next_serial;
        let Some(vm) = self.slots.get_mut(slot).and_then(Option::as_mut) else {
            return;
        };
        if let Some(serial) = vm.ticket.take() {
            let ticket = Ticket { slot, serial };
            effects.push(Effect::Unwatch { ticket });
        }
        vm.from = now.boottime;
        vm.has_answered = false;
        vm.is_overdue = false;
        vm.observed = None;
        vm.detail = None;
        if vm.run_state.is_watched() {
            self.next_serial += 1;
            vm.ticket = Some(serial);
            let ticket = Ticket { slot, serial };
            let name = vm.name.clone();
            effects.push(Effect::Watch { name, ticket });
        } else if vm.run_state == (RunState::Paused { by_fleet: false }) {
            let name = vm.name.clone();
            effects.push(Effect::AwaitResume { name });
        }
        self.reassess(slot);
    }

    fn remove(&mut self, name: &str, effects: &mut Vec<Effect>) {
        let Some(slot) = self.names.remove(name) else {
            return;
        };
        let Some(vm) = self.slots.get_mut(slot).and_then(Option::take) else {
            return;
        };
        if let Some(serial) = vm.ticket {
            let ticket = Ticket { slot, serial };
            effects.push(Effect::Unwatch { ticket });
        }
        if let Some(deadline) = vm.deadline {
            self.deadlines.remove(&(deadline, slot));
        }
        self.leave_pool(&vm.pool, vm.counted, vm.is_pending);
        self.free.push(slot);
        self.revision += 1;
    }

    /// Counts one more VM in a pool, as unknown.
    fn enter_pool(&mut self, pool: &str) -> Arc<str> {
        let name = match self.pools.get_key_value(pool) {
            Some((name, _)) => name.clone(),
            None => pool.into(),
        };
        self.pools.entry(name.clone()).or_default().counts.unknown += 1;
        name
    }

    fn leave_pool(&mut self, name: &str, state: State, is_pending: bool) {
        self.pending -= u32::from(is_pending);
        let Some(pool) = self.pools.get_mut(name) else {
            return;
        };
        *pool.counts.of_mut(state) -= 1;
        pool.pending -= u32::from(is_pending);
        if pool.counts.vms() == 0 {
            self.pools.remove(name);
        }
    }

    /// Brings the counts up to date with one VM, and its deadline.
    fn reassess(&mut self, slot: usize) {
        let Some(vm) = self.slots.get_mut(slot).and_then(Option::as_mut) else {
            return;
        };
        let state = vm.assess();
        let is_pending = vm.ticket.is_some() && !vm.has_answered;
        if (state, is_pending) != (vm.counted, vm.is_pending)
            && let Some(pool) = self.pools.get_mut(&vm.pool)
        {
            *pool.counts.of_mut(vm.counted) -= 1;
            *pool.counts.of_mut(state) += 1;
            for pending in [&mut pool.pending, &mut self.pending] {
                *pending -= u32::from(vm.is_pending);
                *pending += u32::from(is_pending);
            }
            (vm.counted, vm.is_pending) = (state, is_pending);
            self.revision += 1;
        }
        let due = vm.due(&self.settings);
        // One that is later than the one in the set is found out when that is reached.
        let must_move = match (due, vm.deadline) {
            (Some(due), Some(set)) => due < set,
            (due, set) => due.is_some() != set.is_some(),
        };
        if must_move {
            if let Some(deadline) = std::mem::replace(&mut vm.deadline, due) {
                self.deadlines.remove(&(deadline, slot));
            }
            self.deadlines.extend(due.map(|due| (due, slot)));
        }
    }

    fn deadline_reached(&mut self, slot: usize, now: Duration) {
        let Some(vm) = self.slots.get_mut(slot).and_then(Option::as_mut) else {
            return;
        };
        vm.deadline = None;
        if vm.due(&self.settings).is_some_and(|due| due <= now) {
            vm.is_overdue = vm.run_state == RunState::Starting;
            vm.has_answered = true;
            vm.observed = None;
            vm.detail = None;
        }
        self.reassess(slot);
    }

    /// Makes void what was heard before the host was suspended, or before its clock was set.
    fn look_for_jump(&mut self, now: &Now, effects: &mut Vec<Effect>) {
        if !self.clocks.have_jumped(now) {
            return;
        }
        self.jumped_at = Some(now.boottime);
        self.revision += 1;
        let slots: Vec<usize> = self.names.values().copied().collect();
        for slot in slots {
            if self.at(slot).is_some_and(|vm| vm.ticket.is_some()) {
                self.begin(slot, now, effects);
            }
        }
    }
}
