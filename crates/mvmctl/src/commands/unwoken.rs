//! A VM that runs from a snapshot, and whose guest was not told so: whoever restored it was killed, or
//! had enough of waiting. Until it is told a clone is its twin, so that whoever deals with the VM next
//! tells it just what that restore would have.

use super::Context;
use super::machine::blocking;
use super::restore::{DEFAULT_TIMEOUT, Patience, wake_restored};
use crate::report::Failure;
use mvm_protocol::lifecycle::{Awake, Payload, Token};
use mvm_registry::record::Unwoken;
use mvm_registry::{Home, VmName};
use mvm_vmm::suspend::{Restored, unwoken};
use mvm_vmm::{Deadline, Error, Snapshot, Verify};
use std::sync::atomic::AtomicBool;

/// Such a VM, with its lock.
#[derive(Debug)]
pub(super) struct UnwokenVm {
    vm: VmName,
    restored: Restored,
    unwoken: Unwoken,
    /// That of the sleep in the snapshot. If the snapshot has gone, the guest is woken without.
    token: Option<Token>,
}

/// The VM, if its guest is still to be told.
///
/// # Errors
///
/// Those of [`mvm_vmm::suspend::unwoken`].
pub(super) async fn find(home: &Home, vm: &VmName) -> Result<Option<UnwokenVm>, Error> {
    let (home, vm) = (home.clone(), vm.clone());
    blocking(move || {
        let Some(restored) = unwoken(&home, &vm)? else {
            return Ok(None);
        };
        let Some(unwoken) = restored.record().unwoken.clone() else {
            return Ok(None);
        };
        // Its manifest alone is read.
        let at_once = Deadline::new(DEFAULT_TIMEOUT, None);
        let snapshot = Snapshot::open_verified(&home, &unwoken.snapshot, Verify::Never, at_once);
        let token = snapshot.ok().map(|snapshot| snapshot.manifest.token);
        Ok(Some(UnwokenVm {
            vm,
            restored,
            unwoken,
            token,
        }))
    })
    .await
}

impl UnwokenVm {
    /// What its guest is to be told.
    pub(super) fn unwoken(&self) -> &Unwoken {
        &self.unwoken
    }

    /// The same with what the user says now. Who gives no token wakes it from any sleep, also if that of
    /// the snapshot is not the guest's.
    pub(super) fn with(mut self, token: Option<Token>, clone: bool) -> Self {
        self.token = token;
        self.unwoken.clone |= clone;
        self
    }

    /// Refuses to wake a guest without the payload that it was to be handed.
    pub(super) fn needs(&self, payload: Option<&Payload>) -> Result<(), Failure> {
        if payload.is_some() || !self.unwoken.payload {
            return Ok(());
        }
        let vm = &self.vm;
        let message = "its restore has not come to its end, and the payload that its guest was to be \
                       handed is not kept";
        Err(Failure::failed(message)
            .hint(format!(
                "`mvmctl vm wake {vm} --payload FILE` hands it one; `mvmctl vm stop --force {vm}` ends it"
            ))
            .of(vm.as_str()))
    }

    /// Tells its guest that it was restored, and notes that it knows.
    pub(super) async fn tell(
        self,
        context: &Context,
        payload: Option<Payload>,
        cancelled: &AtomicBool,
    ) -> Result<Awake, Failure> {
        let how = (self.token, self.unwoken.clone, payload);
        let (vm, patience) = (self.vm.as_str(), Patience::of(context));
        wake_restored(context, vm, self.restored, how, patience, cancelled).await
    }
}
