//! The fleet as it is now, looked at once, where no server is asked.

use super::serve::inputs::Inputs;
use super::serve::owner::{self, Owner};
use crate::commands::Context;
use crate::feed::{clock, folders};
use crate::report::Failure;
use mvm_fleet::Policy;

/// Looks until every VM has answered or failed once, and those that answer have told for how long they
/// are idle.
pub(super) async fn look(context: &Context, policy: Policy) -> Result<Owner, Failure> {
    let inventory = context.inventory()?;
    let _progress = context.ui.progress("waiting for all VMs");
    crate::fleet::allow_descriptors();
    let (inputs, received) = Inputs::new();
    let settings = owner::Settings {
        per_vm: false,
        inventory: inventory.clone(),
        dialer: context.dialer.clone(),
        deadlines: context.deadlines(),
        parallel: context.parallel,
        clock: clock::now,
    };
    let mut owner = Owner::new(settings, policy, inputs.clone());
    let _folders = folders::watch(inventory, inputs);
    owner.run_once(received, &context.ui).await?;
    Ok(owner)
}
