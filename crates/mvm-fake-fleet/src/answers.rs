//! What the agents answer, by the protocol's types.

use crate::{Behaviour, Guests};
use mvm_protocol::Timestamp;
use mvm_protocol::status::{
    BusySignal, Health, IntegrationStatus, Lifecycle, Status, Worker, WorkerState,
};
use serde_json::{Value, json};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Text that breaks what does not expect it: quotes, escapes, directions, line ends.
const HOSTILE: &str = "a\"b\\c\n\u{1b}[2J\u{202e}}\u{0} x{y=\"z\"} 1 # HELP";

/// The guest's time.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Timestamp(i64::try_from(since.as_millis()).unwrap())
}

fn ago(duration: Duration) -> Timestamp {
    Timestamp(now().0 - i64::try_from(duration.as_millis()).unwrap())
}

pub(crate) fn worker(behaviour: Behaviour, flapped: bool) -> Worker {
    let is_busy = behaviour == Behaviour::Busy || flapped;
    let since = match behaviour {
        Behaviour::Idle(idle) => ago(idle),
        _ => now(),
    };
    let (state, because) = if is_busy {
        (WorkerState::Busy, vec![BusySignal::Loadavg.into()])
    } else {
        (WorkerState::Idle, Vec::new())
    };
    Worker {
        state: state.into(),
        since,
        last_busy_at: Some(since),
        because,
        held_by: match behaviour {
            Behaviour::Held => vec![BusySignal::Session.into()],
            _ => Vec::new(),
        },
        load1: 0.02,
        load1_counted: Some(0.01),
        runnable: 1,
    }
}

pub(crate) fn status(behaviour: Behaviour, flapped: bool, guests: &Guests) -> Status {
    let health = match behaviour {
        Behaviour::Starting => Health::Starting,
        _ => Health::Healthy,
    };
    let integrations = ["api", "db", "cache"].map(|name| {
        let name = if guests.is_hostile {
            format!("{name}{HOSTILE}")
        } else {
            name.to_owned()
        };
        IntegrationStatus {
            name,
            health: health.into(),
            since: ago(Duration::from_secs(60)),
            consecutive_failures: 0,
            checks: 9,
            failures: 0,
            first_healthy_secs: None,
            last_check: None,
        }
    });
    Status {
        lifecycle: Lifecycle::Running.into(),
        health: health.into(),
        uptime_secs: 86_400.0,
        now: Some(now()),
        worker: worker(behaviour, flapped),
        integrations: integrations.into(),
        integrations_omitted: 0,
    }
}

/// What `inspect` has beyond the status.
pub(crate) fn inspect(status: &Status, guests: &Guests) -> Value {
    let text = |plain: &str| {
        if guests.is_hostile {
            format!("{plain}{HOSTILE}")
        } else {
            plain.to_owned()
        }
    };
    let probe = |name: &str| {
        json!({
            "name": text(name), "ok": true, "value": text("42%"), "last_check": null,
        })
    };
    let mut all = serde_json::to_value(status).unwrap();
    let more = json!({
        "probes": [probe("disk"), probe("swap")],
        "system": {
            "hostname": text("guest"), "kernel": text("6.1.0"), "cpus": 1,
            "memory_total_bytes": 252_706_816, "memory_available_bytes": 201_326_592,
            "load": [0.02, 0.01, 0.0],
        },
        "agent": {
            "version": text("0.1.0"), "profile": "prod", "pid": 71, "rss_bytes": 1_261_568,
            "started_at": "2026-11-24T06:00:38.000Z", "drop_in_errors": [],
        },
        "snapshot": {"generation": 0, "last_sleep": null, "last_wake": null},
    });
    let (Value::Object(fields), Value::Object(more)) = (&mut all, more) else {
        panic!("both are objects")
    };
    fields.extend(more);
    all
}
