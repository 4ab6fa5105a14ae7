//! `mvmctl vm pin NAME…` and `mvmctl vm unpin NAME…`

use super::Context;
use super::machine::Wanted;
use super::stop::for_each;
use crate::report::{Failure, Outcome};
use crate::vm_name::Several;
use mvm_registry::{Home, VmName};
use serde::Serialize;

/// Have the fleet leave VMs alone, whatever its policy says
///
/// They need not be stopped for it, as for `mvmctl vm start --pin`. It stays until `mvmctl vm unpin`.
#[derive(Debug, clap::Args)]
pub(crate) struct Pin {
    #[command(flatten)]
    vms: Several,
}

/// Have the fleet look after VMs again
#[derive(Debug, clap::Args)]
pub(crate) struct Unpin {
    #[command(flatten)]
    vms: Several,
}

/// What came of it, as data.
#[derive(Debug, Serialize)]
struct Report {
    pinned: bool,
}

impl Pin {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
        set(context, &self.vms, true).await
    }
}

impl Unpin {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
        set(context, &self.vms, false).await
    }
}

async fn set(context: &Context, vms: &Several, pinned: bool) -> Result<Outcome, Failure> {
    let work = move |home: &Home, vm: &VmName| {
        mvm_vmm::machine::pin(home, vm, pinned)?;
        Ok(Report { pinned })
    };
    let told = |vm: &str, report: &Report| {
        if report.pinned {
            format!("{vm} is pinned: the fleet leaves it alone")
        } else {
            format!("{vm} is not pinned any more")
        }
    };
    for_each(context, vms, Wanted::Touch, "marking", work, told).await
}
