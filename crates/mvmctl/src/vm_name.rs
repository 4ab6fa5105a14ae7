//! The arguments that name VMs, and their completion.

use clap_complete::engine::{
    ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter as _,
};
use mvm_registry::{Inventory, Label, Selector};
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
    #[arg(value_name = "NAME", conflicts_with = "selector", add = ArgValueCompleter::new(complete))]
    pub(crate) names: Vec<String>,

    #[command(flatten)]
    pub(crate) by_label: ByLabel,
}

/// Some VMs of mvmctl's own.
#[derive(Debug, clap::Args)]
pub(crate) struct Several {
    /// The VMs
    #[arg(
        required_unless_present = "selector",
        conflicts_with = "selector",
        value_name = "NAME",
        add = ArgValueCompleter::new(complete)
    )]
    pub(crate) names: Vec<String>,

    #[command(flatten)]
    pub(crate) by_label: ByLabel,
}

/// VMs by their labels.
#[derive(Debug, clap::Args)]
pub(crate) struct ByLabel {
    /// VMs with these labels: KEY=VALUE, KEY!=VALUE or KEY; several are joined by commas, and all of
    /// them must fit
    #[arg(
        id = "selector",
        short = 'l',
        long = "selector",
        value_name = "SELECTOR",
        value_delimiter = ',',
        value_parser = selector
    )]
    pub(crate) selectors: Vec<Selector>,
}

/// Which VMs a command is about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Choice<'a> {
    /// Those of these names; all if there are none.
    pub(crate) names: &'a [String],
    /// Of all, those that all of these mean.
    pub(crate) selectors: &'a [Selector],
}

impl<'a> From<&'a Any> for Choice<'a> {
    fn from(any: &'a Any) -> Self {
        Self {
            names: &any.names,
            selectors: &any.by_label.selectors,
        }
    }
}

impl<'a> From<&'a Several> for Choice<'a> {
    fn from(some: &'a Several) -> Self {
        Self {
            names: &some.names,
            selectors: &some.by_label.selectors,
        }
    }
}

impl<'a> From<&'a ByLabel> for Choice<'a> {
    fn from(by_label: &'a ByLabel) -> Self {
        Self {
            names: &[],
            selectors: &by_label.selectors,
        }
    }
}

impl<'a> From<&'a [String; 1]> for Choice<'a> {
    fn from(names: &'a [String; 1]) -> Self {
        Self {
            names,
            selectors: &[],
        }
    }
}

fn selector(text: &str) -> Result<Selector, String> {
    text.parse()
        .map_err(|_| "KEY=VALUE, KEY!=VALUE or KEY is asked for".to_owned())
}

/// What a VM is started with that only hosts know of.
#[derive(Debug, clap::Args)]
pub(crate) struct Marks {
    /// A label by which it is chosen (`-l`) and grouped (`pool`); an empty value takes it away. Can be
    /// given several times [default: those that the VM had]
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub(crate) labels: Vec<Label>,

    /// Have the fleet leave it alone, whatever its policy says
    #[arg(long, conflicts_with = "unpin")]
    pin: bool,

    /// Have the fleet look after it again
    #[arg(long)]
    unpin: bool,
}

impl Marks {
    /// Whether the fleet is to leave it alone, if anything was said of that.
    pub(crate) fn pinned(&self) -> Option<bool> {
        (self.pin || self.unpin).then_some(self.pin)
    }
}

fn label(text: &str) -> Result<Label, String> {
    text.parse()
        .map_err(|error: mvm_registry::Error| error.hint(""))
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
