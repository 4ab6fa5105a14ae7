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
use mvm_client::{Deadlines, Endpoint};
use mvm_protocol::lifecycle::{Awake, Wake, WakeCause};
use mvm_vmm::suspend::{RestoreSpec, restore};
use mvm_vmm::{Deadline, Error, Snapshot, Verify};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long loading the state may take that was given no `--timeout`.
const DEFAULT_TIMEOUT: Duration = Duration::from_mins(5);

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
enum When {
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
        let failed = |error: &Error| failure(context, &self.name, Wanted::Start, error);
        let vm = name(&self.name)?;
        let inventory = context.inventory()?;
        not_of_another(&inventory, &self.name, Wanted::Start)?;
        let home = inventory.home().clone();
        let payload = self.payload.read()?;
        let at_most = context.timeout.unwrap_or(DEFAULT_TIMEOUT);
        let progress = context.ui.progress(&format!("restoring {vm}"));
        let begun = Instant::now();
        let cancelled = cancelled_by_signals(context);
        let flag = Arc::clone(&cancelled);
        let (folder, clone, verify) = (self.snapshot, self.clone, self.verify.into());
        let spec = RestoreSpec {
            clone,
            pinned: self.marks.pinned(),
            labels: self.marks.labels,
            console_keeper: Some(context.console_keeper),
        };
        let restored = blocking(move || {
            let snapshot = Snapshot::open_verified(&home, &folder, verify)?;
            let deadline = Deadline::new(at_most, Some(&flag));
            let restored = restore(&home, &vm, &snapshot, &spec, deadline)?;
            Ok((snapshot, restored))
        });
        // Held until the guest is awake: nobody else stops or snapshots it meanwhile.
        let (snapshot, restored) = restored.await.map_err(|error| failed(&error))?;
        let token = snapshot.manifest.token;
        let endpoint = Endpoint::unix(restored.socket()).with_port(restored.record().port);
        let asked = || {
            let wake = wake(Some(token.clone()), WakeCause::Restored, clone)?;
            let payload = payload.clone();
            Ok(Wake { payload, ..wake })
        };
        let patience = Patience::of(context);
        let woken = tokio::select! {
            woken = wake_guest(context, &self.name, &endpoint, asked, patience) => woken,
            () = until_raised(&cancelled) => Err(Failure::failed("interrupted").of(&self.name)),
        };
        let awake = woken.map_err(|failure| not_woken(failure, &self.name))?;
        if !awake.was_ready && !awake.lease_expired {
            return Err(booted_afresh(&self.name));
        }
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

/// A guest that goes on where its snapshot was taken was asleep, or says that it has run on since.
fn booted_afresh(vm: &str) -> Failure {
    Failure::failed(
        "the guest was not asleep when it was woken: it does not go on where the snapshot was taken, but \
         has booted afresh",
    )
    .hint(format!(
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
    /// One try.
    deadlines: Deadlines,
}

impl Patience {
    /// What was asked for, for what was asked for.
    pub(super) fn of(context: &Context) -> Self {
        Self {
            at_most: context.timeout.unwrap_or(ROUSE),
            deadlines: context.deadlines(),
        }
    }

    /// Whatever was asked for: a guest that was put to sleep for nothing is woken in any case.
    pub(super) fn after_an_abort() -> Self {
        Self {
            at_most: AFTER_AN_ABORT,
            deadlines: Deadlines::default(),
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
        let tried = match context.dialer.connect(endpoint, &patience.deadlines).await {
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
}
