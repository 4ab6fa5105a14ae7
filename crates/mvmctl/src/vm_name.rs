//! The arguments that name VMs, and their completion.

use clap_complete::engine::{
    ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter as _,
};
use mvm_client::Inventory;
use std::ffi::OsStr;

/// One VM.
#[derive(Debug, clap::Args)]
pub(crate) struct One {
    /// The VM's name, or an address: unix:PATH, vsock:CID
    #[arg(value_name = "NAME", add = ArgValueCompleter::new(complete))]
    pub(crate) name: String,
}

/// Any number of VMs; all if none is named.
#[derive(Debug, clap::Args)]
pub(crate) struct Any {
    /// VMs by name or address (unix:PATH, vsock:CID); all if none is given
    #[arg(value_name = "NAME", add = ArgValueCompleter::new(complete))]
    pub(crate) names: Vec<String>,
}

/// The names of VMs that begin so, from their folders. A shell that asks cannot be told of
/// anything that is amiss: it gets no names then.
pub(crate) fn complete(begun: &OsStr) -> Vec<CompletionCandidate> {
    let begun = begun.to_string_lossy();
    let vms = Inventory::from_env(None).and_then(|inventory| inventory.list());
    vms.map(|found| found.vms)
        .unwrap_or_default()
        .into_iter()
        .filter(|vm| vm.name.starts_with(&*begun))
        .map(|vm| {
            let what = vm.backend.unwrap_or_default();
            CompletionCandidate::new(vm.name).help(Some(format!("{what} {}", vm.state).into()))
        })
        .collect()
}

/// What `cp` can be given: paths here, and the names of VMs with the beginning of a path.
pub(crate) fn complete_operand(begun: &OsStr) -> Vec<CompletionCandidate> {
    let vms = complete(begun).into_iter();
    let guests = vms.map(|vm| {
        let mut path = vm.get_value().to_owned();
        path.push(":/");
        CompletionCandidate::new(path).help(vm.get_help().cloned())
    });
    guests.chain(PathCompleter::any().complete(begun)).collect()
}
