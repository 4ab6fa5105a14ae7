//! What the commands share that need a dev build of the agent.

use super::Context;
use crate::report::Failure;
use mvm_client::{Deadlines, Error, Session};

/// A conversation with one VM's agent.
pub(super) async fn session(
    context: &Context,
    vm: &str,
    deadlines: &Deadlines,
) -> Result<Session, Failure> {
    let inventory = context.inventory()?;
    let connected = async {
        let found = inventory.now(vm, deadlines.connect).await?;
        context.connect(&found, deadlines).await
    };
    connected.await.map_err(|error| failure(vm, &error))
}

/// What went wrong between a VM's name and an answer. What to do about a refusal depends on what was
/// asked for: callers say it.
pub(super) fn failure(vm: &str, error: &Error) -> Failure {
    let mut failure = Failure::about(vm, error);
    if let Error::Refused(refusal) = error
        && !refusal.retryable
    {
        failure.hint = None;
    }
    failure
}
