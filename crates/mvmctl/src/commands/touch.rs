//! `mvmctl vm touch NAME…`

use super::Context;
use super::machine::Wanted;
use super::stop::for_each;
use crate::report::{Failure, Outcome};
use crate::vm_name;
use mvm_protocol::Timestamp;
use mvm_registry::notes::Touched;
use mvm_registry::{Error as RegistryError, Home, VmName};
use serde::Serialize;
use std::time::Duration;

/// Say that VMs are in use, so that the fleet lets them be
///
/// The fleet counts the time that a VM is idle from here on, whatever its guest says. With --for it also
/// pauses, puts to sleep, ends and removes none of them for so long, in place of what was said before.
/// They need not run, and nothing is asked of them.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    vms: vm_name::Several,

    /// Keep them as they are for so long from now
    #[arg(long = "for", value_name = "D", value_parser = crate::args::duration)]
    keep: Option<Duration>,
}

/// What came of it, as data.
#[derive(Debug, Serialize)]
struct Report {
    touched_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    keep_until: Option<Timestamp>,
}

impl Args {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
        let keep = self.keep;
        let work = move |home: &Home, vm: &VmName| Ok(touch(home, vm, keep)?);
        let told = |vm: &str, report: &Report| match report.keep_until {
            Some(until) => format!("{vm} is in use, and kept until {until}"),
            None => format!("{vm} is in use"),
        };
        for_each(context, &self.vms, Wanted::Touch, "touching", work, told).await
    }
}

fn touch(home: &Home, vm: &VmName, keep: Option<Duration>) -> Result<Report, RegistryError> {
    let folder = home.vm(vm);
    folder.record()?;
    let now = jiff::Timestamp::now().as_millisecond();
    let before = folder.notes().touched.keep_until;
    let keep_until = match keep {
        // A touch alone takes back nothing.
        None => before.filter(|until| until.0 > now),
        Some(keep) => {
            let ms = i64::try_from(keep.as_millis()).unwrap_or(i64::MAX);
            Some(Timestamp(now.saturating_add(ms)))
        }
    };
    let touched_at = Timestamp(now);
    folder.touch(Touched {
        at: Some(touched_at),
        keep_until,
    })?;
    Ok(Report {
        touched_at,
        keep_until,
    })
}
