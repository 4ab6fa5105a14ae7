//! `mvmctl vm attach`

use super::Context;
use super::dev::session;
use super::jobs::job_failure;
use super::running::{self, End, ForSignals, Joined, follow};
use crate::report::{Ended, Failure, Kind, Outcome};
use crate::vm_name;
use mvm_protocol::dev::jobs::Attach;
use tracing::Instrument as _;

/// Show what a job has printed, and follow it to its end
///
/// First the last 1 MiB of its output that the agent has kept, then what it prints. Its exit code is
/// ours, as with exec. Ctrl-C ends this alone: the job runs on.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    vm: vm_name::One,

    /// The job's number: see `mvmctl vm jobs`
    job: u64,

    /// Show what there is, and do not wait for more; the exit code is 0 if the job runs
    #[arg(long)]
    no_follow: bool,
}

impl Args {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
        let span = tracing::info_span!("vm", name = self.vm.name);
        let attached = self.attach(context).instrument(span).await;
        attached.map_err(|failure| Failure {
            kind: failure.kind.of_a_run(),
            ..failure
        })
    }

    async fn attach(&self, context: &Context) -> Result<Outcome, Failure> {
        let vm = self.vm.name.as_str();
        let job = self.job;
        let mut session = session(context, vm, &context.deadlines()).await?;
        let asked = Attach {
            job,
            follow: !self.no_follow,
        };
        let command = session.attach(asked).await;
        let command = command.map_err(|error| job_failure(vm, &error))?;
        let joined = Joined {
            input: false,
            window: false,
            keys: false,
            signals: ForSignals::Us,
        };
        let followed = follow(vm, command, joined, context.termination_requests(), false).await;
        let followed = followed.map_err(|failure| match failure.kind {
            Kind::Signalled(_) => Failure {
                message: format!("job {job} is no longer followed, and runs on"),
                ..failure
            }
            .hint(format!("mvmctl vm kill {vm} {job} ends it")),
            _ => failure,
        })?;
        match followed.end {
            End::RunsOn => Ok(Outcome::Done),
            End::Unread => Ok(Outcome::Ended(Ended::Signal(running::SIGPIPE))),
            End::Exited(exited) => {
                if exited.truncated {
                    context.ui.note("output before this was not kept");
                }
                Ok(Outcome::Ended(running::ended(vm, &exited)?))
            }
        }
    }
}
