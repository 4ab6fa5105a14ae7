//! How long something may take, and whether it is still wanted.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Until when to wait for something, and whether still to.
#[derive(Debug, Clone, Copy)]
pub struct Deadline<'a> {
    started: Instant,
    at_most: Duration,
    cancelled: Option<&'a AtomicBool>,
}

impl<'a> Deadline<'a> {
    /// From now on, for at most so long, and until the flag is raised.
    pub fn new(at_most: Duration, cancelled: Option<&'a AtomicBool>) -> Self {
        Self {
            started: Instant::now(),
            at_most,
            cancelled,
        }
    }

    /// From now on, for at most so long, and until the same flag is raised.
    #[must_use]
    pub fn anew(&self, at_most: Duration) -> Self {
        Self::new(at_most, self.cancelled)
    }

    /// The same time, and until that flag is raised.
    #[must_use]
    pub fn cancelled_by<'b>(&self, cancelled: &'b AtomicBool) -> Deadline<'b> {
        Deadline {
            started: self.started,
            at_most: self.at_most,
            cancelled: Some(cancelled),
        }
    }

    /// How much is left.
    pub fn left(&self) -> Duration {
        self.at_most.saturating_sub(self.started.elapsed())
    }

    /// How much there was in all.
    pub(crate) fn whole(&self) -> Duration {
        self.at_most
    }

    /// For one step of what is waited for: what is left, and no more than so long.
    pub(crate) fn step(&self, at_most: Duration) -> Self {
        Self::new(self.left().min(at_most), self.cancelled)
    }

    /// Whether it is not wanted any more, or its time is up.
    pub(crate) fn is_over(&self) -> bool {
        self.is_cancelled() || self.left().is_zero()
    }

    /// Whether the flag was raised.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled
            .is_some_and(|flag| flag.load(Ordering::Relaxed))
    }
}
