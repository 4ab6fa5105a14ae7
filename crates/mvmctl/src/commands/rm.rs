//! `mvmctl vm rm NAME…`

use super::Context;
use super::machine::{blocking, failure, name};
use super::stop::for_each;
use crate::report::{Failure, Outcome};
use crate::vm_name::complete;
use clap_complete::engine::ArgValueCompleter;
use mvm_vmm::{Home, Stop};

/// Remove VMs that do not run: their folders, with logs and snapshots
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The VMs
    #[arg(required = true, value_name = "NAME", add = ArgValueCompleter::new(complete))]
    names: Vec<String>,

    /// End those that run, without asking the guest
    #[arg(long)]
    force: bool,
}

impl Args {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
        for_each(context, &self.names, async |home, vm| {
            remove(context, home, vm, self.force).await
        })
        .await
    }
}

async fn remove(context: &Context, home: &Home, vm: &str, force: bool) -> Result<(), Failure> {
    let (home, parsed) = (home.clone(), name(vm)?);
    let progress = context.ui.progress(&format!("removing {vm}"));
    blocking(move || {
        if force {
            mvm_vmm::machine::stop(&home, &parsed, Stop::Force)?;
        }
        mvm_vmm::machine::remove(&home, &parsed)
    })
    .await
    .map_err(|error| failure(context, vm, &error))?;
    drop(progress);
    context.ui.note(&format!("{vm} is removed"));
    Ok(())
}
