//! How a VM is put away that is not to run any more.

use crate::commands::Context;
use crate::commands::machine::{Wanted, blocking, failure};
use crate::commands::snapshot::{Taking, snapshot_vm};
use crate::report::Failure;
use mvm_protocol::drop_in::Secs;
use mvm_registry::{Home, VmName};
use mvm_vmm::{Stop, Stopped};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// How long it may take that was given no `--timeout`. systemd waits 90 s for a service to stop.
const DEFAULT_TIMEOUT: Duration = Duration::from_mins(1);

/// How much of that is kept for stopping a VM that could not be put to sleep: a third, and no more than
/// this.
const KEPT_FOR_STOP: Duration = Duration::from_secs(20);

/// How long an agent lets itself be told that it may take to get ready: a day.
const LONGEST_PREPARATION: Duration = Duration::from_secs(86_400);

/// What the names of the snapshots begin with in which VMs sleep that were put to sleep here. When
/// their VM has gone on they are removed: nobody else knows of them.
const OWN: &str = "run-";

/// What to do when this program is asked to end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum OnTerm {
    /// The VM is put to sleep; the next run goes on where it was
    Sleep,
    /// The guest powers off
    #[default]
    Stop,
}

/// What became of it.
pub(super) enum Put {
    /// It sleeps in that snapshot.
    Asleep(PathBuf),
    /// It has stopped, in that way.
    Stopped(&'static str),
}

/// Puts a VM away within `--timeout`.
///
/// One that cannot be put to sleep is stopped all the same, since it is not to run on without a
/// supervisor; that is a failure, for its state is lost.
pub(super) async fn put_away(
    context: &Context,
    home: &Home,
    vm: &VmName,
    on_term: OnTerm,
    cancelled: Arc<AtomicBool>,
) -> Result<Put, Failure> {
    let at_most = context.timeout.unwrap_or(DEFAULT_TIMEOUT);
    let until = Instant::now() + at_most;
    let mut not_asleep = None;
    if on_term == OnTerm::Sleep {
        let at_most = at_most.saturating_sub(KEPT_FOR_STOP.min(at_most / 3));
        match sleep(context, home, vm, at_most, cancelled).await {
            Ok(folder) => return Ok(Put::Asleep(folder)),
            Err(failure) => not_asleep = Some(failure),
        }
    }
    let how = Stop::Ask(until.saturating_duration_since(Instant::now()));
    let (at, name) = (home.clone(), vm.clone());
    let stopped = blocking(move || mvm_vmm::machine::stop(&at, &name, how)).await;
    let stopped = stopped.map_err(|error| failure(context, vm.as_str(), Wanted::Stop, &error))?;
    let how = match stopped {
        Stopped::Already => "it had ended already",
        Stopped::Clean => "it has stopped",
        Stopped::Forced => "it did not stop when asked to, and was ended",
        Stopped::Unasked => "its snapshot was broken off, and it was ended",
        Stopped::Unrestored => "its restore was broken off, and it was ended",
    };
    match not_asleep {
        None => Ok(Put::Stopped(how)),
        Some(mut failure) => {
            failure.message = format!(
                "it could not be put to sleep, so it was stopped ({how}): {}",
                failure.message
            );
            // That of a snapshot speaks of a VM that runs on.
            failure.hint =
                Some("the next run begins anew; `--on-term stop` asks for no sleep".into());
            Err(failure)
        }
    }
}

async fn sleep(
    context: &Context,
    home: &Home,
    vm: &VmName,
    at_most: Duration,
    cancelled: Arc<AtomicBool>,
) -> Result<PathBuf, Failure> {
    let stamp = jiff::Timestamp::now().strftime("%Y-%m-%dT%H-%M-%S%.3fZ");
    let wanted = Taking {
        to: Some(own_snapshots(home, vm).join(format!("{OWN}{stamp}"))),
        stop: true,
        // Both together within the time.
        deadline: Secs::new((at_most / 2).min(LONGEST_PREPARATION))
            .ok_or_else(|| Failure::usage("--timeout leaves no time to put a VM to sleep"))?,
        require_freeze: false,
        idle_for: None,
        at_most: Some(at_most / 2),
    };
    let (made, _) = snapshot_vm(context, vm.as_str(), wanted, cancelled).await?;
    Ok(made.snapshot.folder)
}

fn own_snapshots(home: &Home, vm: &VmName) -> PathBuf {
    home.vm(vm).file("snapshots")
}

/// Removes the snapshot in which a VM slept that was put to sleep here, and has gone on. It has taken
/// another course since: nobody may go on from there once more.
pub(super) fn forget_sleep(home: &Home, vm: &VmName, folder: &Path) -> std::io::Result<()> {
    let name = folder.file_name().and_then(|name| name.to_str());
    let is_own = name.is_some_and(|name| name.starts_with(OWN))
        && folder.parent() == Some(&*own_snapshots(home, vm));
    if is_own {
        std::fs::remove_dir_all(folder)
    } else {
        Ok(())
    }
}
