//! What this program was started by, if that wants to be told: sd_notify(3).

use crate::render::shown::OneLine;
use sd_notify::NotifyState;
use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};

/// How much of a status is said, in characters: a line for people.
const MOST: usize = 200;

/// How often a quiet guest says that it is there, where no watchdog asks for more.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// How many heartbeats come in the time that a watchdog allows. Three missing ones make a guest lost:
/// that is half of it.
const HEARTBEATS: u32 = 6;

/// The least that an agent takes for a heartbeat.
const SHORTEST: Duration = Duration::from_millis(50);

/// The supervisor. Nobody is told where there is none.
#[derive(Debug, Default)]
pub(super) struct Supervisor {
    /// Within how long it wants to hear that all is well, always anew.
    watchdog: Option<Duration>,
    /// Whether it is.
    well: Cell<bool>,
    ready: Cell<bool>,
    status: RefCell<OneLine>,
}

impl Supervisor {
    /// The one that the environment tells of.
    pub(super) fn from_env() -> Self {
        Self {
            watchdog: sd_notify::watchdog_enabled(),
            ..Self::default()
        }
    }

    /// How often the guest is to say that it is there.
    pub(super) fn heartbeat(&self) -> Duration {
        let wanted = self.watchdog.map(|within| within / HEARTBEATS);
        wanted.unwrap_or(HEARTBEAT).clamp(SHORTEST, HEARTBEAT)
    }

    /// Whether all is as it should be: else the watchdog is not fed.
    pub(super) fn set_well(&self, well: bool) {
        self.well.set(well);
    }

    /// The VM is up. It is told once.
    pub(super) fn ready(&self) {
        if !self.ready.replace(true) {
            tell(&[NotifyState::Ready]);
        }
    }

    /// How things are, in a line.
    pub(super) fn status(&self, status: &str) {
        // A newline would begin another assignment.
        let line = OneLine::short(status, MOST);
        if *self.status.borrow() != line {
            tell(&[NotifyState::Status(line.as_str())]);
            self.status.replace(line);
        }
    }

    /// It is ending. That takes its time, of which `--timeout` is the limit.
    pub(super) fn stopping(&self, status: &str) {
        self.set_well(true);
        tell(&[NotifyState::Stopping]);
        self.status(status);
    }

    /// Says twice in the time that the watchdog allows that all is well, as long as it is.
    pub(super) async fn feed_watchdog(&self) -> Infallible {
        let Some(within) = self.watchdog.filter(|within| !within.is_zero()) else {
            return std::future::pending().await;
        };
        let mut ticks = interval(within / 2);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if self.well.get() {
                tell(&[NotifyState::Watchdog]);
            }
        }
    }
}

fn tell(what: &[NotifyState]) {
    // One that does not listen has nothing to be told by.
    let _ = sd_notify::notify(what);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_says_nothing_to_the_supervisor_but_a_line() {
        let supervisor = Supervisor::default();
        supervisor.status("web\nMAINPID=1\u{1b}[2J unhealthy");
        let told = supervisor.status.take();
        assert_eq!(told.as_str(), "web\\nMAINPID=1\\u{1b}[2J unhealthy");
        supervisor.status(&"é".repeat(10_000));
        let told = supervisor.status.take();
        assert!(told.as_str().chars().count() <= MOST + 1);
    }

    #[test]
    fn three_missing_heartbeats_are_half_of_what_a_watchdog_allows() {
        for (watchdog, heartbeat) in [
            (None, 10_000),
            (Some(30_000), 5_000),
            (Some(600_000), 10_000),
            (Some(100), 50),
        ] {
            let supervisor = Supervisor {
                watchdog: watchdog.map(Duration::from_millis),
                ..Supervisor::default()
            };
            assert_eq!(supervisor.heartbeat(), Duration::from_millis(heartbeat));
        }
    }
}
