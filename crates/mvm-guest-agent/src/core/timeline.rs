//! The time in which the guest has run, and how moments of it are shown.
//!
//! What is remembered is remembered as a moment of this time, and becomes a time of the wall clock
//! when it is told. So a wall clock that is set, by a wake, by NTP or by hand, moves what was before
//! along with it: a guest that was idle for ten seconds is idle for ten seconds, however long it was
//! frozen and whatever year it believed in.

use super::Now;
use mvm_protocol::Timestamp;
use std::time::Duration;

/// A clock that differs by less from what it did is taken for one that was not set: the two clocks
/// are not read at the same instant, and what is told of a moment is to stay the same.
const SET_BY_MS: i64 = 100;

/// A moment of the time in which the guest has run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(Duration);

impl Moment {
    /// So long after the beginning.
    #[cfg(test)]
    pub(crate) fn after(time: Duration) -> Self {
        Self(time)
    }

    /// So much earlier.
    pub(crate) fn before(self, time: Duration) -> Self {
        Self(self.0.saturating_sub(time))
    }

    fn ms(self) -> i64 {
        i64::try_from(self.0.as_millis()).unwrap_or(i64::MAX)
    }
}

/// The guest's time, up to now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timeline {
    now: Now,
    /// What the monotonic clock counted while the guest stood still: some VMMs let it jump at a
    /// restore.
    frozen: Duration,
    /// The wall clock at the beginning.
    began_ms: i64,
}

impl Timeline {
    /// A timeline that begins with the clock.
    pub(crate) fn new(now: Now) -> Self {
        let mut new = Self {
            now,
            frozen: Duration::ZERO,
            began_ms: 0,
        };
        new.began_ms = new.beginning();
        new
    }

    /// The same later. If it is known that the guest stood still, it has run for `ran_at_most` of the
    /// time that has passed.
    pub(crate) fn at(mut self, now: Now, ran_at_most: Option<Duration>) -> Self {
        let passed = now.mono.saturating_sub(self.now.mono);
        if let Some(ran) = ran_at_most {
            self.frozen += passed.saturating_sub(ran);
        }
        self.now = now;
        let beginning = self.beginning();
        if beginning.abs_diff(self.began_ms) > SET_BY_MS.unsigned_abs() {
            self.began_ms = beginning;
        }
        self
    }

    /// The monotonic clock, as it was last read.
    pub(crate) fn now(&self) -> Duration {
        self.now.mono
    }

    /// Now.
    pub(crate) fn moment(&self) -> Moment {
        Moment(self.now.mono.saturating_sub(self.frozen))
    }

    /// A moment as the wall clock has it now; never one that is still to come.
    pub(crate) fn shown(&self, moment: Moment) -> Timestamp {
        let ms = self.began_ms.saturating_add(moment.ms());
        Timestamp(ms.min(self.now.wall.0))
    }

    fn beginning(&self) -> i64 {
        self.now.wall.0.saturating_sub(self.moment().ms())
    }
}

/// Seconds to the millisecond.
pub(crate) fn secs(time: Duration) -> f64 {
    time.as_millis() as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::lifecycle::TICK;
    use proptest::prelude::*;

    fn now(mono_ms: u64, wall_ms: i64) -> Now {
        Now {
            mono: Duration::from_millis(mono_ms),
            wall: Timestamp(wall_ms),
        }
    }

    const YEAR: i64 = 365 * 86_400_000;

    #[test]
    fn a_clock_that_is_set_takes_the_past_along() {
        let start = Timeline::new(now(5000, 1_000_000));
        let then = start.moment();
        for step in [0, 600, -600, 60_000, 56 * YEAR, -2 * YEAR] {
            let later = start.at(now(15_000, 1_010_000 + step), None);
            let ago = later.now.wall.0 - later.shown(then).0;
            assert_eq!(ago, 10_000, "after a step by {step} ms");
        }
    }

    #[test]
    fn what_is_told_of_a_moment_stays_the_same() {
        let start = Timeline::new(now(5000, 1_000_000));
        let mut later = start;
        for (mono, wall) in [(6000, 1_001_001), (7000, 1_001_999), (8000, 1_003_040)] {
            later = later.at(now(mono, wall), None);
            assert_eq!(later.shown(start.moment()), Timestamp(1_000_000));
        }
    }

    #[test]
    fn a_monotonic_clock_that_jumps_while_the_guest_is_frozen_does_not_count() {
        let start = Timeline::new(now(5000, 1_000_000));
        let ready = start.at(now(6000, 1_001_000), None);
        let woken = ready.at(now(3_606_000, 4_601_000), Some(TICK));
        let ago = woken.now.wall.0 - woken.shown(start.moment()).0;
        assert_eq!(ago, 2000, "one tick is the agent's own");
    }

    proptest! {
        #[test]
        fn no_past_moment_is_shown_to_come(
            steps in prop::collection::vec((0_u64..100_000, -100_000_i64..100_000, any::<bool>()), 1..30),
        ) {
            let mut line = Timeline::new(now(0, 0));
            let (mut mono, mut wall) = (0, 0);
            let mut moments = Vec::new();
            for (ahead, step, ready) in steps {
                moments.push(line.moment());
                mono += ahead;
                wall += i64::try_from(ahead).unwrap() + step;
                line = line.at(now(mono, wall), ready.then_some(TICK));
                let shown: Vec<_> = moments.iter().map(|moment| line.shown(*moment)).collect();
                prop_assert!(shown.is_sorted());
                prop_assert!(shown.iter().all(|shown| *shown <= line.now.wall));
            }
        }
    }
}
