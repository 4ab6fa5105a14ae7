//! `mvmctl vm snapshot NAME`
//!
//! ```text
//! sleep-prep ─► close ─► freeze, write ─┬─► run on ─► wake, aborted ─► name the folder
//!     │                       │         └─► name the folder ─► end the VM         (--stop)
//!     ▼ failed                ▼ failed
//!  it was rolled back     run on ─► wake, aborted: no folder
//! ```

use super::Context;
use super::machine::{Wanted, blocking, cancelled_by_signals, failure, home, name, until_raised};
use super::mend::mend_if_broken_off;
use super::restore::{Patience, wake_guest};
use super::sleep::secs;
use super::waking::{is_well, wake};
use crate::render::words::wire;
use crate::render::{data, steps};
use crate::report::{Failure, Outcome};
use crate::termination::TerminationRequests;
use crate::vm_name::complete;
use clap_complete::engine::ArgValueCompleter;
use mvm_client::{Endpoint, Error as ClientError};
use mvm_protocol::ErrorAnswer;
use mvm_protocol::answer::Hello;
use mvm_protocol::drop_in::Secs;
use mvm_protocol::lifecycle::{
    Awake, Outcome as StepOutcome, Ready, SleepPrep, Step, StepKind, Token, WakeCause,
};
use mvm_protocol::status::{Lifecycle, Status};
use mvm_registry::Error as RegistryError;
use mvm_vmm::snapshot::SnapshotDir;
use mvm_vmm::suspend::{PendingSnapshot, SnapshotSession, take};
use mvm_vmm::{Deadline, Error, Snapshot};
use serde::Serialize;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// How long the VMM may take to write the state.
const DEFAULT_TIMEOUT: Duration = Duration::from_mins(5);

/// How long a VM may take to run on.
const RUN_ON: Duration = Duration::from_mins(1);

/// Keep a VM as a snapshot
///
/// Its guest is made ready first: checkpoint commands run, filesystems are synced, the page cache is
/// dropped. Then the VM is frozen, its state written, and it runs on; with --stop it ends, and `mvmctl
/// vm restore` under the same name continues it. If anything fails the VM runs on and no folder is
/// left.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The VM
    #[arg(value_name = "NAME", add = ArgValueCompleter::new(complete))]
    name: String,

    /// The snapshot's folder [default: one of the VM's own, named by the time]
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,

    /// End the VM once its snapshot is complete
    #[arg(long)]
    stop: bool,

    /// How long the guest may take to get ready
    #[arg(long, value_name = "D", value_parser = secs, default_value = "60s")]
    deadline: Secs,

    /// Take none unless all of the guest's work could be frozen
    #[arg(long)]
    require_freeze: bool,
}

/// What came of it, as data.
#[derive(Debug, Serialize)]
struct Report {
    snapshot: PathBuf,
    /// What its files hold, the zeros among it.
    bytes: u64,
    /// What room they take, without the zeros.
    disk_bytes: u64,
    stopped: bool,
    sleep: Vec<Step>,
    wake: Option<Vec<Step>>,
}

impl Args {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
        let progress = context.ui.progress(&format!("snapshotting {}", self.name));
        let cancelled = cancelled_by_signals(context);
        let job = Taking {
            to: self.to,
            stop: self.stop,
            deadline: self.deadline,
            require_freeze: self.require_freeze,
            idle_for: None,
            at_most: None,
        };
        let (made, ready) = snapshot_vm(context, &self.name, job, Arc::clone(&cancelled)).await?;
        drop(progress);
        show(context, &self.name, &made, ready.steps)?;
        Ok(match made.awake {
            Some(awake) if !is_well(&awake) => Outcome::Bad,
            _ => Outcome::Done,
        })
    }
}

/// What snapshot is to be taken of a VM, and what becomes of that.
#[derive(Debug)]
pub(super) struct Taking {
    /// The snapshot's folder.
    pub(super) to: Option<PathBuf>,
    /// Whether the VM ends once it is complete.
    pub(super) stop: bool,
    pub(super) deadline: Secs,
    pub(super) require_freeze: bool,
    /// For how long the guest has to have been idle, if that matters: it is asked first, and left
    /// alone if it has not: [`NOT_IDLE`].
    pub(super) idle_for: Option<Duration>,
    /// How long the VMM may take to write the state, if that was not said by `--timeout`.
    pub(super) at_most: Option<Duration>,
}

/// The code of a failure where a guest was to be left alone if it works, and does.
pub(super) const NOT_IDLE: &str = "not-idle";

/// Takes a snapshot of a VM. What it is told that goes wrong is undone: see the head of this file.
pub(super) async fn snapshot_vm(
    context: &Context,
    vm: &str,
    job: Taking,
    cancelled: Arc<AtomicBool>,
) -> Result<(Made, Ready), Failure> {
    let failed = |error: &Error| failure(context, vm, Wanted::Snapshot, error);
    let parsed = name(vm)?;
    let home = home(context)?;
    mend_if_broken_off(context, vm).await?;
    let begun = blocking(move || take(&home, &parsed, job.to.as_deref()));
    let (session, snapshot_dir) = begun.await.map_err(|error| failed(&error))?;
    let endpoint = Endpoint::unix(session.socket()).with_port(session.record().port);
    let host = Host {
        context,
        vm,
        endpoint,
        token: token()?,
        at_most: job.at_most.or(context.timeout).unwrap_or(DEFAULT_TIMEOUT),
        cancelled,
    };
    let asked = SleepPrep {
        token: Some(host.token.clone()),
        deadline_secs: job.deadline,
        require_freeze: job.require_freeze,
        ..SleepPrep::default()
    };
    let (hello, ready) = host.sleep(asked, job.idle_for).await?;
    let (session, pending) = host.freeze(session, snapshot_dir).await?;
    let made = if job.stop {
        host.name_and_end(session, pending, hello).await?
    } else {
        host.run_on_and_name(session, pending, hello).await?
    };
    Ok((made, ready))
}

/// Refuses a guest that works: anything but a plain `idle` of one that runs and is held by nothing, said
/// for so long by its own clock.
pub(super) fn refuse_busy(vm: &str, status: &Status, idle_for: Duration) -> Result<(), Failure> {
    let worker = &status.worker;
    let since = worker.idle_since();
    let idle_ms = status.now.map(|now| now.0.saturating_sub(since.0));
    // An agent that does not tell its time is believed that it is idle.
    let long_enough =
        idle_ms.is_none_or(|ms| ms >= 0 && u128::from(ms.unsigned_abs()) >= idle_for.as_millis());
    let is_idle = status.lifecycle == Lifecycle::Running && !worker.is_at_work();
    if is_idle && long_enough {
        return Ok(());
    }
    let mut failure = Failure::failed("the guest has begun to work").of(vm);
    failure.code = NOT_IDLE.into();
    Err(failure)
}

/// A snapshot that is complete, and how the guest runs on.
pub(super) struct Made {
    pub(super) snapshot: Snapshot,
    awake: Option<Awake>,
}

/// What each step of a snapshot needs.
struct Host<'a> {
    context: &'a Context,
    vm: &'a str,
    endpoint: Endpoint,
    token: Token,
    at_most: Duration,
    cancelled: Arc<AtomicBool>,
}

impl Host<'_> {
    /// Makes the guest ready. The connection is closed when this returns: one that is open when the
    /// VM is frozen stays open and silent.
    async fn sleep(
        &self,
        asked: SleepPrep,
        idle_for: Option<Duration>,
    ) -> Result<(Hello, Ready), Failure> {
        let about = |error: &ClientError| Failure::about(self.vm, error);
        let deadlines = self.context.deadlines();
        let begun = async {
            let dialer = &self.context.dialer;
            let mut session = dialer.connect(&self.endpoint, &deadlines).await?;
            let hello = session.hello().await?;
            let status = match idle_for {
                Some(_) => Some(session.status().await?),
                None => None,
            };
            Ok((session, hello, status))
        };
        let (mut session, hello, status) = tokio::select! {
            begun = begun => begun.map_err(|error| about(&error))?,
            // Nothing was asked for yet.
            () = until_raised(&self.cancelled) => {
                return Err(Failure::interrupted().of(self.vm));
            }
        };
        if let (Some(idle_for), Some(status)) = (idle_for, status) {
            refuse_busy(self.vm, &status, idle_for)?;
        }
        let prepared = tokio::select! {
            prepared = session.sleep_prep(asked) => Some(prepared),
            () = until_raised(&self.cancelled) => None,
        };
        drop(session);
        match prepared {
            Some(Ok(ready)) => Ok((hello, ready)),
            Some(Err(ClientError::Refused(answer))) => Err(self.not_ready(answer)),
            Some(Err(error @ ClientError::TooOld { .. })) => Err(about(&error)),
            // Whether the guest is asleep, or will be, is not known.
            Some(Err(error)) => {
                let failure = about(&error);
                Err(self.told(
                    failure,
                    self.wake_aborted(self.context.termination_requests()).await,
                ))
            }
            None => {
                let failure = Failure::failed("interrupted").of(self.vm);
                Err(self.told(
                    failure,
                    self.wake_aborted(self.context.termination_requests()).await,
                ))
            }
        }
    }

    /// The guest has rolled itself back, and its answer names the step that was to blame, and what
    /// that said. What went wrong on the way back is told as well.
    fn not_ready(&self, answer: ErrorAnswer) -> Failure {
        let rollback = answer.steps.iter().flatten();
        for step in rollback.filter(|step| step.step == StepKind::Restore) {
            self.tell_culprit(step);
        }
        Failure::about(self.vm, &ClientError::Refused(answer))
            .hint("no snapshot was taken, and the VM runs on")
    }

    /// Says on stderr what went wrong with a step, if anything did.
    fn tell_culprit(&self, step: &Step) {
        if let Some(culprit) = culprit(step) {
            self.context.ui.note(&format!("{}: {culprit}", self.vm));
        }
    }

    /// Freezes the VM; if that fails it runs on.
    async fn freeze(
        &self,
        mut session: SnapshotSession,
        snapshot_dir: SnapshotDir,
    ) -> Result<(SnapshotSession, PendingSnapshot), Failure> {
        let at_most = self.at_most;
        let flag = Arc::clone(&self.cancelled);
        let frozen = blocking(move || {
            let frozen = session.freeze(snapshot_dir, Deadline::new(at_most, Some(&flag)));
            Ok((session, frozen))
        });
        match frozen.await {
            Ok((session, Ok(pending))) => Ok((session, pending)),
            Ok((session, Err(error))) => Err(self.undo(session, &error).await),
            Err(error) => Err(self.failure(&error)),
        }
    }

    /// Suspends: the folder has its name before the VM is ended, or the VM runs on.
    async fn name_and_end(
        &self,
        mut session: SnapshotSession,
        pending: PendingSnapshot,
        hello: Hello,
    ) -> Result<Made, Failure> {
        let snapshot = match self.publish(pending, hello).await {
            Ok(snapshot) => snapshot,
            Err(error) => return Err(self.undo(session, &error).await),
        };
        let folder = snapshot.folder.clone();
        let ended = blocking(move || session.stop(&folder)).await;
        ended.map_err(|error| {
            let failure = self.failure(&error);
            self.with_snapshot(failure, &snapshot)
        })?;
        Ok(Made {
            snapshot,
            awake: None,
        })
    }

    /// The VM is kept waiting no longer than it takes to write its state: what else there is to do
    /// to the folder is done while it runs.
    async fn run_on_and_name(
        &self,
        session: SnapshotSession,
        pending: PendingSnapshot,
        hello: Hello,
    ) -> Result<Made, Failure> {
        let awake = self.run_on(session).await;
        match (self.publish(pending, hello).await, awake) {
            (Ok(snapshot), Ok(awake)) => Ok(Made {
                snapshot,
                awake: Some(awake),
            }),
            (Ok(snapshot), Err(failure)) => Err(self.with_snapshot(failure, &snapshot)),
            (Err(error), awake) => {
                let failure = self.failure(&error);
                Err(self.told(failure, awake))
            }
        }
    }

    fn failure(&self, error: &Error) -> Failure {
        failure(self.context, self.vm, Wanted::Snapshot, error)
    }

    async fn publish(&self, pending: PendingSnapshot, hello: Hello) -> Result<Snapshot, Error> {
        let token = self.token.clone();
        blocking(move || pending.publish(token, hello.agent_version)).await
    }

    /// The snapshot could not be taken: the VM runs on, and its guest is told.
    async fn undo(&self, session: SnapshotSession, error: &Error) -> Failure {
        let failure = match error {
            // Its own words are those of a start, which ends what it has begun.
            Error::Interrupted => Failure::failed("interrupted").of(self.vm),
            error => self.failure(error),
        };
        self.told(failure, self.run_on(session).await)
    }

    /// Nothing interrupts this but a second signal, which ends this program in a few seconds whatever it
    /// does: a frozen VM is of no use to anybody, and the next command has it run on then.
    async fn run_on(&self, mut session: SnapshotSession) -> Result<Awake, Failure> {
        let requests = self.context.termination_requests();
        let ran = blocking(move || {
            session.run_on(Deadline::new(RUN_ON, None))?;
            Ok(session)
        });
        let ran = ran.await;
        // Held until the guest is awake: nobody else stops or snapshots it meanwhile.
        let _taking = ran.map_err(|error| self.failure(&error))?;
        self.wake_aborted(requests).await
    }

    /// The VM runs: the next of these signals ends the waiting.
    async fn wake_aborted(&self, mut requests: TerminationRequests) -> Result<Awake, Failure> {
        let asked = || wake(Some(self.token.clone()), WakeCause::Aborted, false);
        let patience = Patience::after_an_abort();
        tokio::select! {
            awake = wake_guest(self.context, self.vm, &self.endpoint, asked, patience) => awake,
            _ = requests.next() => {
                Err(Failure::failed("interrupted").of(self.vm))
            }
        }
    }

    /// A failure, and what became of the VM after it.
    fn told(&self, failure: Failure, awake: Result<Awake, Failure>) -> Failure {
        match awake {
            Ok(awake) => {
                awake.steps.iter().for_each(|step| self.tell_culprit(step));
                let hint = "no snapshot was taken, and the VM runs on";
                match failure.hint.clone() {
                    Some(before) => failure.hint(format!("{before}; {hint}")),
                    None => failure.hint(hint),
                }
            }
            // Nothing of it is left to be woken.
            Err(ended) if ended.code == RegistryError::VM_ENDED => Failure {
                message: format!("{}; {}", failure.message, ended.message),
                ..ended
            },
            Err(second) => {
                let vm = self.vm;
                let hint = format!(
                    "no snapshot was taken, and the guest was not woken: {}; `mvmctl vm wake {vm}` tries \
                     again and says more, and if the VM runs and its agent does, the guest wakes by \
                     itself when its lease is over",
                    second.message
                );
                failure.hint(hint)
            }
        }
    }

    fn with_snapshot(&self, mut failure: Failure, snapshot: &Snapshot) -> Failure {
        failure.message = format!(
            "the snapshot {} is complete, but: {}",
            snapshot.folder.display(),
            failure.message
        );
        failure.of(self.vm)
    }
}

/// A step that went wrong, in words; `None` for others.
fn culprit(step: &Step) -> Option<String> {
    if step.outcome != StepOutcome::Failed && step.outcome != StepOutcome::TimedOut {
        return None;
    }
    let of = step
        .integration
        .as_ref()
        .map_or(String::new(), |name| format!(" of {name}"));
    let why = step.detail.as_deref().unwrap_or_default().trim();
    let outcome = wire(&step.outcome);
    Some(format!("{}{of} {outcome}: {why}", wire(&step.step)))
}

/// A token that nobody else has.
fn token() -> Result<Token, Failure> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| Failure::failed(format!("no random bytes from this host: {error}")))?;
    let text = format!("mvmctl-{:032x}", u128::from_ne_bytes(bytes));
    Token::new(&text).ok_or_else(|| Failure::failed("cannot make a token"))
}

fn show(context: &Context, vm: &str, made: &Made, sleep: Vec<Step>) -> Result<(), Failure> {
    let files = &made.snapshot.manifest.files;
    let paths = files
        .iter()
        .map(|file| made.snapshot.folder.join(&file.file));
    // One that is gone again takes none.
    let on_disk = paths.filter_map(|path| std::fs::symlink_metadata(path).ok());
    let report = Report {
        snapshot: made.snapshot.folder.clone(),
        bytes: files.iter().map(|file| file.bytes).sum(),
        disk_bytes: on_disk.map(|file| file.blocks().saturating_mul(512)).sum(),
        stopped: made.awake.is_none(),
        sleep,
        wake: made.awake.as_ref().map(|awake| awake.steps.clone()),
    };
    let state = if report.stopped {
        "it is asleep"
    } else {
        "it runs on"
    };
    context.ui.note(&format!(
        "{vm} is in {}, {:.1} MiB on the disk; {state}",
        report.snapshot.display(),
        report.disk_bytes as f64 / 1_048_576.0
    ));
    data::one(context, vm, &report, || {
        let all = report.sleep.iter().chain(report.wake.iter().flatten());
        steps::table(context, &all.cloned().collect::<Vec<_>>())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_is_held_is_not_put_to_sleep() {
        let status = |worker: &str| -> Status {
            let text = format!(
                r#"{{"lifecycle":"running","health":"healthy","uptime_secs":1,"integrations":[],
                "worker":{{"since":"2026-11-24T06:02:11Z","last_busy_at":null,"because":[],"load1":0,
                "runnable":1,{worker}}}}}"#
            );
            serde_json::from_str(&text).unwrap()
        };
        let refused = |worker| refuse_busy("web-1", &status(worker), Duration::ZERO);
        assert!(refused(r#""state":"idle""#).is_ok());
        let held = refused(r#""state":"idle","held_by":["session"]"#);
        assert_eq!(held.unwrap_err().code, NOT_IDLE);
    }
}
