//! What `vm events` shows: a line for each change.

use super::text::cut;
use super::words;
use mvm_protocol::answer::Change;
use mvm_protocol::status::Status;

/// A change in words, as the guest has them; `None` for what is none.
pub(crate) fn change(change: &Change) -> Option<String> {
    Some(match change {
        Change::Worker { worker } => format!("worker {}", words::worker(worker)),
        Change::Integration { integration } => {
            let last = integration.last_check.as_ref();
            let health = words::health(integration.health).1;
            let how = last.map_or_else(String::new, |_| {
                format!(", last check {}", words::last_check(last).1)
            });
            let line = words::last_line(last);
            let separator = if line.is_empty() { "" } else { ": " };
            let name = cut(&integration.name, 64);
            format!("{name} {health}{how}{separator}{line}")
        }
        Change::Lifecycle { lifecycle } => format!("lifecycle {}", words::lifecycle(*lifecycle).1),
        Change::DropIns { drop_ins } => format!(
            "drop-ins read: {} integrations, {} probes, {} files rejected",
            drop_ins.integrations,
            drop_ins.probes,
            drop_ins
                .errors
                .len()
                .saturating_add(drop_ins.errors_omitted)
        ),
        Change::Restored { restored } => {
            let told = if restored.announced {
                "a host has announced it"
            } else {
                "no host has announced it"
            };
            format!("restored, {told}: {}", words::sign(restored.by))
        }
        Change::Heartbeat { .. } | Change::Unknown {} => return None,
    })
}

/// The status at the beginning, in words as the guest has them.
pub(crate) fn status(status: &Status) -> String {
    format!(
        "{}, {}, worker {}, integrations: {}",
        words::lifecycle(status.lifecycle).1,
        words::health(status.health).1,
        words::worker(&status.worker),
        words::integrations(&status.integrations, status.integrations_omitted).1
    )
}
