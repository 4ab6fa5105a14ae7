//! What is done before other commands for a VM whose snapshot was broken off, by `kill -9` or a crash
//! of this machine's session: nobody else would let it run on.

use super::Context;
use super::machine::{blocking, failure, home};
use super::restore::rouse;
use super::wake::wake;
use crate::report::Failure;
use mvm_client::Endpoint;
use mvm_protocol::lifecycle::{Awake, WakeCause};
use mvm_vmm::suspend::mend;
use mvm_vmm::{Error, Patience, VmName};
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
    let mended = blocking(move || mend(&home, &name, Patience::new(RUN_ON, None))).await;
    let taking = match mended {
        Ok(Some(taking)) => taking,
        Ok(None) => return Ok(None),
        // Whoever holds it is taking that very snapshot. What cannot be looked at, the command itself
        // tells of.
        Err(
            Error::Locked { .. }
            | Error::NoSuchVm { .. }
            | Error::NotOurs { .. }
            | Error::Record { .. }
            | Error::NoSuchBackend { .. },
        ) => return Ok(None),
        Err(error) => {
            let mut failure = failure(context, vm, &error);
            failure.message = format!(
                "a snapshot of it was broken off, and it cannot be made to run on: {}",
                failure.message
            );
            return Err(failure.hint(format!("`mvmctl vm stop {vm}` ends it")));
        }
    };
    let endpoint = Endpoint::unix(taking.socket()).with_port(taking.record().port);
    // Without a token: it has gone with the program that made it up.
    let asked = || wake(None, WakeCause::Aborted, false);
    let awake = rouse(context, vm, &endpoint, asked, None).await?;
    context.ui.note(&format!(
        "{vm}: a snapshot of it was broken off; it runs on now, its guest was woken, and what had been \
         written is removed"
    ));
    Ok(Some(awake))
}
