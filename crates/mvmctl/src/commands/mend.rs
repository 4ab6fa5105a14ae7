//! What is done before other commands for a VM whose snapshot was broken off, by `kill -9` or a crash
//! of this machine's session: nobody else would let it run on.

use super::Context;
use super::machine::{Wanted, blocking, cancelled_by_signals, failure, home};
use super::restore::{Patience, wake_guest};
use super::waking::wake;
use crate::report::Failure;
use mvm_client::Endpoint;
use mvm_protocol::lifecycle::{Awake, WakeCause};
use mvm_registry::{Error as RegistryError, VmName};
use mvm_vmm::suspend::mend;
use mvm_vmm::{Deadline, Error};
use std::sync::Arc;
use std::time::Duration;

/// How long the VM may take to run on.
const RUN_ON: Duration = Duration::from_mins(1);

/// Lets the VM run on and wakes its guest; what the guest answered, or `None` if there was nothing to
/// mend. Says so on stderr.
pub(super) async fn mend_if_broken_off(
    context: &Context,
    vm: &str,
) -> Result<Option<Awake>, Failure> {
    let (Ok(name), Ok(home)) = (VmName::new(vm), home(context)) else {
        return Ok(None);
    };
    let cancelled = cancelled_by_signals(context);
    let progress = context.ui.progress(&format!(
        "looking after {vm}, in case a snapshot of it was broken off"
    ));
    let flag = Arc::clone(&cancelled);
    let mended = blocking(move || {
        let deadline = Deadline::new(RUN_ON, Some(&flag));
        mend(&home, &name, deadline)
    });
    let mended = mended.await;
    // What the command does afterwards a signal ends.
    drop(cancelled);
    drop(progress);
    let session = match mended {
        Ok(Some(session)) => session,
        // Whoever holds the lock is taking that very snapshot. What cannot be looked at, the command
        // itself tells of.
        Ok(None)
        | Err(
            Error::Registry(
                RegistryError::Locked { .. }
                | RegistryError::NoSuchVm { .. }
                | RegistryError::NotOurs { .. }
                | RegistryError::BadRecord { .. }
                | RegistryError::NotTrusted { .. }
                | RegistryError::PermissionDenied { .. },
            )
            | Error::NoSuchBackend { .. },
        ) => return Ok(None),
        Err(error) => {
            let mut failure = failure(context, vm, Wanted::Snapshot, &error);
            failure.message = format!(
                "a snapshot of it was broken off, and it cannot be made to run on: {}",
                failure.message
            );
            return Err(failure.hint(format!("`mvmctl vm stop {vm}` ends it")));
        }
    };
    let endpoint = Endpoint::unix(session.socket()).with_port(session.record().port);
    // Without a token: it has gone with the program that made it up.
    let asked = || wake(None, WakeCause::Aborted, false);
    let mut requests = context.termination_requests();
    let awake = tokio::select! {
        awake = wake_guest(context, vm, &endpoint, asked, Patience::after_an_abort()) => awake?,
        _ = requests.next() => return Err(Failure::failed(
            "interrupted: a snapshot of it was broken off; it runs on now, and its guest was not woken",
        )
        .hint(format!("`mvmctl vm wake {vm}` wakes it"))
        .of(vm)),
    };
    context.ui.note(&format!(
        "{vm}: a snapshot of it was broken off; it runs on now, its guest was woken, and what had been \
         written is removed"
    ));
    Ok(Some(awake))
}
