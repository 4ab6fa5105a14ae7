//! `mvmctl vm stop NAME…`

use super::Context;
use super::machine::{blocking, failure, home, name};
use crate::report::{Failure, Outcome, tell};
use crate::vm_name::complete;
use clap_complete::engine::ArgValueCompleter;
use mvm_vmm::{Home, Stop, Stopped};
use std::time::Duration;

/// How long a guest may take to power off that was given no `--timeout`. Emulated it takes 4 s.
const PATIENCE: Duration = Duration::from_secs(20);

/// Stop VMs
///
/// The guest is asked to power off; if it has not by then, the VM is ended. --timeout says how long
/// it may take (else 20s).
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The VMs
    #[arg(required = true, value_name = "NAME", add = ArgValueCompleter::new(complete))]
    names: Vec<String>,

    /// End it at once, without asking the guest: like pulling the plug
    #[arg(long)]
    force: bool,
}

impl Args {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
        let how = if self.force {
            Stop::Force
        } else {
            Stop::Ask(context.timeout.unwrap_or(PATIENCE))
        };
        for_each(context, &self.names, async |home, vm| {
            stop(context, home, vm, how).await
        })
        .await
    }
}

async fn stop(context: &Context, home: &Home, vm: &str, how: Stop) -> Result<(), Failure> {
    let (home, parsed) = (home.clone(), name(vm)?);
    let progress = context.ui.progress(&format!("stopping {vm}"));
    let stopped = blocking(move || mvm_vmm::machine::stop(&home, &parsed, how))
        .await
        .map_err(|error| failure(context, vm, &error))?;
    drop(progress);
    context.ui.note(&match (stopped, how) {
        (Stopped::Already, _) => format!("{vm} was not running"),
        (Stopped::Clean, _) => format!("{vm} has stopped"),
        (Stopped::Forced, Stop::Force) => format!("{vm} was ended"),
        (Stopped::Forced, Stop::Ask(patience)) => {
            format!("{vm} did not stop when asked to, within {patience:?}, and was ended")
        }
    });
    Ok(())
}

/// Does something to each VM in turn. A failure with one is told and keeps it from none of the
/// others.
pub(crate) async fn for_each(
    context: &Context,
    names: &[String],
    each: impl AsyncFn(&Home, &str) -> Result<(), Failure>,
) -> Result<Outcome, Failure> {
    let home = home(context)?;
    if let [only] = names {
        return each(&home, only).await.map(|()| Outcome::Done);
    }
    let mut outcome = Outcome::Done;
    for vm in names {
        if let Err(failure) = each(&home, vm).await {
            tell(context, &failure.of(vm));
            outcome = Outcome::SomeFailed;
        }
    }
    Ok(outcome)
}
