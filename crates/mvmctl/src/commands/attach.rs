//! `mvmctl vm attach`
//!
//! ```text
//! dial ─► attach ─► output ─┬─► its end
//!  ▲                        ├─► the guest is about to be frozen: let go, wait until the VM runs on
//!  │                        ├─► the VM is stopped: wait until it runs
//!  └────────────────────────┴─► the connection is lost: for so long as a guest may be silent
//! ```

use super::Context;
use super::jobs::job_failure;
use super::liveness;
use super::running::{
    self, Broken, End, LastHeard, OutputSink, Passthrough, SignalTarget, Why, follow,
};
use crate::backoff::Backoff;
use crate::report::{Ended, Failure, Outcome};
use crate::vm_name;
use crate::vm_state::{Now, VmState, VmStates};
use mvm_client::{Error, Session, Vm};
use mvm_protocol::dev::jobs::{Attach, KEPT_OUTPUT};
use std::time::Instant;
use tracing::Instrument as _;

/// Show what a job has printed, and follow it to its end
///
/// First the last 1 MiB of its output that the agent has kept, then what it prints. Its exit code is
/// ours, as with exec. Ctrl-C ends this alone: the job runs on. While the VM is frozen for a snapshot
/// or put to sleep it waits, and goes on where it was once the VM runs on. A guest from which nothing
/// comes for 15s, or for 5s more than --timeout, not even a heartbeat, ends it with exit code 125.
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

/// What tells a job from another of its number: one of an agent that was started again.
#[derive(Debug, PartialEq, Eq)]
struct Identity {
    boot_id: Option<String>,
    pid: u32,
}

/// How one connection ended.
enum Followed {
    End(End),
    /// Whether it can go on depends on what the VM is now.
    Broken(Broken),
}

impl Args {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
        let span = tracing::info_span!("vm", name = self.vm.name);
        let attached = self.attach(context).instrument(span).await;
        attached.map_err(|failure| Failure {
            kind: failure.kind.of_what_was_begun(),
            ..failure
        })
    }

    async fn attach(&self, context: &Context) -> Result<Outcome, Failure> {
        let vm = self.vm.name.as_str();
        let mut requests = context.termination_requests();
        let mut output = OutputSink::streams()?.going_on();
        let attached = async {
            let end = self.follow(context, &mut output).await;
            // What has come is written, whatever the end.
            match output.finish().await {
                Ok(()) | Err(crate::stdio::WriteError::Closed) => end,
                Err(error) => Err(running::failed(vm, Broken::Output(error))),
            }
        };
        let end = tokio::select! {
            end = attached => end?,
            number = requests.next() => {
                let job = self.job;
                return Err(Failure {
                    message: format!("job {job} is no longer followed, and runs on"),
                    ..Failure::signalled(number, "").of(vm)
                }
                .hint(format!("mvmctl vm kill {vm} {job} ends it")));
            }
        };
        match end {
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

    /// Follows it through as many connections as it takes.
    async fn follow(&self, context: &Context, output: &mut OutputSink) -> Result<End, Failure> {
        let name = self.vm.name.as_str();
        let states = VmStates::new(context);
        let mut state = states.of(name)?;
        let mut identity = None;
        let mut backoff = Backoff::new();
        let mut lost_since: Option<Instant> = None;
        loop {
            let about = |error: &Error| Failure::about(name, error);
            let vm = match state.now().await {
                Ok(Now::Runs(vm)) => vm,
                Ok(Now::Off(error)) if identity.is_some() => {
                    context.ui.note(&format!(
                        "{name}: {error}; the job is followed on when it runs"
                    ));
                    while let Ok(Now::Off(_)) = state.now().await {
                        state.changed().await;
                    }
                    lost_since = None;
                    continue;
                }
                Ok(Now::Ended(_, failure)) => return Err(failure),
                Ok(Now::Off(error)) | Err(error) => return Err(about(&error)),
            };
            let was_attached = identity.is_some();
            let followed = self
                .connection(context, &vm, &mut state, &mut identity, output)
                .await?;
            let broken = match followed {
                Followed::End(end) => return Ok(end),
                Followed::Broken(broken) => broken,
            };
            match broken {
                Broken::Cut(Why::NotRunning(_)) => {}
                Broken::Cut(Why::AboutToBeFrozen) if state.is_told() => {
                    state.frozen_or_not().await;
                    lost_since = None;
                }
                Broken::Cut(Why::AboutToBeFrozen) => {
                    return Err(Failure {
                        retryable: true,
                        ..Failure::failed("the guest is being put to sleep").of(name)
                    }
                    .hint(format!(
                        "job {} stands still, and goes on when the guest has woken: attach again \
                         then",
                        self.job
                    )));
                }
                Broken::Connection(error) if identity.is_some() && error.is_retryable() => {
                    if was_attached && lost_since.is_none() {
                        backoff = Backoff::new();
                    }
                    let since = *lost_since.get_or_insert_with(Instant::now);
                    let has_ended = !matches!(state.now().await, Ok(Now::Runs(_)));
                    if !has_ended && since.elapsed() >= liveness::silence(context) {
                        return Err(running::failed(name, Broken::Connection(error)));
                    }
                    liveness::pause(&mut state, backoff.pause()).await;
                }
                broken => return Err(running::failed(name, broken)),
            }
        }
    }

    /// One connection, from its beginning to its end.
    async fn connection(
        &self,
        context: &Context,
        vm: &Vm,
        state: &mut VmState<'_>,
        identity: &mut Option<Identity>,
        output: &mut OutputSink,
    ) -> Result<Followed, Failure> {
        let name = self.vm.name.as_str();
        let broken = |error| Ok(Followed::Broken(Broken::Connection(error)));
        let mut session = match context.connect(vm, &context.deadlines()).await {
            Ok(session) => session,
            Err(error) => return broken(error),
        };
        let boot_id = match session.hello().await {
            Ok(hello) => Some(hello.boot_id),
            Err(error) if error.is_retryable() => return broken(error),
            Err(_) => None,
        };
        if identity.is_some() {
            match self.printed(&mut session).await {
                Ok(Some(printed)) => output.expect_repeated(repeated(output.taken(), printed)),
                Ok(None) => return Err(self.is_gone()),
                Err(error) => return broken(error),
            }
        }
        let asked = Attach {
            job: self.job,
            follow: !self.no_follow,
        };
        let command = match session.attach(asked).await {
            Ok(command) => command,
            Err(error) if error.is_retryable() => return broken(error),
            Err(error) => return Err(job_failure(name, &error)),
        };
        let it = Identity {
            boot_id,
            pid: command.pid,
        };
        match identity {
            Some(identity) if *identity != it => return Err(self.is_gone()),
            Some(_) => {}
            none => *none = Some(it),
        }
        let passthrough = Passthrough {
            input: false,
            window: false,
            keys: false,
            signals: SignalTarget::Mvmctl,
        };
        let heard = LastHeard::now();
        let lost = Box::pin(liveness::lost(context, vm, state, &heard));
        let followed = follow(command, passthrough, None, output, &heard, lost).await?;
        Ok(match followed {
            Ok(end) => Followed::End(end),
            Err(broken) => Followed::Broken(broken),
        })
    }

    /// How much the job has printed; `None` if the agent knows it no more.
    async fn printed(&self, session: &mut Session) -> Result<Option<u64>, Error> {
        let jobs = session.jobs().await?;
        let job = jobs.iter().find(|job| job.job == self.job);
        Ok(job.map(|job| job.output_bytes))
    }

    fn is_gone(&self) -> Failure {
        Failure::not_found(format!(
            "job {} ended with the agent that ran it: how is not known",
            self.job
        ))
        .of(&self.vm.name)
        .hint("the VM was started anew, or its agent was, while the job was followed")
    }
}

/// How many of the bytes that come first are known. The agent sends the last of what was printed, as
/// far as it has kept it. What a job prints between the answer that says how much that is and the
/// attaching is lost if it has printed more than is kept: nothing tells where what comes begins.
fn repeated(taken: u64, printed: u64) -> u64 {
    let first = printed.saturating_sub(KEPT_OUTPUT as u64);
    taken.saturating_sub(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_shown_is_not_shown_again() {
        let kept = KEPT_OUTPUT as u64;
        assert_eq!(repeated(0, 100), 0);
        assert_eq!(repeated(100, 100), 100);
        assert_eq!(repeated(40, 100), 40);
        // Its first 50 bytes are forgotten, so what comes begins with the 51st.
        assert_eq!(repeated(60, kept + 50), 10);
        // Lost in between.
        assert_eq!(repeated(10, kept + 50), 0);
    }
}
