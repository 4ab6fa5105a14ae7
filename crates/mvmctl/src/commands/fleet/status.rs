//! `mvmctl fleet status`

use super::{client, once};
use crate::args::Format;
use crate::commands::Context;
use crate::render::data;
use crate::render::shown::Shown;
use crate::render::shown::table::{Style, Table, cell};
use crate::report::{Failure, Outcome};
use mvm_fleet::Policy;
use mvm_fleet::body::{Numbers, PoolBody};
use serde::{Deserialize, Serialize};

/// Show the pools, how many VMs are wanted and there, and what was done last
///
/// The program that serves the fleet is asked. Where none runs, all VMs are looked at once: then there
/// is no policy, and no last action.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// What `/v1/fleet` answers, of a server of another version, too.
#[derive(Debug, Serialize, Deserialize)]
struct Body {
    #[serde(flatten)]
    numbers: Numbers,
    pools: Vec<PoolBody>,
    last_actions: Vec<Action>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Action {
    at: String,
    pool: String,
    vm: String,
    #[serde(rename = "action")]
    kind: String,
    outcome: String,
    reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

impl Args {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
        let home = context.inventory()?.home().clone();
        let text = if let Some(answer) = client::get(&home, "/v1/fleet").await? {
            answer.to_vec()
        } else {
            let note = "nobody serves this fleet: its VMs were looked at once";
            context.ui.note(note);
            once::look(context, Policy::default()).await?.fleet().into()
        };
        let body: Body = serde_json::from_slice(&text).map_err(|error| {
            Failure::failed(format!("the server's answer cannot be read: {error}"))
        })?;
        match context.format {
            Format::Json | Format::Yaml => data::document(context, &body)?,
            Format::Name => {
                let names = body.pools.iter().map(|one| Shown::line(&one.pool));
                context.ui.print(&names.collect())?;
            }
            Format::Table | Format::Wide => context.ui.print(&table(context, &body))?,
        }
        if !body.numbers.complete {
            context
                .ui
                .warning("not every VM has answered or failed yet: these numbers will change");
            return Ok(Outcome::Bad);
        }
        Ok(Outcome::Done)
    }
}

fn table(context: &Context, body: &Body) -> Shown {
    let headers = [
        "POOL", "WANTED", "VMS", "BUSY", "IDLE", "STARTING", "PAUSED", "ASLEEP", "STOPPED",
        "UNKNOWN",
    ];
    let mut table = Table::new(context.ui.looks(), &headers);
    for pool in &body.pools {
        let numbers = &pool.numbers;
        let of = |style, number: u32| {
            cell(
                if number == 0 { Style::Dim } else { style },
                &number.to_string(),
            )
        };
        table.row(vec![
            cell(Style::Plain, &pool.pool),
            of(Style::Plain, numbers.wanted),
            of(Style::Plain, numbers.vms),
            of(Style::Good, numbers.busy),
            of(Style::Good, numbers.idle),
            of(Style::Warn, numbers.starting),
            of(Style::Plain, numbers.paused),
            of(Style::Plain, numbers.asleep),
            of(Style::Plain, numbers.stopped),
            of(Style::Bad, numbers.unknown),
        ]);
    }
    let mut text = table.finish();
    if body.last_actions.is_empty() {
        return text;
    }
    let mut table = Table::new(
        context.ui.looks(),
        &["AT", "ACTION", "NAME", "OUTCOME", "WHY"],
    );
    for one in &body.last_actions {
        let style = match one.outcome.as_str() {
            "ok" => Style::Good,
            "skipped" => Style::Warn,
            _ => Style::Bad,
        };
        let why = match &one.problem {
            Some(problem) => format!("{}; {problem}", one.reason),
            None => one.reason.clone(),
        };
        table.row(vec![
            cell(Style::Plain, &one.at),
            cell(Style::Plain, &one.kind),
            cell(Style::Plain, &one.vm),
            cell(style, &one.outcome),
            cell(Style::Plain, &why),
        ]);
    }
    text.push(&Shown::empty_line());
    text.push(&table.finish());
    text
}
