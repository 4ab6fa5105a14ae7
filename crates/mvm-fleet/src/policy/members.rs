//! The VMs of one pool, as a decision takes them.

use super::plan::UnderWay;
use crate::input::RunState;
use crate::state::State;
use crate::view::Vm;
use crate::{ActionKind, Now, View};
use std::time::Duration;

/// The VMs of one pool, each in one list or count.
#[derive(Debug, Default)]
pub(super) struct Members<'a> {
    /// Those that are busy or starting, for their lifetime's sake.
    pub(super) at_work: Vec<&'a Vm>,
    pub(super) busy: u32,
    pub(super) starting: u32,
    pub(super) unknown: u32,
    /// With how long they have been idle.
    pub(super) idle: Vec<(Duration, &'a Vm)>,
    pub(super) paused: Vec<&'a Vm>,
    pub(super) asleep: Vec<&'a Vm>,
    pub(super) stopped: Vec<&'a Vm>,
    /// Being woken, resumed or cloned.
    pub(super) coming: u32,
    /// For how long the one of those that are starting or coming has been on its way that set out last.
    pub(super) on_its_way_for: Option<Duration>,
    /// Being paused, put to sleep or stopped: they still take room.
    pub(super) leaving: u32,
    /// The highest number behind a name of this pool.
    pub(super) last_number: u32,
}

impl Members<'_> {
    /// Those that work, may work, or are on their way up: none of them is at hand.
    pub(super) fn taken(&self) -> u32 {
        self.busy + self.starting + self.unknown + self.coming
    }
}

/// The highest number that a clone's name may have.
pub(super) const LAST_NUMBER: u32 = 999_999_999;

impl<'a> Members<'a> {
    pub(super) fn add(&mut self, vm: &'a Vm, under_way: Option<&UnderWay>, view: &View, now: &Now) {
        self.count_name(vm.name());
        if let Some(under_way) = under_way {
            match under_way.kind {
                ActionKind::Wake | ActionKind::Resume | ActionKind::Clone => {
                    self.comes(under_way, now);
                }
                ActionKind::Pause | ActionKind::Sleep | ActionKind::Stop => self.leaving += 1,
                ActionKind::Remove => {}
            }
            return;
        }
        match vm.state() {
            State::Busy => {
                self.busy += 1;
                self.at_work.push(vm);
            }
            State::Starting => {
                self.starting += 1;
                self.at_work.push(vm);
                self.sets_out(vm.so_for(now));
            }
            State::Idle => {
                let idle = view.idle_for(vm, now).unwrap_or_default();
                self.idle.push((idle, vm));
            }
            State::Unknown => self.unknown += 1,
            State::Paused => self.paused.push(vm),
            State::Asleep => self.asleep.push(vm),
            State::Stopped => self.stopped.push(vm),
        }
    }

    /// A clone that has no folder yet.
    pub(super) fn add_coming(&mut self, name: &str, under_way: &UnderWay, now: &Now) {
        self.count_name(name);
        self.comes(under_way, now);
    }

    fn comes(&mut self, under_way: &UnderWay, now: &Now) {
        self.coming += 1;
        self.sets_out(now.boottime.saturating_sub(under_way.since));
    }

    fn sets_out(&mut self, ago: Duration) {
        let last = self.on_its_way_for.get_or_insert(ago);
        *last = (*last).min(ago);
    }

    fn count_name(&mut self, name: &str) {
        let number = name
            .rsplit_once('-')
            .and_then(|(_, digits)| digits.parse().ok());
        if let Some(number) = number.filter(|number| *number <= LAST_NUMBER) {
            self.last_number = self.last_number.max(number);
        }
    }
}

/// Whether the fleet may do anything to a VM at all.
pub(super) fn is_ours(vm: &Vm) -> bool {
    !vm.is_pinned()
        && match vm.run_state() {
            RunState::NotOurs | RunState::Unreadable | RunState::Paused { by_fleet: false } => {
                false
            }
            RunState::Starting
            | RunState::Running
            | RunState::Paused { by_fleet: true }
            | RunState::Asleep
            | RunState::Stopped
            | RunState::Ended
            | RunState::StartBrokenOff => true,
        }
}

/// How many there are: counts that cannot be more than a u32 holds.
pub(super) fn number<T>(list: &[T]) -> u32 {
    u32::try_from(list.len()).unwrap_or(u32::MAX)
}
