//! The seven states of a VM in the view, and how many VMs are in each.

use serde::Serialize;

/// What a VM is, as the fleet sees it. It is in exactly one state at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Its agent says so, or the guest is being made ready for a snapshot.
    Busy,
    /// Its agent says so, within the last heartbeats.
    Idle,
    /// It is being started or woken, or its health checks have no verdict yet.
    Starting,
    /// Its vCPUs stand still, its memory stays.
    Paused,
    /// It was snapshotted, and its VMM has ended.
    Asleep,
    /// It was stopped, or it ended by itself.
    Stopped,
    /// It should answer and does not, or has not yet; or its record cannot be read.
    Unknown,
}

impl State {
    /// All of them, in the order in which they are told.
    pub const ALL: [Self; 7] = [
        Self::Busy,
        Self::Idle,
        Self::Starting,
        Self::Paused,
        Self::Asleep,
        Self::Stopped,
        Self::Unknown,
    ];

    /// The state as it stands in labels and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Idle => "idle",
            Self::Starting => "starting",
            Self::Paused => "paused",
            Self::Asleep => "asleep",
            Self::Stopped => "stopped",
            Self::Unknown => "unknown",
        }
    }
}

/// How many VMs are in each state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// [`State::Busy`]
    pub busy: u32,
    /// [`State::Idle`]
    pub idle: u32,
    /// [`State::Starting`]
    pub starting: u32,
    /// [`State::Paused`]
    pub paused: u32,
    /// [`State::Asleep`]
    pub asleep: u32,
    /// [`State::Stopped`]
    pub stopped: u32,
    /// [`State::Unknown`]
    pub unknown: u32,
}

impl Counts {
    /// How many are in that state.
    pub fn of(&self, state: State) -> u32 {
        match state {
            State::Busy => self.busy,
            State::Idle => self.idle,
            State::Starting => self.starting,
            State::Paused => self.paused,
            State::Asleep => self.asleep,
            State::Stopped => self.stopped,
            State::Unknown => self.unknown,
        }
    }

    /// All VMs.
    pub fn vms(&self) -> u32 {
        State::ALL.iter().map(|state| self.of(*state)).sum()
    }

    /// How many VMs a pool should have up: those that work, those that may (unknown ones count as busy),
    /// and the spare ones, within `min` and `max`. Those that are starting are on their way to be spare:
    /// were they wanted besides, whoever starts what is wanted would start one more for each look while
    /// they start.
    pub fn wanted(&self, bounds: &Bounds) -> u32 {
        let more = self.starting.saturating_sub(bounds.spare);
        bounds.wanted(self.busy + self.unknown + more)
    }

    pub(crate) fn of_mut(&mut self, state: State) -> &mut u32 {
        match state {
            State::Busy => &mut self.busy,
            State::Idle => &mut self.idle,
            State::Starting => &mut self.starting,
            State::Paused => &mut self.paused,
            State::Asleep => &mut self.asleep,
            State::Stopped => &mut self.stopped,
            State::Unknown => &mut self.unknown,
        }
    }
}

/// How many VMs a pool may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Never fewer running.
    pub min: u32,
    /// Never more of them up: running or paused.
    pub max: u32,
    /// So many idle ones at hand.
    pub spare: u32,
}

impl Default for Bounds {
    /// Those of a pool that no policy names: no bounds, no spare ones.
    fn default() -> Self {
        Self {
            min: 0,
            max: u32::MAX,
            spare: 0,
        }
    }
}

impl Bounds {
    /// How many are wanted where so many work or may work.
    pub(crate) fn wanted(&self, taken: u32) -> u32 {
        taken.saturating_add(self.spare).max(self.min).min(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_starts_what_is_wanted_comes_to_an_end() {
        let bounds = Bounds {
            min: 0,
            max: 100,
            spare: 2,
        };
        let mut counts = Counts {
            busy: 3,
            ..Counts::default()
        };
        // Looks, and starts, more often than a VM takes to be up.
        for _ in 0..10 {
            counts.starting = counts.wanted(&bounds) - counts.busy;
        }
        assert_eq!(counts.starting, 2);
        counts.starting = 5;
        assert_eq!(counts.wanted(&bounds), 8, "none of them is ended");
    }

    #[test]
    fn unknown_ones_count_as_busy_and_starting_ones_as_spare() {
        let counts = Counts {
            busy: 3,
            idle: 7,
            asleep: 2,
            ..Counts::default()
        };
        let bounds = Bounds {
            min: 1,
            max: 20,
            spare: 1,
        };
        assert_eq!(counts.vms(), 12);
        assert_eq!(counts.wanted(&bounds), 4);
        let lost = Counts {
            unknown: 10,
            starting: 2,
            ..Counts::default()
        };
        assert_eq!(lost.wanted(&bounds), 12);
        assert_eq!(Counts::default().wanted(&bounds), 1);
        let none = Bounds { spare: 0, ..bounds };
        assert_eq!(Counts::default().wanted(&Bounds { min: 0, ..none }), 0);
        assert_eq!(lost.wanted(&Bounds { max: 5, ..none }), 5);
    }
}
