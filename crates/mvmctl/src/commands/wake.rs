//! `mvmctl vm wake`

use super::Context;
use super::machine::{Wanted, blocking, cancelled_by_signals, failure, home};
use super::mend::mend_if_broken_off;
use super::payload::PayloadArg;
use super::restore::not_woken;
use super::sleep::token;
use super::unwoken::{self, UnwokenVm};
use super::waking::{held, is_well, table, wake};
use crate::fleet::{self, Answered, Fleet};
use crate::render::data;
use crate::render::shown::Shown;
use crate::render::words::wire;
use crate::report::{Failure, Outcome};
use crate::vm_name;
use mvm_protocol::lifecycle::{Awake, Payload, Token, Wake, WakeCause};
use mvm_protocol::status::Lifecycle;
use mvm_registry::{Error as RegistryError, VmName};
use mvm_vmm::suspend::reconnect;
use mvm_vmm::{Deadline, Error};
use std::time::Duration;

/// Tell a guest that it was restored, or that it runs on after all
///
/// Hands in this host's time and fresh random bytes; the guest reseeds its random generator, sets
/// its clock and runs its restore commands. The exit code is 1 if one of these steps failed.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    vm: vm_name::One,

    /// The token of the sleep that this ends
    #[arg(long, value_parser = token)]
    token: Option<Token>,

    /// No snapshot was taken: the guest runs on as it was
    #[arg(long, conflicts_with_all = ["clone", "payload"])]
    aborted: bool,

    /// The guest is one of several from one snapshot, and gets an identity of its own
    #[arg(long)]
    clone: bool,

    #[command(flatten)]
    payload: PayloadArg,

    /// The guest could not be personalized: run its personalize commands again
    #[arg(long, conflicts_with = "aborted")]
    retry: bool,
}

impl Args {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
        let cause = if self.aborted {
            WakeCause::Aborted
        } else {
            WakeCause::Restored
        };
        let payload = self.payload.read()?;
        if let Some(awake) = mend_if_broken_off(context, &self.vm.name).await? {
            return shown(context, &self.vm.name, &awake);
        }
        if let Some(found) = unwoken(context, &self.vm.name).await? {
            return self.finish_restore(context, found, payload).await;
        }
        let asked = wake(self.token, cause, self.clone)?;
        let asked = Wake { payload, ..asked };
        let names = [self.vm.name];
        if self.retry {
            nothing_else_than_held(context, &names, false).await?;
        }
        let ask = || {
            fleet::ask(context, &names, async |mut session| {
                session.wake(asked.clone()).await
            })
        };
        let mut fleet = ask().await?;
        if reconnected(context, &fleet).await? {
            fleet = ask().await?;
        }
        for answered in &mut fleet.answers {
            let held = |failure| held(failure, &answered.name);
            let result = std::mem::replace(&mut answered.result, Err(Failure::failed("")));
            answered.result = result.map_err(held);
        }
        data::fleet(context, &fleet, || {
            fleet
                .only()
                .map_or_else(Shown::new, |(_, awake)| table(context, awake))
        })?;
        fleet.finish(context, |awake| !is_well(awake))
    }

    /// Tells a guest what the restore would have told it that was broken off.
    async fn finish_restore(
        self,
        context: &Context,
        found: UnwokenVm,
        payload: Option<Payload>,
    ) -> Result<Outcome, Failure> {
        let names = [self.vm.name];
        let [vm] = &names;
        if self.aborted {
            let message = "--aborted is for a guest of which no snapshot was taken, and this one was \
                           started from a snapshot, and was not told so yet";
            let hint = format!("`mvmctl vm wake {vm}` tells it");
            return Err(Failure::failed(message).hint(hint).of(vm.as_str()));
        }
        // One that runs has let go of it.
        let has_payload = self.retry && nothing_else_than_held(context, &names, true).await?;
        if !has_payload {
            found.needs(payload.as_ref())?;
        }
        let with_payload = !has_payload && (found.unwoken().payload || payload.is_some());
        let found = found.with(self.token, self.clone);
        let cancelled = cancelled_by_signals(context);
        let told = found.tell(context, payload, &cancelled).await;
        let awake = told.map_err(|why| not_woken(why, vm, with_payload))?;
        shown(context, vm, &awake)
    }
}

/// Shows how the one guest was woken, and says whether that went well.
fn shown(context: &Context, vm: &str, awake: &Awake) -> Result<Outcome, Failure> {
    data::one(context, vm, awake, || table(context, awake))?;
    Ok(if is_well(awake) {
        Outcome::Done
    } else {
        Outcome::Bad
    })
}

/// Has a guest be reached again that its VMM may have cut off; whether that was tried.
async fn reconnected(context: &Context, fleet: &Fleet<Awake>) -> Result<bool, Failure> {
    let [answered] = fleet.answers.as_slice() else {
        return Ok(false);
    };
    let is_silent = answered.result.as_ref().err().map(|why| &*why.code) == Some(SILENT);
    let is_own = answered.vm.as_ref().is_some_and(|vm| vm.record().is_some());
    let (true, true, Ok(name)) = (is_silent, is_own, VmName::new(&answered.name)) else {
        return Ok(false);
    };
    let home = home(context)?;
    let tried = blocking(move || reconnect(&home, &name, Deadline::new(RECONNECT, None))).await;
    let did = tried.map_err(|error| failure(context, &answered.name, Wanted::Snapshot, &error))?;
    if did {
        context.ui.note(&format!(
            "{}: it was not reached, as if its VMM had cut it off; the VM was paused and resumed so that \
             it is reached again",
            answered.name
        ));
    }
    Ok(did)
}

/// A VM of this host's whose restore was broken off before its guest was told, and its lock. Whoever
/// holds that is telling it.
async fn unwoken(context: &Context, vm: &str) -> Result<Option<UnwokenVm>, Failure> {
    let (Ok(name), Ok(home)) = (VmName::new(vm), home(context)) else {
        return Ok(None);
    };
    match unwoken::find(&home, &name).await {
        Ok(found) => Ok(found),
        Err(error @ Error::Registry(RegistryError::Locked { .. })) => {
            Err(failure(context, vm, Wanted::Snapshot, &error))
        }
        // What cannot be looked at, asking it tells of.
        Err(_) => Ok(None),
    }
}

/// A guest that runs must not be told once more that it was restored, unless it is not noted that it was
/// told: its work was not frozen then. Gives whether it is frozen.
async fn nothing_else_than_held(
    context: &Context,
    names: &[String; 1],
    unwoken: bool,
) -> Result<bool, Failure> {
    let asked = fleet::ask(context, names, async |mut session| session.status().await);
    match asked.await?.answers.pop() {
        Some(Answered {
            name,
            result: Ok(status),
            ..
        }) => {
            let is_held = status.lifecycle == Lifecycle::Waking;
            if is_held || (unwoken && status.lifecycle == Lifecycle::Running) {
                return Ok(is_held);
            }
            let lifecycle = wire(&status.lifecycle);
            let message = format!("there is nothing to try again: the guest is {lifecycle}");
            let failure = Failure::failed(message).of(name);
            Err(if status.lifecycle == Lifecycle::Ready {
                failure.hint("without --retry it is woken")
            } else if status.lifecycle == Lifecycle::Running {
                failure.hint(
                    "if its personalize commands failed where nothing of its work was frozen, the same \
                     wake as before runs them again",
                )
            } else {
                failure
            })
        }
        Some(Answered {
            result: Err(failure),
            ..
        }) => Err(failure),
        None => Ok(false),
    }
}

/// The code of a guest that gives no answer and may have been cut off by its VMM.
const SILENT: &str = "may-be-cut-off";

/// How long a VM may take that is paused and resumed.
const RECONNECT: Duration = Duration::from_secs(20);
