//! The time, as an argument.

use mvm_protocol::Timestamp;
use std::time::Duration;

/// One reading of the host's clocks. All three are read together, by whoever drives this crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// `CLOCK_MONOTONIC`: stands still while the host is suspended.
    pub monotonic: Duration,
    /// `CLOCK_BOOTTIME`: goes on while the host is suspended. Deadlines are counted by it.
    pub boottime: Duration,
    /// `CLOCK_REALTIME`. What outlives this process, in the VMs' folders, is dated by it.
    pub wall: Timestamp,
}

impl Now {
    /// How long ago that was by the wall clock; zero for what lies in the future.
    pub fn since(&self, past: Timestamp) -> Duration {
        elapsed(past, self.wall)
    }

    /// How long it is until then by the wall clock; zero for what is past.
    pub fn until(&self, future: Timestamp) -> Duration {
        elapsed(self.wall, future)
    }
}

/// From one moment to a later one; zero if it is not later.
pub(crate) fn elapsed(from: Timestamp, to: Timestamp) -> Duration {
    let ms = to.0.saturating_sub(from.0);
    Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}
