//! What VMs are, as it changes: for commands that follow VMs and have to let go of one that has ended.

use crate::commands::Context;
use crate::report::Failure;
use mvm_registry::{Error, Home, VmName, VmState, Watch};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::pending;
use tokio::sync::watch;

/// Follows what the VMs of `$MVM_HOME` are. Nothing comes of it unless [`VmStates::follow`] runs
/// beside those who wait.
#[derive(Debug)]
pub(crate) struct VmStates {
    home: Home,
    watch: RefCell<Option<Watch>>,
    /// Those that there are.
    states: watch::Sender<BTreeMap<VmName, VmState>>,
}

impl VmStates {
    /// Of one VM if a name is given, else of all. An address is a VM of which nothing is known here.
    ///
    /// A user has few inotify instances (128 by default). Where none is left, that is told, and those
    /// who wait learn of the end of a VM by what its connection does.
    pub(crate) fn new(context: &Context, home: &Home, only: Option<&str>) -> Self {
        let watch = match only {
            None => Watch::all(home),
            Some(name) => Watch::of(home, VmName::new(name)),
        };
        let watch = watch.inspect_err(|error| {
            let what = "the end of a VM may be seen late";
            context.ui.warning(&format!("{what}: {error}"));
        });
        let watch = watch.ok();
        let states = watch.iter().flat_map(Watch::states);
        let states = states.map(|(name, state)| (name.clone(), state.clone()));
        Self {
            home: home.clone(),
            states: watch::Sender::new(states.collect()),
            watch: RefCell::new(watch),
        }
    }

    /// Waits for changes for as long as nothing fails, and tells those who wait. Once.
    pub(crate) async fn follow(&self) -> Failure {
        let Some(mut watch) = self.watch.take() else {
            return pending().await;
        };
        loop {
            match watch.next().await {
                Ok(change) => self.states.send_modify(|states| {
                    match change.state {
                        Some(state) => states.insert(change.name, state),
                        None => states.remove(&change.name),
                    };
                }),
                Err(error) => return error.into(),
            }
        }
    }

    /// Waits until the VM has ended by itself, or was removed; gives what to tell of it. Of one that
    /// something else runs nothing is known.
    pub(crate) async fn until_ended(&self, vm: &str) -> Failure {
        let Ok(name) = VmName::new(vm) else {
            return pending().await;
        };
        let mut states = self.states.subscribe();
        let mut was_there = false;
        loop {
            let state = states.borrow_and_update().get(&name).cloned();
            match state {
                Some(VmState::Ended(ending)) => {
                    return Failure::registry(vm, &Error::Ended(ending));
                }
                None if was_there => {
                    let removed = Error::NoSuchVm {
                        name: vm.to_owned(),
                        vms: self.home.vms(),
                        nearest: None,
                        unseen: Vec::new(),
                    };
                    return Failure::registry(vm, &removed);
                }
                state => was_there = state.is_some(),
            }
            if states.changed().await.is_err() {
                return pending().await;
            }
        }
    }
}
