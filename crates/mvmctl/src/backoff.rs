//! Pauses between tries.

use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant};

/// Pauses that grow, each shortened at random by up to half, so that a thousand watchers that lost
/// one host do not come back in one moment.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
    longest: Duration,
    up_since: Option<Instant>,
}

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(2);

/// How long a connection has to last for its end to be no reason to pause longer.
const LASTING: Duration = Duration::from_secs(5);

impl Backoff {
    pub(crate) fn new() -> Self {
        Self::up_to(LONGEST)
    }

    /// Says that a try has succeeded. If that lasts, pauses begin anew; a guest that answers and is gone
    /// again is dialled no more often than one that does not answer.
    pub(crate) fn is_up(&mut self) {
        self.up_since = Some(Instant::now());
    }

    /// With another longest pause than 2 s.
    pub(crate) fn up_to(longest: Duration) -> Self {
        Self {
            next: FIRST,
            longest,
            up_since: None,
        }
    }

    /// How long to pause before the next try: 50 ms at first, never more than the longest.
    pub(crate) fn pause(&mut self) -> Duration {
        if self
            .up_since
            .take()
            .is_some_and(|since| since.elapsed() >= LASTING)
        {
            self.next = FIRST;
        }
        let whole = self.next;
        self.next = (whole * 2).min(self.longest);
        // The standard library's hash keys are random, and need no library.
        let random = RandomState::new().hash_one(0_u8);
        let share = (random % 1024) as f64 / 1024.0;
        whole.mul_f64(1.0 - share / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_differ() {
        let mut backoff = Backoff::new();
        let pauses: Vec<_> = (0..100).map(|_| backoff.pause()).collect();
        assert!(pauses[0] >= FIRST / 2 && pauses[0] <= FIRST);
        assert!(
            pauses[10..]
                .iter()
                .all(|pause| (LONGEST / 2..=LONGEST).contains(pause))
        );
        assert!(pauses[10..].iter().any(|pause| *pause != pauses[10]));
    }
}
