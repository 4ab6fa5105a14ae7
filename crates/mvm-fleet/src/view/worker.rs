//! Whether a guest works, and for how long it has not, by its own clock.

use crate::now::elapsed;
use mvm_protocol::status::{BusySignal, Health, Lifecycle, Status, Worker};
use mvm_protocol::{Lenient, Timestamp};
use std::time::Duration;

/// By how much a guest's clock may run ahead of the host's between two frames: a frame that waited
/// in a queue, and clocks that are being slewed.
const SLACK: Duration = Duration::from_secs(2);

/// What a guest's agent last said of it, as far as its state depends on it.
#[derive(Debug, Clone)]
pub(crate) struct Observed {
    pub(crate) lifecycle: Lenient<Lifecycle>,
    pub(crate) health: Lenient<Health>,
    /// Anything but a plain `idle` is busy: a word that we do not know, too, and whatever holds an idle one.
    pub(crate) is_busy: bool,
    pub(crate) because: Signals,
    pub(crate) load1: f64,
    pub(crate) runnable: u32,
    /// When the last frame came, by the host's `CLOCK_BOOTTIME`.
    pub(crate) seen: Duration,
    idle: Idle,
    uptime: Duration,
    /// When `uptime` was told.
    uptime_at: Duration,
}

/// How long the guest has been idle.
///
/// The guest's clock alone says so: an event carries the guest's time (`at`), a worker since when it
/// is idle (`since`, `last_busy_at`). A status carries no time, so that nothing counts until the
/// first event after it, a heartbeat at the latest. Between two frames nothing is added: whether the
/// guest ran meanwhile is not known.
///
/// A guest whose clock is set forward would seem to have been idle for all that time. So the figure
/// never grows faster than the host's clock between two frames, and is never over the guest's uptime.
#[derive(Debug, Clone, Copy, Default)]
struct Idle {
    since: Option<Timestamp>,
    /// What was last counted, and when (the host's clock).
    counted: Option<(Duration, Duration)>,
}

/// The signals that make a guest busy, of those that we know: a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Signals(u8);

impl Signals {
    const ALL: [(BusySignal, &'static str); 5] = [
        (BusySignal::Loadavg, "loadavg"),
        (BusySignal::Cpu, "cpu"),
        (BusySignal::Pressure, "pressure"),
        (BusySignal::Session, "session"),
        (BusySignal::Inhibit, "inhibit"),
    ];

    fn of(worker: &Worker) -> Self {
        let told = worker.because.iter().chain(&worker.held_by);
        let bits = Self::ALL.iter().enumerate().map(|(bit, (signal, _))| {
            let is_set = told.clone().any(|one| one == signal);
            u8::from(is_set) << bit
        });
        Self(bits.sum())
    }

    /// Their names, as the agent writes them.
    pub(crate) fn names(self) -> impl Iterator<Item = &'static str> {
        let named = Self::ALL.iter().enumerate();
        named.filter_map(move |(bit, (_, name))| (self.0 & (1 << bit) != 0).then_some(*name))
    }
}

impl Observed {
    /// From a status that came at `now` (the host's `CLOCK_BOOTTIME`).
    pub(crate) fn new(status: &Status, now: Duration) -> Self {
        let mut observed = Self {
            lifecycle: status.lifecycle,
            health: status.health,
            is_busy: true,
            because: Signals::default(),
            load1: 0.0,
            runnable: 0,
            seen: now,
            idle: Idle::default(),
            uptime: seconds(status.uptime_secs),
            uptime_at: now,
        };
        observed.worker(&status.worker);
        observed
    }

    /// From a status of a guest of which something is known already: its idle time goes on.
    pub(crate) fn status(&mut self, status: &Status, now: Duration) {
        let idle = self.idle;
        *self = Self::new(status, now);
        if !self.is_busy && self.idle.since == idle.since {
            self.idle.counted = idle.counted;
        }
    }

    /// What the worker is now.
    pub(crate) fn worker(&mut self, worker: &Worker) {
        self.is_busy = worker.is_at_work();
        self.because = Signals::of(worker);
        self.load(worker);
        let since = worker.idle_since();
        if self.is_busy {
            self.idle = Idle::default();
        } else if self.idle.since != Some(since) {
            // Its clock was set, or it worked meanwhile: what was counted before is no bound to
            // the new figure unless it is a longer one.
            self.idle.since = Some(since);
        }
    }

    /// Figures on which nothing depends.
    pub(crate) fn load(&mut self, worker: &Worker) {
        self.load1 = worker.load1;
        self.runnable = worker.runnable;
    }

    /// A frame came that carries the guest's time.
    pub(crate) fn heard(&mut self, at: Timestamp, now: Duration) {
        self.seen = now;
        let Some(since) = self.idle.since.filter(|_| !self.is_busy) else {
            return;
        };
        let told = elapsed(since, at).min(self.uptime(now));
        let counted = match self.idle.counted {
            Some((before, when)) => told.min(
                before
                    .saturating_add(now.saturating_sub(when))
                    .saturating_add(SLACK),
            ),
            None => told,
        };
        self.idle.counted = Some((counted, now));
    }

    /// For how long the guest has been idle, as of the last frame.
    pub(crate) fn idle_for(&self) -> Duration {
        self.idle.counted.map_or(Duration::ZERO, |(idle, _)| idle)
    }

    /// The guest's uptime at that moment, if it is still there.
    pub(crate) fn uptime(&self, now: Duration) -> Duration {
        self.uptime
            .saturating_add(now.saturating_sub(self.uptime_at))
    }
}

/// Seconds from outside: what is no length of time is none.
fn seconds(secs: f64) -> Duration {
    Duration::try_from_secs_f64(secs).unwrap_or(Duration::ZERO)
}
