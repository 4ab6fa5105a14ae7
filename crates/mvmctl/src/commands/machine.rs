//! What the commands share that start, stop and remove VMs.

use super::Context;
use crate::report::{Failure, Kind};
use mvm_registry::{Error as RegistryError, Home, Inventory, VmName, VmState};
use mvm_vmm::Error;
use mvm_vmm::error::Logs;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::AbortHandle;

/// Reads a VM's name. An address will not do: it is about the VM itself, not its agent.
pub(crate) fn name(text: &str) -> Result<VmName, Failure> {
    VmName::new(text).map_err(|error| Failure::registry(text, &error))
}

/// `$MVM_HOME`
pub(crate) fn home(context: &Context) -> Result<Home, Failure> {
    Ok(context.inventory()?.home().clone())
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

/// What is wanted of a VM, for what to say where it is another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    Start,
    Stop,
    Remove,
    Logs,
    Snapshot,
    Pause,
    Touch,
}

impl Wanted {
    /// What to do about a VM that something else runs.
    fn of_another(self, vm: &str) -> String {
        match self {
            Self::Start => "choose another name".into(),
            Self::Stop => format!(
                "whatever started it has to stop it; `mvmctl vm sleep {vm}` makes its guest ready for \
                 that: all is written, and `mvmctl vm wake {vm}` has it go on if it is not stopped"
            ),
            Self::Remove => {
                "whatever started it has to end it, and then its socket is not found any more"
                    .into()
            }
            Self::Logs => "its VMM has the console: see that one's arguments and log".into(),
            Self::Pause => "have whatever started it pause it and let it run on".into(),
            Self::Touch => {
                "the fleet leaves it alone: whatever started it decides how long it runs".into()
            }
            Self::Snapshot => format!(
                "have whatever started it snapshot it, between `mvmctl vm sleep {vm}` and `mvmctl vm \
                 wake {vm}`"
            ),
        }
    }
}

/// A failure in mvmctl's terms. What the VMM and the guest said last goes to stderr before it.
pub(crate) fn failure(context: &Context, vm: &str, wanted: Wanted, error: &Error) -> Failure {
    if let Some(logs) = error.logs() {
        tell_logs(context, logs);
    }
    let (kind, code) = match error {
        Error::Registry(error) => return registry_failure(context, vm, wanted, error),
        Error::NoSuchBackend { .. } => (Kind::Usage, "usage"),
        Error::Suspended { .. } => (Kind::Failed, "suspended"),
        _ => (Kind::Failed, "failed"),
    };
    Failure {
        vm: Some(vm.to_owned()),
        kind,
        code: code.into(),
        message: error.to_string(),
        is_list: false,
        hint: Some(error.hint()),
        retryable: false,
    }
}

fn registry_failure(context: &Context, vm: &str, wanted: Wanted, error: &RegistryError) -> Failure {
    // The inventory knows those that something else runs, and the nearest name.
    if let RegistryError::NoSuchVm { .. } = error
        && let Ok(inventory) = context.inventory()
    {
        return match not_of_another(&inventory, vm, wanted) {
            Err(failure) => failure,
            Ok(()) => match inventory.find(vm) {
                Err(error) => Failure::registry(vm, &error),
                // It has come meanwhile.
                Ok(_) => Failure::registry(vm, error),
            },
        };
    }
    let failure = Failure::registry(vm, error);
    match error {
        RegistryError::NotOurs { .. } => failure.hint(wanted.of_another(vm)),
        // It is there, and is not as it was wanted.
        RegistryError::NoSuchVm { .. } | RegistryError::BadName { .. } => failure,
        _ => Failure {
            kind: Kind::Failed,
            ..failure
        },
    }
}

/// Refuses a VM that something else runs, and says who and what can be done.
pub(crate) fn not_of_another(
    inventory: &Inventory,
    vm: &str,
    wanted: Wanted,
) -> Result<(), Failure> {
    match inventory.find(vm) {
        Ok(found) if matches!(found.state, VmState::NotOurs { .. }) => {
            let socket = found.address().path().unwrap_or(Path::new(vm));
            let error = RegistryError::not_ours(socket.to_owned());
            Err(Failure::registry(vm, &error).hint(wanted.of_another(vm)))
        }
        _ => Ok(()),
    }
}

/// The ends of logs, on stderr.
pub(crate) fn tell_logs(context: &Context, logs: &Logs) {
    for line in logs.to_string().lines() {
        context.ui.note(line);
    }
}

/// A flag that a signal to this program raises in place of ending it, since what it has started has to be
/// ended first. When this is gone signals end the program again, unless somebody else takes them.
pub(super) struct Cancelled {
    flag: Arc<AtomicBool>,
    listening: AbortHandle,
}

impl Deref for Cancelled {
    type Target = Arc<AtomicBool>;

    fn deref(&self) -> &Self::Target {
        &self.flag
    }
}

impl Drop for Cancelled {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// For work on a thread of its own, which looks at the flag. To be called in the runtime.
pub(super) fn cancelled_by_signals(context: &Context) -> Cancelled {
    let flag = Arc::new(AtomicBool::new(false));
    let mut requests = context.termination_requests();
    let raised = Arc::clone(&flag);
    let listening = tokio::spawn(async move {
        loop {
            requests.next().await;
            raised.store(true, Ordering::Relaxed);
        }
    });
    Cancelled {
        flag,
        listening: listening.abort_handle(),
    }
}

/// Waits until the flag is raised. It gives no event, and a person who presses Ctrl-C does not see
/// a tenth of a second.
pub(super) async fn until_raised(flag: &AtomicBool) {
    while !flag.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
