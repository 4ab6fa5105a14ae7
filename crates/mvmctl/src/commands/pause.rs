//! `mvmctl vm pause NAME…`

use super::Context;
use super::machine::Wanted;
use super::stop::for_each;
use crate::report::{Failure, Outcome};
use crate::vm_name;
use mvm_registry::{Home, VmName};
use mvm_vmm::Deadline;
use mvm_vmm::pause::By;
use serde::Serialize;
use std::time::Duration;

/// How long a VMM may take that was given no `--timeout`. It answers at once, unless the machine is
/// busy.
pub(crate) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// Have VMs stand still, their memory staying where it is
///
/// Their CPUs take no time until `mvmctl vm resume`; nobody is answered meanwhile. What is paused is not
/// on a disk: it is lost if this machine goes down. The guest is not asked.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    vms: vm_name::Several,
}

/// What came of it, as data.
#[derive(Debug, Serialize)]
struct Report {
    paused: bool,
}

impl Args {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
        let at_most = context.timeout.unwrap_or(DEFAULT_TIMEOUT);
        let work = move |home: &Home, vm: &VmName| {
            mvm_vmm::pause::pause(home, vm, By::User, Deadline::new(at_most, None))?;
            Ok(Report { paused: true })
        };
        let told = |vm: &str, _: &Report| format!("{vm} stands still");
        for_each(context, &self.vms, Wanted::Pause, "pausing", work, told).await
    }
}
