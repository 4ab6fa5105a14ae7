//! `mvmctl vm kill`

use super::Context;
use super::dev::session;
use super::jobs::job_failure;
use crate::render::data;
use crate::report::{Failure, Outcome};
use crate::vm_name;
use mvm_protocol::dev::jobs::{JobSignal, JobSignaled};
use mvm_protocol::signal::Signal;
use tracing::Instrument as _;

/// Send a signal to a job in a guest
///
/// It goes to the job's process group; KILL ends all that the job has started.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    vm: vm_name::One,

    /// The job's number: see `mvmctl vm jobs`
    job: u64,

    /// Which one, by name or number
    #[arg(value_parser = signal, default_value = "TERM")]
    signal: Signal,
}

/// Reads a signal as people write it: `TERM`, `SIGTERM`, `term`, `15`.
fn signal(text: &str) -> Result<Signal, String> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    Signal::new(name).ok_or_else(|| "no such signal: a name such as TERM, or 1 to 64".into())
}

impl Args {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
        let span = tracing::info_span!("vm", name = self.vm.name);
        async {
            let vm = self.vm.name.as_str();
            let mut session = session(context, vm, &context.deadlines()).await?;
            let asked = JobSignal {
                job: self.job,
                signal: self.signal,
            };
            let sent = session.job_signal(asked).await;
            sent.map_err(|error| job_failure(vm, &error))?;
            let signaled = JobSignaled { job: self.job };
            data::one_for_programs(context, vm, &signaled)?;
            Ok(Outcome::Done)
        }
        .instrument(span)
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_as_people_write_them() {
        for text in ["TERM", "SIGTERM", "term", "sigterm", "15"] {
            assert_eq!(signal(text), Ok(Signal::TERM), "{text}");
        }
        for text in ["", "SIG", "TERMINATE", "0", "65"] {
            assert!(signal(text).is_err(), "{text}");
        }
    }
}
