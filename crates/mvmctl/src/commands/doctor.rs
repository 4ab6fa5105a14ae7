//! `mvmctl doctor`

use super::Context;
use crate::args::Format;
use crate::confine;
use crate::render::data::document;
use crate::render::shown::Shown;
use crate::report::{Failure, Kind, Outcome};
use mvm_registry::{Error, Inventory, UnreadableDir};
use mvm_vmm::Deadline;
use mvm_vmm::doctor::{self, DiscoveredVm, Finding, Level};
use serde_json::json;

/// Find out what is in the way of starting VMs here, and how to mend it
///
/// Looks at KVM, the VMMs and their versions, the agent, what images are made of, mvmctl.toml, and at
/// VMs: what is left of those that ended by themselves, and sockets that may not be opened. Exits with
/// 1 if no VM can be started.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

impl Args {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
        let (inventory, mut amiss) = inventory(context)?;
        let home = inventory.home().clone();
        let discovered =
            match discovered(&inventory) {
                Ok((discovered, unreadable)) => {
                    // Of the VMs in `$MVM_HOME` it tells by itself.
                    let unreadable = unreadable.iter().filter(|one| one.is_discovered);
                    amiss.extend(unreadable.map(|one| {
                        Finding::amiss(Level::Warning, "vms", one.to_string(), one.hint())
                    }));
                    discovered
                }
                Err(error) => {
                    let (why, fix) = (error.to_string(), error.hint("NAME"));
                    amiss.push(Finding::amiss(Level::Warning, "vms", why, fix));
                    Vec::new()
                }
            };
        let progress = context.ui.progress("trying KVM");
        let at_most = context.timeout.unwrap_or(doctor::TRIAL);
        let examined = tokio::task::spawn_blocking(move || {
            doctor::examine(&home, &discovered, Deadline::new(at_most, None))
        });
        let mut findings = match examined.await {
            Ok(findings) => findings,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        };
        findings.push(confine::finding());
        findings.append(&mut amiss);
        drop(progress);
        let able = doctor::can_start_vms(&findings);
        match context.format {
            Format::Json | Format::Yaml => {
                let report = json!({"can_start_vms": able, "findings": findings});
                document(context, &report)?;
            }
            Format::Name => {
                let subjects = findings.iter().map(|one| Shown::line(&one.subject));
                context.ui.print(&subjects.collect())?;
            }
            Format::Table | Format::Wide => {
                context.ui.print(&findings.iter().map(line).collect())?;
            }
        }
        Ok(if able { Outcome::Done } else { Outcome::Bad })
    }
}

/// The VMs, and what is wrong with the file that adds some.
fn inventory(context: &Context) -> Result<(Inventory, Vec<Finding>), Failure> {
    match context.inventory() {
        Ok(inventory) => Ok((inventory, Vec::new())),
        // Without it no command knows where VMs are, so no VM can be started.
        Err(failure) if failure.kind == Kind::Usage => {
            let fix = failure.hint.unwrap_or_default();
            let finding = Finding::amiss(Level::Problem, "mvmctl.toml", failure.message, fix);
            Ok((Inventory::without_settings()?, vec![finding]))
        }
        Err(failure) => Err(failure),
    }
}

/// The sockets of VMs that are not, or are reached discovered than, in `$MVM_HOME`. Of one that does
/// not run there is none to be looked at. And the folders in which there may be more.
fn discovered(inventory: &Inventory) -> Result<(Vec<DiscoveredVm>, Vec<UnreadableDir>), Error> {
    let found = inventory.list()?;
    let sockets = found.vms.into_iter().filter_map(|vm| {
        let socket = vm.endpoint().ok()?.path()?.to_owned();
        let own = inventory.home().vms().join(&vm.name).join("v.sock");
        (socket != own).then_some(DiscoveredVm {
            name: vm.name,
            socket,
        })
    });
    Ok((sockets.collect(), found.unreadable))
}

fn line(finding: &Finding) -> Shown {
    let mark = match finding.level {
        Level::Ok => "ok     ",
        Level::Warning => "warning",
        Level::Problem => "problem",
    };
    let first = format!("{mark}  {}: {}", finding.subject, finding.message);
    let fix = finding.fix.as_ref();
    let fix = fix.map(|fix| Shown::line(&format!("         to mend it: {fix}")));
    [Shown::line(&first)].into_iter().chain(fix).collect()
}
