//! The host's three clocks, read together.

use mvm_fleet::Now;
use mvm_protocol::Timestamp;
use rustix::time::{ClockId, Timespec, clock_gettime};
use std::time::Duration;

/// The time.
pub(crate) fn now() -> Now {
    let wall = clock_gettime(ClockId::Realtime);
    let ms = wall.tv_nsec / 1_000_000;
    Now {
        monotonic: since_zero(clock_gettime(ClockId::Monotonic)),
        boottime: since_zero(clock_gettime(ClockId::Boottime)),
        wall: Timestamp(wall.tv_sec.saturating_mul(1000).saturating_add(ms)),
    }
}

fn since_zero(time: Timespec) -> Duration {
    Duration::try_from(time).unwrap_or_default()
}
