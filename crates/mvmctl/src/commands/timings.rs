//! When what was up: of `mvmctl vm start --timings`.

use super::Context;
use crate::render::inspect::boot_rows;
use crate::render::shown::Shown;
use crate::render::shown::table::{Style, Table, cell};
use mvm_client::{Deadlines, Endpoint, Error, Watcher};
use mvm_protocol::answer::Change;
use mvm_protocol::status::{Boot, Health, Inspect};
use serde::Serialize;
use std::future::Future;
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// When what was up on this host, since the command began.
#[expect(
    clippy::struct_field_names,
    reason = "units stand in names, as in all data"
)]
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct HostTimes {
    vmm_started_ms: u64,
    /// Not asked with `--no-wait`.
    agent_listens_ms: Option<u64>,
    agent_answers_ms: Option<u64>,
}

/// Both sides of it.
#[derive(Debug, Serialize)]
pub(super) struct Timings {
    host: HostTimes,
    /// Not there if the agent is too old to tell, or could not be asked.
    guest: Option<GuestTimes>,
}

/// When what was up in the guest, since its boot.
#[derive(Debug, Serialize)]
pub(super) struct GuestTimes {
    #[serde(flatten)]
    boot: Boot,
    integrations: Vec<Integration>,
}

#[derive(Debug, Serialize)]
struct Integration {
    name: String,
    first_healthy_secs: Option<f64>,
}

fn since(begun: Instant) -> u64 {
    begun.elapsed().as_millis().try_into().unwrap_or(u64::MAX)
}

impl HostTimes {
    /// The VMM runs now.
    pub(super) fn begun(begun: Instant) -> Self {
        Self {
            vmm_started_ms: since(begun),
            agent_listens_ms: None,
            agent_answers_ms: None,
        }
    }

    /// The agent has said on the console that it listens.
    pub(super) fn agent_listens(&mut self, begun: Instant) {
        self.agent_listens_ms = Some(since(begun));
    }

    /// It has answered.
    pub(super) fn agent_answers(&mut self, begun: Instant) {
        self.agent_answers_ms = Some(since(begun));
    }
}

/// What the guest tells, once it is ready, is found to be unhealthy, or the time is up.
pub(super) async fn of_guest(
    context: &Context,
    endpoint: &Endpoint,
    at_most: Duration,
    cancelled: impl Future<Output = ()>,
) -> Option<Inspect> {
    let mut told = None;
    let telling = async {
        tokio::select! {
            followed = follow(context, endpoint, &mut told) => followed,
            () = cancelled => Ok(()),
        }
    };
    if let Ok(Err(error)) = timeout(at_most, telling).await {
        context
            .ui
            .warning(&format!("not all of its times are known: {error}"));
    }
    told
}

async fn follow(
    context: &Context,
    endpoint: &Endpoint,
    told: &mut Option<Inspect>,
) -> Result<(), Error> {
    /// How often a quiet guest says that it is there.
    const HEARTBEAT: Duration = Duration::from_secs(5);
    let deadlines = Deadlines::default();
    let session = context.dialer.connect(endpoint, &deadlines).await?;
    // First, so that nothing is missed between the two.
    let (_, mut watcher) = Watcher::start(session, HEARTBEAT).await?;
    let mut session = context.dialer.connect(endpoint, &deadlines).await?;
    loop {
        let inspect = told.insert(session.inspect().await?);
        let is_over = inspect.boot.is_none_or(|boot| boot.ready_secs.is_some());
        if is_over || inspect.status.health == Health::Unhealthy {
            return Ok(());
        }
        loop {
            match watcher.next().await? {
                Some(event) if matches!(event.change, Change::Heartbeat { .. }) => {}
                Some(_) => break,
                None => return Ok(()),
            }
        }
    }
}

impl Timings {
    /// Of this host, and of the guest if it has told.
    pub(super) fn of(host: HostTimes, inspect: Option<Inspect>) -> Self {
        let guest = inspect.and_then(|inspect| {
            let integrations = inspect.status.integrations.into_iter();
            Some(GuestTimes {
                boot: inspect.boot?,
                integrations: integrations
                    .map(|one| Integration {
                        name: one.name,
                        first_healthy_secs: one.first_healthy_secs,
                    })
                    .collect(),
            })
        });
        Self { host, guest }
    }

    /// For people: the host's clock begins with the command, the guest's with its boot.
    pub(super) fn shown(&self, context: &Context) -> Shown {
        let host = &self.host;
        let after =
            |ms: Option<u64>| ms.map_or("-".into(), |ms| format!("{:.3} s", ms as f64 / 1000.0));
        let mut shown = table(
            context,
            &["ON THIS HOST", "SINCE THE COMMAND"],
            &[
                ("VMM started".to_owned(), after(Some(host.vmm_started_ms))),
                ("agent listens".to_owned(), after(host.agent_listens_ms)),
                ("agent answers".to_owned(), after(host.agent_answers_ms)),
            ],
        );
        shown.push(&Shown::empty_line());
        let Some(guest) = &self.guest else {
            shown.push(&Shown::line("The guest does not tell when what was up."));
            return shown;
        };
        let integrations = guest.integrations.iter();
        let healthy = integrations.map(|one| (one.name.as_str(), one.first_healthy_secs));
        let rows = boot_rows(&guest.boot, healthy);
        shown.push(&table(context, &["IN THE GUEST", "SINCE ITS BOOT"], &rows));
        shown
    }
}

fn table(context: &Context, headers: &[&str], rows: &[(String, String)]) -> Shown {
    let mut table = Table::new(context.ui.looks(), headers);
    for (what, when) in rows {
        table.row(vec![cell(Style::Plain, what), cell(Style::Plain, when)]);
    }
    table.finish()
}
