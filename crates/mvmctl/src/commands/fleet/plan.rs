//! `mvmctl fleet plan`

use super::serve::policy_file::PolicyFile;
use super::{client, once};
use crate::args::Format;
use crate::commands::Context;
use crate::render::data;
use crate::render::shown::Shown;
use crate::render::shown::table::{Style, Table, cell};
use crate::report::{Failure, Outcome};
use mvm_fleet::body::PlanBody;
use std::path::PathBuf;

/// Say what the policy would have done now, and why, and do nothing
///
/// Without --policy the program that serves the fleet is asked, which knows what is under way and for how
/// long each VM has been idle. With --policy all VMs are looked at once, and what that policy makes of
/// them is shown. An action that is not listed may be held up by what is listed below.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Another policy than the one that is in force
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
}

impl Args {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
        let plan = match self.policy {
            Some(path) => {
                let policy = PolicyFile::at(path).read()?;
                once::look(context, policy).await?.plan()
            }
            None => of_server(context).await?,
        };
        show(context, &plan)?;
        Ok(Outcome::Done)
    }
}

async fn of_server(context: &Context) -> Result<PlanBody, Failure> {
    let home = context.inventory()?.home().clone();
    let answer = client::get(&home, "/v1/plan").await?.ok_or_else(|| {
        Failure::failed(format!(
            "nobody serves the fleet of {}",
            home.root().display()
        ))
        .hint("--policy FILE plans without a server; `mvmctl fleet serve` begins one")
    })?;
    serde_json::from_slice(&answer)
        .map_err(|error| Failure::failed(format!("the server's plan cannot be read: {error}")))
}

fn show(context: &Context, plan: &PlanBody) -> Result<(), Failure> {
    match context.format {
        Format::Json | Format::Yaml => return data::document(context, plan),
        Format::Name => {
            let names = plan.actions.iter().map(|one| Shown::line(&one.vm));
            return context.ui.print(&names.collect());
        }
        Format::Table | Format::Wide => {}
    }
    if !plan.actions.is_empty() {
        let mut table = Table::new(context.ui.looks(), &["POOL", "ACTION", "NAME", "WHY"]);
        for one in &plan.actions {
            table.row(vec![
                cell(Style::Plain, &one.pool),
                cell(Style::Plain, &one.action),
                cell(Style::Plain, &one.vm),
                cell(Style::Plain, &one.reason),
            ]);
        }
        context.ui.print(&table.finish())?;
    }
    for held in &plan.held {
        context.ui.note(&format!("{}: {}", held.pool, held.cause));
    }
    if plan.actions.is_empty() {
        context.ui.note("nothing is to be done");
    }
    Ok(())
}
