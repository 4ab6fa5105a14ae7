//! What a `fleet serve` that was killed has left half done, brought to its end before anything else is
//! decided.
//!
//! | killed while | what is found | what is done |
//! | --- | --- | --- |
//! | a clone is begun | a folder without a record, noted as made by the fleet | removed |
//! | a clone or a sleeper is started | `start-broken-off` | the plan removes the clone; a sleeper is woken anew from its snapshot |
//! | its guest is being told | the record says that it was not | it is told, again if need be; a clone that cannot be is removed |
//! | a guest is made ready, or frozen | a snapshot that was broken off | the VM runs on, its guest is woken, what was written is removed |
//! | a frozen VM is ended | `asleep`, in the snapshot that its record names | nothing: it sleeps |
//! | a VM is paused, or runs on | `paused`, whether it stands still or not | nothing: it is resumed when it is needed |
//! | a VM is removed | its folder in `removing` | removed |

use super::actions::{give_up, remove_old_snapshots};
use crate::commands::Context;
use crate::commands::machine::{Wanted, blocking, failure};
use crate::commands::mend::mend_if_broken_off;
use crate::commands::payload::PayloadArg;
use crate::commands::unwoken;
use crate::report::Failure;
use mvm_fleet::ActionKind;
use mvm_fleet::policy::PoolPolicy;
use mvm_registry::{Home, Pause, VmName, VmState};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// A VM of which something is half done.
#[derive(Debug, Clone)]
pub(in super::super) struct HalfDone {
    pub(in super::super) vm: VmName,
    pub(in super::super) pool: String,
    pub(in super::super) what: What,
}

/// What is to be brought to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum What {
    /// Its guest was not told, or not seen to be, that it was restored.
    Unwoken,
    /// A snapshot of it was broken off.
    BrokenSnapshot,
}

impl What {
    /// As what it counts while it is under way, and is told when it has ended.
    pub(in super::super) fn kind(self) -> ActionKind {
        match self {
            Self::Unwoken => ActionKind::Wake,
            Self::BrokenSnapshot => ActionKind::Resume,
        }
    }
}

impl HalfDone {
    /// What is half done of a VM, if anything is. What somebody else is at just now is that one's, and
    /// what is pinned is left alone. Snapshots that are of no use any more are removed.
    pub(super) fn of(home: &Home, name: &VmName) -> Option<Self> {
        let folder = home.vm(name);
        let record = folder.record().ok()?;
        if record.pinned || folder.is_locked().unwrap_or(true) {
            return None;
        }
        let vm = folder.vm()?;
        let is_broken_off = || mvm_vmm::suspend::may_be_broken_off(&record).is_ok_and(|it| it);
        let what = match vm.state {
            VmState::Paused(Pause::BrokenSnapshot) => What::BrokenSnapshot,
            VmState::Running if record.unwoken.is_some() => What::Unwoken,
            VmState::Running if is_broken_off() => What::BrokenSnapshot,
            VmState::Running | VmState::Asleep { .. } => {
                remove_old_snapshots(&folder, None);
                return None;
            }
            _ => return None,
        };
        Some(Self {
            vm: name.clone(),
            pool: vm.pool().to_owned(),
            what,
        })
    }

    /// Brings it to its end.
    pub(super) async fn mend(
        &self,
        context: &Context,
        home: &Home,
        policy: &PoolPolicy,
        cancelled: &Arc<AtomicBool>,
    ) -> Result<(), Failure> {
        match self.what {
            What::Unwoken => tell(context, home, &self.vm, policy, cancelled).await?,
            What::BrokenSnapshot => {
                mend_if_broken_off(context, self.vm.as_str()).await?;
            }
        }
        let folder = home.vm(&self.vm);
        let _ = tokio::task::spawn_blocking(move || remove_old_snapshots(&folder, None)).await;
        Ok(())
    }
}

async fn tell(
    context: &Context,
    home: &Home,
    vm: &VmName,
    policy: &PoolPolicy,
    cancelled: &Arc<AtomicBool>,
) -> Result<(), Failure> {
    let failed = |error| failure(context, vm.as_str(), Wanted::Start, &error);
    let Some(found) = unwoken::find(home, vm).await.map_err(failed)? else {
        return Ok(());
    };
    let clone = found.unwoken().clone;
    let payload = match policy.payload.clone().filter(|_| clone) {
        Some(file) => PayloadArg::of(file).read()?,
        None => None,
    };
    let told = match found.needs(payload.as_ref()) {
        Ok(()) => found.tell(context, payload, cancelled).await,
        Err(failure) => Err(failure),
    };
    if told.is_err() && home.vm(vm).notes().fleet.made && clone {
        let (home, vm) = (home.clone(), vm.clone());
        // Nobody has been given it.
        blocking(move || give_up(&home, &vm))
            .await
            .map_err(failed)?;
    }
    told.map(drop)
}
