//! When what was up in this boot.
//!
//! It is told until the guest sleeps or is restored for the first time: what comes later is no part of
//! a boot, and its clock may have stood still. What was noted before stays.

use super::registry::Check;
use super::timeline::secs;
use super::{Core, Now};
use mvm_protocol::status::{self, Health};
use std::time::Duration;

/// What was noted of this boot.
#[derive(Debug, Clone)]
pub(crate) struct Boot {
    /// How far `CLOCK_BOOTTIME` is ahead of `CLOCK_MONOTONIC`.
    ahead: Duration,
    started: Duration,
    drop_ins_loaded: Option<Duration>,
    ready: Option<Duration>,
    is_over: bool,
}

impl Boot {
    /// The boot in which an agent starts now, and `since_boot` after it began. In a guest that slept
    /// before the agent started it is over.
    pub(crate) fn new(since_boot: Duration, now: Now, is_over: bool) -> Self {
        Self {
            ahead: since_boot.saturating_sub(now.mono),
            started: since_boot,
            drop_ins_loaded: None,
            ready: None,
            is_over,
        }
    }

    /// The guest goes to sleep, or wakes.
    pub(crate) fn end(&mut self) {
        self.is_over = true;
    }

    /// Now, since the boot; nothing once that is over.
    pub(crate) fn now(&self, now: Now) -> Option<Duration> {
        (!self.is_over).then(|| now.mono.saturating_add(self.ahead))
    }

    /// The drop-ins are loaded.
    pub(crate) fn loaded(&mut self, now: Now) {
        self.drop_ins_loaded = self.drop_ins_loaded.or_else(|| self.now(now));
    }

    /// Whether it is still to be found out when the guest is ready.
    pub(crate) fn awaits_ready(&self) -> bool {
        !self.is_over && self.drop_ins_loaded.is_some() && self.ready.is_none()
    }

    /// Every integration that has a check is healthy.
    pub(crate) fn ready(&mut self, now: Now) {
        self.ready = self.ready.or_else(|| self.now(now));
    }

    /// As `inspect` tells it; the agent's process was made at that time.
    pub(crate) fn told(&self, process_started: Option<Duration>) -> status::Boot {
        status::Boot {
            process_started_secs: process_started.map(secs),
            agent_started_secs: secs(self.started),
            drop_ins_loaded_secs: self.drop_ins_loaded.map(secs),
            ready_secs: self.ready.map(secs),
        }
    }
}

impl Core {
    /// Looks whether the guest is ready for the first time.
    pub(super) fn note_ready(&mut self, now: Now) {
        if self.boot.awaits_ready() && self.health() == Health::Healthy {
            self.boot.ready(now);
        }
    }

    /// The verdict on the guest. There is none before it is known what there is to be checked.
    pub(super) fn health(&self) -> Health {
        if !self.has_loaded {
            return Health::Starting;
        }
        Health::of_guest(self.checks.iter().filter_map(Check::health))
    }
}
