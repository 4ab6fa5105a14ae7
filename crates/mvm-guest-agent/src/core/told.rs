//! What the core tells of its state.

use super::boot::Boot;
use super::{Core, Now, timeline};
use mvm_protocol::Timestamp;
use mvm_protocol::status::{DropInError, ProbeStatus, Status};
use std::time::Duration;

impl Core {
    /// What `status` answers, but for what the machine alone knows.
    pub(crate) fn status(&self, uptime: Duration, now: Now) -> Status {
        let timeline = &self.timeline_at(now);
        Status {
            now: Some(now.wall),
            lifecycle: self.lifecycle.phase().into(),
            health: self.health().into(),
            // Milliseconds are all that a reader wants of it.
            uptime_secs: timeline::secs(uptime),
            worker: self.worker.told(timeline),
            integrations: self
                .checks
                .iter()
                .filter_map(|check| check.integration_status(timeline))
                .collect(),
            integrations_omitted: 0,
        }
    }

    /// The probes, in load order.
    pub(crate) fn probes(&self, now: Now) -> Vec<ProbeStatus> {
        let timeline = &self.timeline_at(now);
        let probes = self.checks.iter();
        probes
            .filter_map(|check| check.probe_status(timeline))
            .collect()
    }

    /// When the agent was started.
    pub(crate) fn started_at(&self, now: Now) -> Timestamp {
        self.timeline_at(now).shown(self.started)
    }

    /// When what was up in this boot.
    pub(crate) fn boot(&self) -> &Boot {
        &self.boot
    }

    /// The files that were rejected.
    pub(crate) fn drop_in_errors(&self) -> &[DropInError] {
        &self.drop_in_errors
    }
}
