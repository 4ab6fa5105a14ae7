//! `mvmctl vm restore DIR --name NEW`

use super::Context;
use super::machine::{Wanted, blocking, failure, name, not_of_another};
use super::payload::PayloadArg;
use super::start::{cancelled_by_signals, until_raised};
use super::wake::{HELD, held, is_well, table, wake};
use crate::render::data;
use crate::report::{Failure, Outcome};
use crate::vm_name::{Marks, complete};
use clap_complete::engine::ArgValueCompleter;
use mvm_client::Endpoint;
use mvm_protocol::lifecycle::{Awake, Payload, Wake, WakeCause};
use mvm_registry::{Home, VmName};
use mvm_vmm::suspend::{RestoreSpec, restore};
use mvm_vmm::{Deadline, Snapshot, Verify};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// How long loading the state may take that was given no `--timeout`.
pub(super) const DEFAULT_TIMEOUT: Duration = Duration::from_mins(5);

/// How long a guest that runs may take to be awake, restore commands included.
const ROUSE: Duration = Duration::from_mins(2);

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
        let vm = name(&self.name)?;
        let inventory = context.inventory()?;
        not_of_another(&inventory, &self.name, Wanted::Start)?;
        let home = inventory.home().clone();
        let payload = self.payload.read()?;
        let at_most = context.timeout.unwrap_or(DEFAULT_TIMEOUT);
        let progress = context.ui.progress(&format!("restoring {vm}"));
        let begun = Instant::now();
        let cancelled = cancelled_by_signals(context);
        let restoring = Restoring {
            home: &home,
            vm: &vm,
            folder: self.snapshot,
            verify: self.verify.into(),
            spec: RestoreSpec {
                clone: self.clone,
                pinned: self.marks.pinned(),
                labels: self.marks.labels,
            },
            payload,
        };
        let restored = restore_and_wake(context, restoring, at_most, &cancelled).await;
        let (snapshot, awake) = restored.map_err(|error| match error {
            NotRestored::NotStarted(failure) => failure,
            NotRestored::NotWoken(failure) => not_woken(failure, &self.name),
        })?;
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

/// What is to be restored.
pub(super) struct Restoring<'a> {
    pub(super) home: &'a Home,
    pub(super) vm: &'a VmName,
    /// The snapshot's folder.
    pub(super) folder: PathBuf,
    pub(super) verify: Verify,
    pub(super) spec: RestoreSpec,
    pub(super) payload: Option<Payload>,
}

/// Why a VM does not go on from a snapshot.
pub(super) enum NotRestored {
    /// It was not started, or was ended again.
    NotStarted(Failure),
    /// It runs, and its guest could not be woken.
    NotWoken(Failure),
}

/// Starts a VM from a snapshot and wakes its guest.
pub(super) async fn restore_and_wake(
    context: &Context,
    restoring: Restoring<'_>,
    at_most: Duration,
    cancelled: &Arc<AtomicBool>,
) -> Result<(Snapshot, Awake), NotRestored> {
    let name = restoring.vm.as_str();
    let (home, vm, flag) = (
        restoring.home.clone(),
        restoring.vm.clone(),
        Arc::clone(cancelled),
    );
    let (folder, verify, spec) = (restoring.folder, restoring.verify, restoring.spec);
    let (clone, payload) = (spec.clone, restoring.payload);
    let restored = blocking(move || {
        let snapshot = Snapshot::open_verified(&home, &folder, verify)?;
        let deadline = Deadline::new(at_most, Some(&flag));
        let restored = restore(&home, &vm, &snapshot, &spec, deadline)?;
        Ok((snapshot, restored))
    });
    // Held until the guest is awake: nobody else stops or snapshots it meanwhile.
    let (snapshot, restored) = restored
        .await
        .map_err(|error| NotRestored::NotStarted(failure(context, name, Wanted::Start, &error)))?;
    let token = snapshot.manifest.token.clone();
    let endpoint = Endpoint::unix(restored.socket()).with_port(restored.record().port);
    let asked = || {
        let wake = wake(Some(token.clone()), WakeCause::Restored, clone)?;
        let payload = payload.clone();
        Ok(Wake { payload, ..wake })
    };
    match wake_guest(context, name, &endpoint, asked, Some(cancelled)).await {
        Ok(awake) => Ok((snapshot, awake)),
        Err(failure) => Err(NotRestored::NotWoken(failure)),
    }
}

fn not_woken(mut failure: Failure, vm: &str) -> Failure {
    if failure.code == HELD {
        failure.message = format!("the VM runs, and its guest is frozen: {}", failure.message);
        return held(failure, vm);
    }
    failure.message = format!(
        "the VM runs, and its guest could not be woken: {}",
        failure.message
    );
    failure.hint(format!(
        "it is left as it is: `mvmctl vm logs {vm}` has its console, `mvmctl vm wake {vm}` tries \
         again, `mvmctl vm stop --force {vm}` ends it; it shares its random numbers with the \
         snapshot until it is woken"
    ))
}

/// Wakes a guest whose VM has just begun to run on, trying again until it works, cannot work, or
/// its time is up. A request whose answer was lost is sent again unchanged, and gets the same
/// answer: nothing runs twice.
pub(super) async fn wake_guest(
    context: &Context,
    vm: &str,
    endpoint: &Endpoint,
    asked: impl Fn() -> Result<Wake, Failure>,
    cancelled: Option<&AtomicBool>,
) -> Result<Awake, Failure> {
    let deadlines = context.deadlines();
    let until = Instant::now() + context.timeout.unwrap_or(ROUSE);
    let mut request = None;
    let trying = async {
        loop {
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
                    if !error.is_retryable() || error.code() == HELD || Instant::now() >= until =>
                {
                    return Err(Failure::about(vm, &error));
                }
                Err(_) => tokio::time::sleep(BETWEEN_TRIES).await,
            }
        }
    };
    let Some(cancelled) = cancelled else {
        return trying.await;
    };
    tokio::select! {
        awake = trying => awake,
        () = until_raised(cancelled) => Err(Failure::failed("interrupted").of(vm)),
    }
}
