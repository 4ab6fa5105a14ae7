//! `mvmctl vm restore DIR --name NEW`

use super::Context;
use super::machine::{
    Wanted, blocking, cancelled_by_signals, failure, name, not_of_another, until_raised,
};
use super::payload::PayloadArg;
use super::waking::{HELD, held, is_well, table, wake};
use crate::render::data;
use crate::report::{Failure, Outcome};
use crate::vm_name::{Marks, complete};
use clap_complete::engine::ArgValueCompleter;
use mvm_client::{Deadlines, Endpoint};
use mvm_protocol::lifecycle::{Awake, Payload, Token, Wake, WakeCause};
use mvm_registry::Error as RegistryError;
use mvm_vmm::suspend::{RestoreSpec, Restored, restore};
use mvm_vmm::{Deadline, Error, Snapshot, Verify};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// How long checking a snapshot and loading its state may take that were given no `--timeout`.
pub(super) const DEFAULT_TIMEOUT: Duration = Duration::from_mins(5);

/// How long a guest that runs may take to be awake, restore commands included.
const ROUSE: Duration = Duration::from_mins(2);

/// How long a guest may take to be awake that was put to sleep for a snapshot that came to nothing.
const AFTER_AN_ABORT: Duration = Duration::from_mins(1);

/// How long to wait between two tries to reach the agent.
const BETWEEN_TRIES: Duration = Duration::from_millis(50);

/// Start a VM where a snapshot was taken
///
/// The guest is given this host's time and fresh random bytes, and runs its restore commands. Under
/// the name of a VM that was suspended with `mvmctl vm snapshot --stop` that VM continues. For each
/// further VM from the same snapshot say --clone.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The snapshot's folder
    #[arg(value_name = "DIR")]
    snapshot: PathBuf,

    /// The VM's name
    #[arg(long, value_name = "NEW", add = ArgValueCompleter::new(complete))]
    name: String,

    /// Give the guest an identity of its own: machine-id, host name, boot id
    #[arg(long)]
    clone: bool,

    /// Whether the snapshot's files are read to see that they are what they were
    #[arg(long, value_enum, value_name = "WHEN", default_value_t)]
    verify: When,

    #[command(flatten)]
    marks: Marks,

    #[command(flatten)]
    payload: PayloadArg,
}

/// When a snapshot's files are read.
#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
pub(super) enum When {
    /// Each time
    Always,
    /// Once, and again when they were altered since
    #[default]
    Once,
    /// Not at all: their sizes alone are compared
    Never,
}

impl From<When> for Verify {
    fn from(when: When) -> Self {
        match when {
            When::Always => Self::Always,
            When::Once => Self::Once,
            When::Never => Self::Never,
        }
    }
}

/// What came of it, as data.
#[derive(Debug, Serialize)]
struct Report<'a> {
    snapshot: &'a Path,
    #[serde(flatten)]
    awake: &'a Awake,
}

impl Args {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
        let payload = self.payload.read()?;
        let progress = context.ui.progress(&format!("restoring {}", self.name));
        let begun = Instant::now();
        let cancelled = cancelled_by_signals(context);
        let job = Restoration {
            snapshot: self.snapshot,
            verify: self.verify.into(),
            spec: RestoreSpec {
                clone: self.clone,
                payload: payload.is_some(),
                pinned: self.marks.pinned(),
                labels: self.marks.labels,
                console_keeper: Some(context.console_keeper),
            },
            payload,
        };
        let (snapshot, awake) = restore_vm(context, &self.name, job, &cancelled).await?;
        drop(progress);
        context.ui.note(&format!(
            "{} runs after {:.1} s",
            self.name,
            begun.elapsed().as_secs_f64()
        ));
        let report = Report {
            snapshot: &snapshot.folder,
            awake: &awake,
        };
        data::one(context, &self.name, &report, || table(context, &awake))?;
        Ok(if is_well(&awake) {
            Outcome::Done
        } else {
            Outcome::Bad
        })
    }
}

/// What a VM is to be started from, and as what.
#[derive(Debug)]
pub(super) struct Restoration {
    pub(super) snapshot: PathBuf,
    pub(super) verify: Verify,
    pub(super) spec: RestoreSpec,
    /// What its guest is handed.
    pub(super) payload: Option<Payload>,
}

/// Why a VM does not go on from a snapshot.
pub(super) enum NotRestored {
    /// It was not started, or was ended again.
    NotStarted(Failure),
    /// It runs, and its guest could not be woken.
    NotWoken(Failure),
}

impl From<Failure> for NotRestored {
    fn from(failure: Failure) -> Self {
        Self::NotStarted(failure)
    }
}

/// Starts a VM from a snapshot, and wakes its guest. What cannot be woken is left as it is.
pub(super) async fn restore_vm(
    context: &Context,
    vm: &str,
    job: Restoration,
    cancelled: &Arc<AtomicBool>,
) -> Result<(Snapshot, Awake), Failure> {
    let payload = job.spec.payload;
    let restored = restore_and_wake(context, vm, job, cancelled).await;
    restored.map_err(|error| match error {
        NotRestored::NotStarted(failure) => failure,
        NotRestored::NotWoken(failure) => not_woken(failure, vm, payload),
    })
}

/// The same for whoever has to do something about a guest that could not be woken.
pub(super) async fn restore_and_wake(
    context: &Context,
    vm: &str,
    job: Restoration,
    cancelled: &Arc<AtomicBool>,
) -> Result<(Snapshot, Awake), NotRestored> {
    let failed = |error: &Error| failure(context, vm, Wanted::Start, error);
    let parsed = name(vm)?;
    let inventory = context.inventory()?;
    not_of_another(&inventory, vm, Wanted::Start)?;
    let home = inventory.home().clone();
    // Of all that follows: what is asked for is not there for each of its steps anew.
    let in_all = Deadline::new(context.timeout.unwrap_or(DEFAULT_TIMEOUT), None);
    let flag = Arc::clone(cancelled);
    let Restoration {
        snapshot,
        verify,
        spec,
        payload,
    } = job;
    let clone = spec.clone;
    let restored = blocking(move || {
        let deadline = in_all.cancelled_by(&flag);
        let snapshot = Snapshot::open_verified(&home, &snapshot, verify, deadline)?;
        let restored = restore(&home, &parsed, &snapshot, &spec, deadline)?;
        Ok((snapshot, restored))
    });
    // Held until the guest is awake: nobody else stops or snapshots it meanwhile.
    let (snapshot, restored) = restored.await.map_err(|error| failed(&error))?;
    if let Some(slept_in) = restored.left_behind() {
        context.ui.note(&format!(
            "{vm} was asleep in {}, which is kept: nothing of it is in this one",
            slept_in.display()
        ));
    }
    let token = snapshot.manifest.token.clone();
    let woken = wake_restored(
        context,
        vm,
        restored,
        (Some(token), clone, payload),
        Patience::with_what_is_left(context, in_all),
        cancelled,
    );
    let awake = woken.await.map_err(NotRestored::NotWoken)?;
    if !awake.was_ready && !awake.lease_expired {
        return Err(NotRestored::NotWoken(booted_afresh(vm)));
    }
    Ok((snapshot, awake))
}

/// Tells a guest that it was restored, and notes that it knows: with the token, whether it is a clone,
/// and what it is handed. A guest that is awake is awake, whether that can be noted or not: it has begun
/// to work, and nobody may end its VM for that, or give up what it did.
pub(super) async fn wake_restored(
    context: &Context,
    vm: &str,
    restored: Restored,
    (token, clone, payload): (Option<Token>, bool, Option<Payload>),
    patience: Patience,
    cancelled: &AtomicBool,
) -> Result<Awake, Failure> {
    let endpoint = Endpoint::unix(restored.socket()).with_port(restored.record().port);
    let asked = || {
        let wake = wake(token.clone(), WakeCause::Restored, clone)?;
        let payload = payload.clone();
        Ok(Wake { payload, ..wake })
    };
    let awake = tokio::select! {
        awake = wake_guest(context, vm, &endpoint, asked, patience) => awake?,
        () = until_raised(cancelled) => return Err(Failure::interrupted().of(vm)),
    };
    if let Err(error) = blocking(move || restored.woken()).await {
        context.ui.warning(&format!(
            "{vm}: its guest is awake, and that cannot be written down: {error}; until it is, `mvmctl \
             doctor` has the guest as not told, and the next `mvmctl vm wake {vm}` or `vm run` tells it \
             once more that it was restored"
        ));
    }
    Ok(awake)
}

/// What to do about a guest that could not be told, whether it is to be handed a payload or not.
pub(super) fn not_woken(mut failure: Failure, vm: &str, payload: bool) -> Failure {
    if failure.code == BOOTED_AFRESH {
        return failure;
    }
    if matches!(
        &*failure.code,
        RegistryError::VM_ENDED | RegistryError::VSOCK_ENDED
    ) {
        failure.message = format!("its guest could not be woken: {}", failure.message);
        return failure;
    }
    if failure.code == HELD {
        // Whether its work is frozen the guest says itself.
        failure.message = format!(
            "the VM runs, and its guest could not be personalized: {}",
            failure.message
        );
        return held(failure, vm);
    }
    failure.message = format!(
        "the VM runs, and its guest could not be woken: {}",
        failure.message
    );
    let again = if payload { " --payload FILE" } else { "" };
    failure.hint(format!(
        "it is left as it is: `mvmctl vm logs {vm}` has its console, `mvmctl vm wake {vm}{again}` tries \
         again, `mvmctl vm stop --force {vm}` ends it; it shares its random numbers with the \
         snapshot until it is woken"
    ))
}

/// The code of a failure where a guest does not go on from its snapshot.
const BOOTED_AFRESH: &str = "booted-afresh";

/// A guest that goes on where its snapshot was taken was asleep, or says that it has run on since.
fn booted_afresh(vm: &str) -> Failure {
    let mut failure = Failure::failed(
        "the guest was not asleep when it was woken: it does not go on where the snapshot was taken, but \
         has booted afresh",
    );
    failure.code = BOOTED_AFRESH.into();
    failure.hint(format!(
        "some VMMs boot a guest anew that crashes at its restore: `mvmctl vm logs {vm}` has its console. \
         It is left as it is, and `mvmctl vm stop --force {vm}` ends it"
    ))
    .of(vm)
}

/// How long to go on trying to wake a guest.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// In all.
    at_most: Duration,
    /// One try; none where that may take what is left of it.
    deadlines: Option<Deadlines>,
}

impl Patience {
    /// What was asked for, for what was asked for.
    pub(super) fn of(context: &Context) -> Self {
        Self::within(context.timeout)
    }

    /// The same after the steps before have taken some of what was asked for.
    fn with_what_is_left(context: &Context, in_all: Deadline<'_>) -> Self {
        Self::within(context.timeout.map(|_| in_all.left()))
    }

    fn within(asked: Option<Duration>) -> Self {
        Self {
            at_most: asked.unwrap_or(ROUSE),
            deadlines: asked.is_none().then(Deadlines::default),
        }
    }

    /// Those of a try that begins now.
    fn next(&self, until: Instant) -> Deadlines {
        self.deadlines.unwrap_or_else(|| {
            let left = until.saturating_duration_since(Instant::now());
            // In whole milliseconds, since it is told if it is up.
            let left = u64::try_from(left.as_micros().div_ceil(1000)).unwrap_or(u64::MAX);
            Deadlines::all(Duration::from_millis(left))
        })
    }

    /// Whatever was asked for: a guest that was put to sleep for nothing is woken in any case.
    pub(super) fn after_an_abort() -> Self {
        Self {
            at_most: AFTER_AN_ABORT,
            deadlines: Some(Deadlines::default()),
        }
    }
}

/// Wakes a guest whose VM has just begun to run on, trying again until it works, cannot work, or
/// its time is up. A request whose answer was lost is sent again unchanged, and gets the same
/// answer: nothing runs twice.
pub(super) async fn wake_guest(
    context: &Context,
    vm: &str,
    endpoint: &Endpoint,
    asked: impl Fn() -> Result<Wake, Failure>,
    patience: Patience,
) -> Result<Awake, Failure> {
    let until = Instant::now() + patience.at_most;
    let mut request = None;
    loop {
        let deadlines = patience.next(until);
        let tried = match context.dialer.connect(endpoint, &deadlines).await {
            Ok(mut session) => {
                // The time that goes along is that of the first connection.
                let request: &Wake = match &request {
                    Some(request) => request,
                    None => request.insert(asked()?),
                };
                session.wake(request.clone()).await
            }
            Err(error) => Err(error),
        };
        match tried {
            Ok(awake) => return Ok(awake),
            Err(error)
                if !error.is_retryable()
                    || error.code() == HELD
                    || Instant::now() + BETWEEN_TRIES >= until =>
            {
                return Err(Failure::about(vm, &error));
            }
            Err(_) => {
                if let Some(ended) = ended(context, vm) {
                    return Err(ended);
                }
                tokio::time::sleep(BETWEEN_TRIES).await;
            }
        }
    }
}

/// What has become of a VM whose guest will not be reached any more: it has ended by itself, or its vsock
/// backend has.
fn ended(context: &Context, vm: &str) -> Option<Failure> {
    let error = context.inventory().ok()?.find(vm).ok()?.endpoint().err()?;
    let is_over = matches!(error, RegistryError::Ended(_) | RegistryError::VsockEnded);
    is_over.then(|| Failure::registry(vm, &error))
}
