//! `mvmctl vm stop NAME…`

use super::Context;
use super::machine::{Wanted, blocking, failure, home, name};
use crate::fleet::{self, Answered, Fleet, Scope, at_once};
use crate::render::data;
use crate::render::shown::Shown;
use crate::report::{Failure, Outcome};
use crate::vm_name::{self, Choice};
use futures_util::stream::{self, StreamExt as _};
use mvm_registry::{Home, VmName};
use mvm_vmm::{Error, Stop, Stopped};
use serde::Serialize;
use std::time::Duration;

/// How long a guest may take to power off that was given no `--timeout`. Emulated it takes 4 s.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(20);

/// Stop VMs
///
/// The guest is asked to power off; if it has not by then, the VM is ended. --timeout says how long
/// it may take (else 20s). Several are stopped at once, as many as --parallel says.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    vms: vm_name::Several,

    /// End it at once, without asking the guest: like pulling the plug
    #[arg(long)]
    force: bool,
}

/// What came of it, as data.
#[derive(Debug, Serialize)]
struct Report {
    stopped: Stopped,
}

impl Args {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
        let how = if self.force {
            Stop::Force
        } else {
            Stop::Ask(context.timeout.unwrap_or(DEFAULT_TIMEOUT))
        };
        let work = move |home: &Home, vm: &VmName| {
            let stopped = mvm_vmm::machine::stop(home, vm, how)?;
            Ok(Report { stopped })
        };
        for_each(
            context,
            &self.vms,
            Wanted::Stop,
            "stopping",
            work,
            |vm, report| match (report.stopped, how) {
                (Stopped::Already, _) => format!("{vm} was not running"),
                (Stopped::Clean, _) => format!("{vm} has stopped"),
                (Stopped::Unasked, _) => format!(
                    "{vm} was ended without being asked to stop, since its snapshot was broken off"
                ),
                (Stopped::Unrestored, _) => format!(
                    "{vm} was ended without being asked to stop, since its restore was broken off: it \
                     sleeps on in its snapshot"
                ),
                (Stopped::Forced, Stop::Force) => format!("{vm} was ended"),
                (Stopped::Forced, Stop::Ask(deadline)) => {
                    format!("{vm} did not stop when asked to, within {deadline:?}, and was ended")
                }
            },
        )
        .await
    }
}

/// Does something to each VM, to many at once, and says in name order what came of it: `told` gives a
/// line on stderr. A failure with one keeps it from none of the others; but if a name is none, nothing
/// is done to any.
pub(crate) async fn for_each<T: Serialize + Send + 'static>(
    context: &Context,
    choice: impl Into<Choice<'_>>,
    wanted: Wanted,
    doing: &str,
    work: impl Fn(&Home, &VmName) -> Result<T, Error> + Clone + Send + 'static,
    told: impl Fn(&str, &T) -> String,
) -> Result<Outcome, Failure> {
    let choice = choice.into();
    let mut names = choice.names.to_vec();
    if names.is_empty() {
        let (_, meant) = fleet::targets(context, &context.inventory()?, choice)?;
        names.extend(meant.into_iter().map(|target| target.name));
    }
    names.sort();
    names.dedup();
    let vms: Vec<_> = names
        .into_iter()
        .map(|vm| Ok((name(&vm)?, vm)))
        .collect::<Result<_, Failure>>()?;
    let home = home(context)?;
    let progress = context.ui.progress(&match vms.as_slice() {
        [(_, only)] => format!("{doing} {only}"),
        several => format!("{doing} {} VMs", several.len()),
    });
    let scope = if vms.len() == 1 && !choice.names.is_empty() {
        Scope::One
    } else {
        Scope::Several
    };
    let at_once = at_once(context, vms.len());
    let mut answers: Vec<_> = stream::iter(vms)
        .map(|(parsed, name)| {
            let (home, work) = (home.clone(), work.clone());
            async move {
                let done = blocking(move || work(&home, &parsed)).await;
                let result = done.map_err(|error| failure(context, &name, wanted, &error));
                Answered {
                    name,
                    vm: None,
                    result,
                }
            }
        })
        .buffer_unordered(at_once)
        .collect()
        .await;
    drop(progress);
    answers.sort_by(|a, b| a.name.cmp(&b.name));
    let fleet = Fleet { scope, answers };
    for Answered { name, result, .. } in &fleet.answers {
        if let Ok(done) = result {
            context.ui.note(&told(name, done));
        }
    }
    data::fleet(context, &fleet, Shown::new)?;
    fleet.finish(context, |_| false)
}
