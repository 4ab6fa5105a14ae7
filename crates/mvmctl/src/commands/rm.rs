//! `mvmctl vm rm NAME…`

use super::Context;
use super::machine::Wanted;
use super::stop::for_each;
use crate::report::{Failure, Outcome};
use crate::vm_name;
use mvm_registry::{Home, VmName};
use mvm_vmm::Stop;
use serde::Serialize;

/// Remove VMs that do not run: their folders, with logs and snapshots
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    vms: vm_name::Several,

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
            let stopped = if force {
                mvm_vmm::machine::stop(home, vm, Stop::Force).map(|_| ())
            } else {
                Ok(())
            };
            // One that has ended goes, whether that could be written down or not.
            match (mvm_vmm::removal::remove(home, vm), stopped) {
                (Ok(()), _) => Ok(Report { removed: true }),
                (Err(_), Err(error)) | (Err(error), Ok(())) => Err(error),
            }
        };
        let told = |vm: &str, _: &Report| format!("{vm} is removed");
        for_each(context, &self.vms, Wanted::Remove, "removing", work, told).await
    }
}
