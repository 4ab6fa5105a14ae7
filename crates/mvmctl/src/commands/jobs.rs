//! `mvmctl vm jobs`

use super::Context;
use super::dev::failure;
use crate::args::Format;
use crate::fleet;
use crate::render::data;
use crate::render::shown::Shown;
use crate::render::shown::table::{Style, Table, cell};
use crate::render::words;
use crate::report::{Failure, Outcome};
use crate::vm_name;
use mvm_client::Error;
use mvm_protocol::ErrorCode;
use mvm_protocol::Lenient;
use mvm_protocol::dev::jobs::{Job, JobState};
use serde::Serialize;
use std::time::Duration;

/// List a guest's jobs: commands that were started with exec --detach
///
/// The agent remembers 64 of them, ended ones too, until it is restarted.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    vm: vm_name::One,
}

#[derive(Debug, Serialize)]
struct Jobs {
    jobs: Vec<Job>,
}

impl Args {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
        let names = [self.vm.name];
        let asked = fleet::ask(context, &names, async |mut session| {
            Ok(Jobs {
                jobs: session.jobs().await?,
            })
        });
        let fleet = asked.await?;
        data::fleet(context, &fleet, || {
            fleet
                .only()
                .map_or_else(Shown::new, |(_, jobs)| table(context, &jobs.jobs))
        })?;
        fleet.finish(context, |_| false)
    }
}

fn table(context: &Context, jobs: &[Job]) -> Shown {
    let wide = context.format == Format::Wide;
    let mut headers = vec!["JOB", "STATE", "AGE", "TOOK", "PRINTED", "COMMAND"];
    if wide {
        headers.splice(1..1, ["PID"]);
    }
    let mut table = Table::new(context.ui.looks(), &headers);
    for job in jobs {
        let (tone, state) = state(job);
        let mut row = vec![
            cell(Style::Plain, &job.job.to_string()),
            cell(tone, &state),
            cell(Style::Plain, &words::age(job.started_at, None)),
            cell(Style::Plain, &took(job)),
            cell(Style::Plain, &words::bytes(job.output_bytes)),
            cell(Style::Plain, &words::command_line(&job.argv)),
        ];
        if wide {
            row.insert(1, cell(Style::Plain, &job.pid.to_string()));
        }
        table.row(row);
    }
    table.finish()
}

fn state(job: &Job) -> (Style, String) {
    match job.state {
        Lenient::Known(JobState::Running) => return (Style::Good, "running".into()),
        Lenient::Known(JobState::Held) => return (Style::Warn, "held".into()),
        Lenient::Known(JobState::Ended) => {}
        Lenient::Other(word) => return words::other(&word),
    }
    match (job.timed_out, job.exit_code, &job.signal) {
        (true, ..) => (Style::Bad, "timed out".into()),
        (false, Some(0), _) => (Style::Plain, "ok".into()),
        (false, Some(code), _) => (Style::Bad, format!("exit {code}")),
        (false, None, Some(signal)) => (Style::Bad, format!("signal {signal}")),
        (false, None, None) => (Style::Bad, "ended".into()),
    }
}

/// By the guest's clock alone; what runs has not taken its time yet.
fn took(job: &Job) -> String {
    let Some(ended) = job.ended_at else {
        return "-".into();
    };
    let ms = ended.0.saturating_sub(job.started_at.0).max(0);
    words::duration(Duration::from_millis(ms.unsigned_abs()))
}

/// What went wrong with one job.
pub(super) fn job_failure(vm: &str, error: &Error) -> Failure {
    let failure = failure(vm, error);
    match error {
        Error::Refused(refusal) if refusal.code == ErrorCode::NotFound => {
            failure.hint(format!("`mvmctl vm jobs {vm}` shows those that there are"))
        }
        _ => failure,
    }
}
