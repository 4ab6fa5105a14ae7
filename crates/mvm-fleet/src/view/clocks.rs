//! Whether the host's clocks have jumped from one event to the next.

use crate::Now;
use std::time::Duration;

/// By how much clocks may differ from their last readings before that is a suspended host or a clock
/// that was set: above what a busy machine puts between two readings, below any sleep that matters.
const JUMP: Duration = Duration::from_secs(5);

/// How the host's clocks stood to each other.
#[derive(Debug, Default)]
pub(super) struct Clocks {
    /// `CLOCK_BOOTTIME` less `CLOCK_MONOTONIC`, and `CLOCK_REALTIME` less `CLOCK_BOOTTIME`, in ms.
    offsets: Option<(i128, i128)>,
}

impl Clocks {
    /// Whether the host was suspended since the last call, or its clock set.
    pub(super) fn have_jumped(&mut self, now: &Now) -> bool {
        let suspended = ms(now.boottime) - ms(now.monotonic);
        let wall = i128::from(now.wall.0) - ms(now.boottime);
        let jump = ms(JUMP);
        let have_jumped = self.offsets.is_some_and(|(was_suspended, was_wall)| {
            suspended - was_suspended > jump || (wall - was_wall).abs() > jump
        });
        // The clocks are read one after the other: of offsets the smaller one is nearer to the truth.
        let least = self
            .offsets
            .filter(|_| !have_jumped)
            .map_or(suspended, |(was, _)| suspended.min(was));
        // A clock that is slewed is followed; a step is seen from one event to the next.
        self.offsets = Some((least, wall));
        have_jumped
    }
}

fn ms(duration: Duration) -> i128 {
    i128::try_from(duration.as_millis()).unwrap_or(i128::MAX / 4)
}
