//! `mvmctl vm ping`

use super::Context;
use crate::args::Format;
use crate::fleet::{self, Fleet};
use crate::render::shown::Shown;
use crate::render::shown::table::{Style, Table, cell};
use crate::render::{data, status, words};
use crate::report::{Failure, Outcome};
use crate::vm_name;
use serde::Serialize;
use std::time::Duration;

/// Measure the round trip time to agents
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    vms: vm_name::Any,
}

#[derive(Debug, Serialize)]
struct Pong {
    /// From sending `ping` to having `pong`, on a connection that was open.
    rtt_ms: f64,
}

impl Args {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
        let asked = fleet::ask(context, &self.vms, async |mut session| {
            let rtt = session.ping().await?;
            Ok(Pong { rtt_ms: in_ms(rtt) })
        });
        let fleet = asked.await?;
        data::fleet(context, &fleet, || table(context, &fleet))?;
        fleet.finish(context, |_| false)
    }
}

/// Milliseconds to the microsecond.
fn in_ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1_000_000.0).round() / 1000.0
}

fn table(context: &Context, fleet: &Fleet<Pong>) -> Shown {
    let mut headers = vec!["NAME", "ROUND TRIP"];
    if context.format == Format::Wide {
        headers.push("ADDRESS");
    }
    let mut table = Table::new(context.ui.looks(), &headers);
    for one in &fleet.answers {
        let shown = match &one.result {
            Ok(pong) => cell(Style::Plain, &words::milliseconds(pong.rtt_ms)),
            Err(failure) => cell(Style::Dim, &failure.code),
        };
        let mut row = vec![cell(Style::Plain, &one.name), shown];
        if context.format == Format::Wide {
            row.push(status::address(one));
        }
        table.row(row);
    }
    table.finish()
}
