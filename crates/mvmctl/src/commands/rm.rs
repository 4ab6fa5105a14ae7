//! `mvmctl vm rm NAME…`

use super::Context;
use super::stop::for_each;
use crate::report::{Failure, Outcome};
use crate::vm_name::complete;
use clap_complete::engine::ArgValueCompleter;
use mvm_vmm::{Home, Stop, VmName};
use serde::Serialize;

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

/// What came of it, as data.
#[derive(Debug, Serialize)]
struct Report {
    removed: bool,
}

impl Args {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
        let force = self.force;
        let work = move |home: &Home, vm: &VmName| {
            if force {
                mvm_vmm::machine::stop(home, vm, Stop::Force)?;
            }
            mvm_vmm::machine::remove(home, vm)?;
            Ok(Report { removed: true })
        };
        for_each(context, &self.names, "removing", work, |vm, _| {
            format!("{vm} is removed")
        })
        .await
    }
}
