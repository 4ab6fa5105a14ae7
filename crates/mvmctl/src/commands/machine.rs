//! What the commands share that start, stop and remove VMs.

use super::Context;
use crate::report::{Failure, Kind};
use mvm_vmm::error::Logs;
use mvm_vmm::{Error, Home, VmName};

/// Reads a VM's name. An address will not do: it is about the VM itself, not its agent.
pub(crate) fn name(text: &str) -> Result<VmName, Failure> {
    VmName::new(text).map_err(|error| {
        Failure::usage(error.to_string())
            .hint(error.hint())
            .of(text)
    })
}

/// `$MVM_HOME`
pub(crate) fn home(context: &Context) -> Result<Home, Failure> {
    Ok(Home::at(context.inventory()?.home()))
}

/// Runs what blocks on a thread of its own.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        // It was not cancelled, so it panicked; what it says has been said.
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}

/// A failure in mvmctl's terms. What the VMM and the guest said last goes to stderr before it.
pub(crate) fn failure(context: &Context, vm: &str, error: &Error) -> Failure {
    if let Some(logs) = error.logs() {
        tell_logs(context, logs);
    }
    // The inventory knows the nearest name.
    if let Error::NoSuchVm { .. } = error
        && let Ok(Err(error)) = context.inventory().map(|vms| vms.find(vm))
    {
        return Failure::about(vm, &error);
    }
    let (kind, code) = match error {
        Error::NoSuchVm { .. } => (Kind::Unreachable, "no-such-vm"),
        Error::BadName(_) | Error::NoSuchBackend { .. } => (Kind::Usage, "usage"),
        Error::Locked { .. } => (Kind::Failed, "busy"),
        _ => (Kind::Failed, "failed"),
    };
    Failure {
        vm: Some(vm.to_owned()),
        kind,
        code: code.into(),
        message: error.to_string(),
        hint: Some(error.hint()),
        retryable: matches!(error, Error::Locked { .. }),
    }
}

/// The ends of logs, on stderr.
pub(crate) fn tell_logs(context: &Context, logs: &Logs) {
    for line in logs.to_string().lines() {
        context.ui.note(line);
    }
}
