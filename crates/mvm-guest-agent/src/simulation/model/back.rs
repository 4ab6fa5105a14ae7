//! The way back to `running`, as the model has it.

use super::Waiter;
use crate::simulation::machine::MachineStep;
use crate::simulation::transition::WakeAsked;
use std::collections::VecDeque;

/// The way back to `running`.
#[derive(Debug, Clone, Default)]
pub(super) struct Back {
    pub(super) was_ready: bool,
    pub(super) restored: bool,
    pub(super) first: Option<WakeAsked>,
    pub(super) wakers: Vec<Waiter>,
    pub(super) sleepers: Vec<Waiter>,
    /// What is done before the restores.
    pub(super) first_of_all: VecDeque<MachineStep>,
    /// Whether an agent that was restarted began it, without a host.
    pub(super) restarted: bool,
}

impl Back {
    pub(super) fn join(&mut self, waiter: Waiter, asked: &WakeAsked, frozen: bool) {
        self.wakers.push(waiter);
        let is_first = self.first.is_none();
        self.first.get_or_insert(*asked);
        if self.restored && !self.restarted {
            return;
        }
        if asked.restored {
            self.restarted = false;
            self.restore(frozen);
        } else if asked.tells_time && is_first {
            self.first_of_all.push_front(MachineStep::Clock);
        }
    }

    pub(super) fn restore(&mut self, frozen: bool) {
        self.restored = true;
        self.first_of_all.retain(|step| !before_work(*step));
        for step in BEFORE_WORK.into_iter().rev() {
            if frozen || step != MachineStep::CheckFrozen {
                self.first_of_all.push_front(step);
            }
        }
    }
}

/// What a restored guest needs before its work runs.
const BEFORE_WORK: [MachineStep; 6] = [
    MachineStep::CheckFrozen,
    MachineStep::Reseed,
    MachineStep::Clock,
    MachineStep::Identity,
    MachineStep::Payload,
    MachineStep::Generation,
];

pub(super) fn before_work(step: MachineStep) -> bool {
    BEFORE_WORK.contains(&step)
}
