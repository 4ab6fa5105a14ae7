//! From the outcomes of checks to the verdict on a service.
//!
//! ```text
//!                    success_threshold in a row
//!   starting ───────────────────────────────────────▶ healthy
//!      │                                               │   ▲
//!      │ failure_threshold in a row,                   │   │ success_threshold in a row
//!      │ the grace period over or                      ▼   │
//!      └───────────────────────────────────────────▶ unhealthy
//!        ended by a first success
//! ```

use mvm_protocol::Timestamp;
use mvm_protocol::status::Health;
use std::time::Duration;

/// What a service's checks are held to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Thresholds {
    /// Successes in a row that make it healthy.
    pub(crate) success: u64,
    /// Failures in a row that make it unhealthy.
    pub(crate) failure: u64,
    /// Until when, on the monotonic clock, failures leave it starting.
    pub(crate) grace_until: Duration,
}

/// How a check counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Result {
    /// It exited with 0.
    Success,
    /// Anything else.
    Failure,
    /// It failed for want of the guest's memory or processes: that says nothing of the service, so
    /// it moves no verdict.
    NotCounted,
}

/// The verdict on one service, and what it rests on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Verdict {
    pub(crate) health: Health,
    pub(crate) since: Timestamp,
    pub(crate) consecutive_failures: u64,
    consecutive_successes: u64,
    pub(crate) checks: u64,
    pub(crate) failures: u64,
    succeeded_once: bool,
}

impl Verdict {
    /// The verdict before the first check.
    pub(crate) fn new(health: Health, at: Timestamp) -> Self {
        Self {
            health,
            since: at,
            consecutive_failures: 0,
            consecutive_successes: 0,
            checks: 0,
            failures: 0,
            succeeded_once: false,
        }
    }

    /// Takes the result of a check that ended at `now` on the monotonic clock, `at` on the wall.
    pub(crate) fn record(
        &mut self,
        result: Result,
        thresholds: &Thresholds,
        now: Duration,
        at: Timestamp,
    ) {
        self.checks += 1;
        let health = match result {
            Result::NotCounted => {
                self.failures += 1;
                self.health
            }
            Result::Success => {
                self.succeeded_once = true;
                self.consecutive_failures = 0;
                self.consecutive_successes += 1;
                if self.consecutive_successes >= thresholds.success {
                    Health::Healthy
                } else {
                    self.health
                }
            }
            Result::Failure => {
                self.failures += 1;
                self.consecutive_failures += 1;
                self.consecutive_successes = 0;
                let excused = self.health == Health::Starting
                    && !self.succeeded_once
                    && now < thresholds.grace_until;
                if self.consecutive_failures >= thresholds.failure && !excused {
                    Health::Unhealthy
                } else {
                    self.health
                }
            }
        };
        if health != self.health {
            self.health = health;
            self.since = at;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A story: for each check its second and result, `+`, `-` or `!` (not counted), and the
    /// verdict after it by its first letter.
    fn check(success: u64, failure: u64, grace: u64, story: &str) {
        let grace_until = Duration::from_secs(grace);
        let thresholds = Thresholds {
            success,
            failure,
            grace_until,
        };
        let mut verdict = Verdict::new(Health::Starting, Timestamp(0));
        for step in story.split_whitespace() {
            let (check, expected) = step.split_once('=').unwrap();
            let (second, result) = check.split_at(check.len() - 1);
            let second: u64 = second.parse().unwrap();
            let result = match result {
                "+" => Result::Success,
                "-" => Result::Failure,
                _ => Result::NotCounted,
            };
            let at = Timestamp(i64::try_from(second).unwrap() * 1000);
            verdict.record(result, &thresholds, Duration::from_secs(second), at);
            let expected = match expected {
                "s" => Health::Starting,
                "h" => Health::Healthy,
                _ => Health::Unhealthy,
            };
            assert_eq!(verdict.health, expected, "after {step} of {story}");
        }
    }

    #[test]
    fn one_of_each_decides_by_default() {
        check(1, 1, 0, "0+=h 5-=u 10+=h");
        check(1, 1, 0, "0-=u");
    }

    #[test]
    fn thresholds_count_in_a_row() {
        check(
            2,
            3,
            0,
            "0+=s 1-=s 2+=s 3+=h 4-=h 5-=h 6+=h 7-=h 8-=h 9-=u 10+=u 11-=u 12+=u 13+=h",
        );
    }

    #[test]
    fn grace_excuses_failures_until_it_is_over() {
        check(1, 1, 30, "0-=s 10-=s 29-=s 30-=u");
        check(1, 3, 30, "0-=s 10-=s 20-=s 30-=u");
    }

    #[test]
    fn the_first_success_ends_the_grace() {
        check(1, 1, 30, "0-=s 5+=h 10-=u");
        check(2, 1, 30, "0-=s 5+=s 10-=u");
    }

    #[test]
    fn a_lack_of_resources_changes_no_verdict() {
        check(1, 2, 0, "0+=h 1-=h 2!=h 3!=h 4-=u 5!=u");
    }

    #[test]
    fn since_changes_with_the_verdict_alone() {
        let thresholds = Thresholds {
            success: 1,
            failure: 1,
            grace_until: Duration::ZERO,
        };
        let mut verdict = Verdict::new(Health::Starting, Timestamp(1));
        verdict.record(Result::Success, &thresholds, Duration::ZERO, Timestamp(2));
        verdict.record(Result::Success, &thresholds, Duration::ZERO, Timestamp(3));
        assert_eq!(
            (verdict.since, verdict.checks, verdict.failures),
            (Timestamp(2), 2, 0)
        );
    }
}
