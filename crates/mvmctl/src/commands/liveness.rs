//! Whether a guest still lives, for commands that may be silent for any time: a `watch` beside their
//! own connection, whose heartbeats tell.

use super::Context;
use super::running::{Cut, LastHeard, Why};
use crate::backoff::Backoff;
use crate::report::{Failure, Kind};
use crate::vm_state::{Now, VmState};
use mvm_client::{Deadlines, Error, Vm, Watcher};
use std::time::Duration;
use tokio::time::timeout;

/// How much later than it should a guest may do something before it is taken to stand still.
pub(super) const LATE: Duration = Duration::from_secs(5);

/// How many heartbeats come in that time.
const HEARTBEATS: u32 = 3;

/// How long what a VM has sent may take to arrive once it does not run any more.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How long nothing may come from a guest before it is taken to stand still: an answer's deadline,
/// which `--timeout` sets, and then some.
pub(super) fn silence(context: &Context) -> Duration {
    context.deadlines().answer.saturating_add(LATE)
}

/// Waits until the guest is about to be frozen, the VM runs no more, or the guest stands still: nothing
/// has come from it for so long, neither here nor on the connection that `heard` is about.
pub(super) async fn lost(
    context: &Context,
    vm: &Vm,
    state: &mut VmState<'_>,
    heard: &LastHeard,
) -> Cut {
    let silence = silence(context);
    let watching = async {
        let mut backoff = Backoff::new();
        loop {
            match watch(context, vm, silence, heard).await {
                Ok(()) => return Why::AboutToBeFrozen,
                // Such as one that has as many connections as it takes: it lives.
                Err(Error::Refused(refusal)) if refusal.retryable => heard.heard(),
                // One that will not be watched tells nothing.
                Err(error) if !error.is_retryable() => return std::future::pending().await,
                Err(error) if heard.elapsed() >= silence => {
                    return Why::StandsStill(stands_still(vm, silence, &error));
                }
                Err(_) => {}
            }
            tokio::time::sleep(backoff.pause().min(silence)).await;
        }
    };
    let why = tokio::select! {
        cut = not_running(state) => cut.why,
        why = watching => why,
    };
    // At once: a connection that is open when the VM is frozen stays so, and silent.
    Cut {
        why,
        after_silence: Duration::ZERO,
    }
}

/// Watches until the guest is about to be frozen.
async fn watch(
    context: &Context,
    vm: &Vm,
    silence: Duration,
    heard: &LastHeard,
) -> Result<(), Error> {
    let session = context.connect(vm, &Deadlines::all(silence)).await?;
    let (_, mut watcher) = Watcher::start(session, silence / HEARTBEATS).await?;
    loop {
        heard.heard();
        if watcher.next().await?.is_none() {
            return Ok(());
        }
    }
}

/// Waits until the VM runs no more, if anybody tells. What it has sent before is still on its way.
pub(super) async fn not_running(state: &mut VmState<'_>) -> Cut {
    let now = state.until_not_running().await;
    let why = match now {
        Ok(Now::Off(error)) | Err(error) => Failure::about(state.name(), &error),
        Ok(Now::Ended(_, failure)) => failure,
        Ok(Now::Runs(_)) => return std::future::pending().await,
    };
    Cut {
        why: Why::NotRunning(why),
        after_silence: LAST_WORDS,
    }
}

/// The failure of a guest from which nothing comes any more.
fn stands_still(vm: &Vm, silence: Duration, error: &Error) -> Failure {
    Failure {
        kind: Kind::Unreachable,
        code: "timed-out".into(),
        retryable: true,
        ..Failure::failed(format!(
            "the guest stands still: nothing has come from it for {silence:?}; {error}"
        ))
    }
    .of(&vm.name)
    .hint("it is frozen, stuck or overloaded; --timeout allows a longer silence")
}

/// Waits until a limit is over that the guest was given. To keep it takes TERM, a quarter of a second,
/// KILL, and a second for the command's output.
pub(super) async fn limit(vm: &str, limit: Option<Duration>) -> Cut {
    let Some(limit) = limit else {
        return std::future::pending().await;
    };
    tokio::time::sleep(limit).await;
    let failure = Failure {
        kind: Kind::Unreachable,
        code: "timed-out".into(),
        ..Failure::failed(format!(
            "the guest stands still: it was to end the command after {limit:?}, and has said nothing \
             for {LATE:?} after that"
        ))
    };
    Cut {
        why: Why::StandsStill(
            failure
                .of(vm)
                .hint("whether the command runs on is not known"),
        ),
        after_silence: LATE,
    }
}

/// Waits for a change of the VM, or for that long.
pub(super) async fn pause(state: &mut VmState<'_>, at_most: Duration) {
    let _ = timeout(at_most, state.changed()).await;
}
