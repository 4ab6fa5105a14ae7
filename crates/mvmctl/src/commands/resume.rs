//! `mvmctl vm resume NAME…`

use super::Context;
use super::machine::Wanted;
use super::pause::DEFAULT_TIMEOUT;
use super::stop::for_each;
use crate::report::{Failure, Outcome};
use crate::vm_name;
use mvm_registry::{Home, VmName};
use mvm_vmm::Deadline;
use serde::Serialize;

/// Let VMs run on that stand still by `mvmctl vm pause`
///
/// A guest's clock may have stood still with it: `mvmctl vm status` shows by how much it is off, and
/// what sets it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    vms: vm_name::Several,
}

/// What came of it, as data.
#[derive(Debug, Serialize)]
struct Report {
    resumed: bool,
}

impl Args {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
        let at_most = context.timeout.unwrap_or(DEFAULT_TIMEOUT);
        let work = move |home: &Home, vm: &VmName| {
            mvm_vmm::pause::resume(home, vm, Deadline::new(at_most, None))?;
            Ok(Report { resumed: true })
        };
        let told = |vm: &str, _: &Report| format!("{vm} runs on");
        for_each(context, &self.vms, Wanted::Pause, "resuming", work, told).await
    }
}
