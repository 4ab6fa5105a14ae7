//! Asking VMs: one, those that were named, or all; many at once, and results in name order.

use crate::commands::Context;
use crate::report::{self, Failure, Outcome};
use crate::vm_name::Choice;
use futures_util::stream::{self, StreamExt as _};
use mvm_client::{Error, Session};
use mvm_registry::{Candidate, Error as RegistryError, Inventory, UnreadableDir, Vm};
use tracing::Instrument as _;

/// Which VMs a command is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// One that was named.
    One,
    /// Several that were named.
    Several,
    /// None was named: all.
    All,
}

/// What became of asking some VMs, in name order.
#[derive(Debug)]
pub(crate) struct Fleet<T> {
    pub(crate) scope: Scope,
    pub(crate) answers: Vec<Answered<T>>,
}

/// What became of asking one VM.
#[derive(Debug)]
pub(crate) struct Answered<T> {
    /// The VM's name, or the address that was given for it.
    pub(crate) name: String,
    /// The VM, unless there is none of that name.
    pub(crate) vm: Option<Vm>,
    pub(crate) result: Result<T, Failure>,
}

/// A name, and the VM that it stands for.
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) vm: Result<Vm, RegistryError>,
}

/// The VMs that are meant, in name order and each once. Where some may be that could not be looked at
/// is told on stderr, and that there are none.
pub(crate) fn targets<'a>(
    context: &Context,
    inventory: &Inventory,
    choice: impl Into<Choice<'a>>,
) -> Result<(Scope, Vec<Target>), Failure> {
    let Choice { names, selectors } = choice.into();
    if names.is_empty() {
        let found = inventory.list()?;
        tell_unreadable(context, &found.unreadable);
        let meant = found.vms.into_iter().filter(|vm| vm.is_meant_by(selectors));
        let targets: Vec<_> = meant
            .map(|vm| Target {
                name: vm.name.clone(),
                vm: Ok(vm),
            })
            .collect();
        if targets.is_empty() {
            let which = if selectors.is_empty() {
                ""
            } else {
                " with these labels"
            };
            tell_that_none_is_there(context, inventory, which);
        }
        return Ok((Scope::All, targets));
    }
    let mut names = names.to_vec();
    names.sort();
    names.dedup();
    let scope = if names.len() == 1 {
        Scope::One
    } else {
        Scope::Several
    };
    let mut found = Vec::with_capacity(names.len());
    for name in names {
        let vm = inventory.find(&name);
        if let Err(error @ RegistryError::NeitherNameNorAddress { .. }) = &vm {
            // A fault of the command line: nobody is asked anything.
            return Err(Failure::registry(&name, error));
        }
        found.push(Target { name, vm });
    }
    Ok((scope, found))
}

fn tell_unreadable(context: &Context, unreadable: &[UnreadableDir]) {
    for unreadable in unreadable {
        context.ui.warning(&unreadable.to_string());
        context.ui.hint(unreadable.hint());
    }
}

fn tell_that_none_is_there(context: &Context, inventory: &Inventory, which: &str) {
    let vms = inventory.home().vms();
    context
        .ui
        .note(&format!("no VMs{which} in {}", vms.display()));
}

/// Who is to be asked.
enum Wanted {
    Vm(Result<Vm, RegistryError>),
    /// It is looked at when its turn has come: others are asked meanwhile.
    Unseen(Candidate),
}

/// All of them, by their names.
fn candidates(context: &Context, inventory: &Inventory) -> Result<Vec<(String, Wanted)>, Failure> {
    let found = inventory.candidates()?;
    tell_unreadable(context, &found.unreadable);
    let candidates = found.candidates.into_iter();
    Ok(candidates
        .map(|one| (one.name.clone(), Wanted::Unseen(one)))
        .collect())
}

/// Asks the VMs that are meant, on a connection each: at most `--parallel` at once. One
/// that is slow or dead takes up a place until its deadline, and delays no other beyond that.
pub(crate) async fn ask<'a, T>(
    context: &Context,
    choice: impl Into<Choice<'a>>,
    what: impl AsyncFn(Session) -> Result<T, Error>,
) -> Result<Fleet<T>, Failure> {
    let inventory = context.inventory()?;
    let choice = choice.into();
    let is_all = choice.names.is_empty() && choice.selectors.is_empty();
    let (scope, wanted) = if is_all {
        (Scope::All, candidates(context, &inventory)?)
    } else {
        let (scope, targets) = targets(context, &inventory, choice)?;
        let wanted = targets.into_iter();
        (
            scope,
            wanted.map(|one| (one.name, Wanted::Vm(one.vm))).collect(),
        )
    };
    let progress = context.ui.progress(&match wanted.as_slice() {
        [(one, _)] => format!("waiting for {one}"),
        several => format!("waiting for {} VMs", several.len()),
    });
    let at_once = at_once(context, wanted.len());
    let deadlines = context.deadlines();
    let (what, inventory) = (&what, &inventory);
    // Each has its place from the first: to sort that many answers afterwards would move each of them
    // again and again.
    let mut answers: Vec<Option<Answered<T>>> = Vec::new();
    answers.resize_with(wanted.len(), || None);
    stream::iter(wanted.into_iter().zip(&mut answers))
        .for_each_concurrent(at_once, |((name, wanted), place)| {
            let span = tracing::info_span!("vm", name);
            let ask = async move {
                let vm = match wanted {
                    Wanted::Vm(vm) => vm,
                    Wanted::Unseen(candidate) => Ok(inventory.look(candidate)?),
                };
                let found = match vm {
                    Ok(vm) => inventory.asked(vm, deadlines.connect).await,
                    Err(error) => {
                        return Some(Answered {
                            result: Err(Failure::registry(&name, &error)),
                            name,
                            vm: None,
                        });
                    }
                };
                let answer = async { what(context.connect(&found, &deadlines).await?).await };
                let (vm, result) = match answer.await {
                    Ok(answer) => (found, Ok(answer)),
                    Err(error) => told(inventory, found, error),
                };
                Some(Answered {
                    result: result.map_err(|error| Failure::about(&name, &error)),
                    name,
                    vm: Some(vm),
                })
            };
            async move { *place = ask.instrument(span).await }
        })
        .await;
    drop(progress);
    let answers: Vec<_> = answers.into_iter().flatten().collect();
    if is_all && answers.is_empty() {
        tell_that_none_is_there(context, inventory, "");
    }
    Ok(Fleet { scope, answers })
}

/// Why a VM did not answer. One that was dialled may have ended over it: that says more than that the
/// connection broke.
fn told<T>(inventory: &Inventory, vm: Vm, error: Error) -> (Vm, Result<T, Error>) {
    if let (Ok(_), Some(_), true) = (vm.endpoint(), vm.record(), error.is_retryable())
        && let Ok(now) = inventory.find(&vm.name)
        && let Err(since) = now.endpoint()
    {
        return (now, Err(since.into()));
    }
    (vm, Err(error))
}

/// How many failures of a fleet are told on stderr. All of them stand in the data.
const TOLD: usize = 10;

impl<T> Fleet<T> {
    /// The answer, if one VM was named and answered.
    pub(crate) fn only(&self) -> Option<(&str, &T)> {
        match (self.scope, self.answers.as_slice()) {
            (Scope::One, [one]) => one
                .result
                .as_ref()
                .ok()
                .map(|answer| (one.name.as_str(), answer)),
            _ => None,
        }
    }

    /// The same with each answer turned into another, or into a failure.
    pub(crate) fn turn<U>(
        self,
        turn: impl Fn(&str, Option<&Vm>, T) -> Result<U, Failure>,
    ) -> Fleet<U> {
        let answers = self.answers.into_iter().map(|one| Answered {
            result: one
                .result
                .and_then(|answer| turn(&one.name, one.vm.as_ref(), answer)),
            name: one.name,
            vm: one.vm,
        });
        Fleet {
            scope: self.scope,
            answers: answers.collect(),
        }
    }

    /// Tells on stderr which VMs failed, and says how the command ended. A VM that is not running
    /// has failed only if it was named: among all, it is as it should be.
    pub(crate) fn finish(
        self,
        context: &Context,
        is_bad: impl Fn(&T) -> bool,
    ) -> Result<Outcome, Failure> {
        if self.scope == Scope::One {
            return match self.answers.into_iter().next().map(|one| one.result) {
                Some(Ok(answer)) if is_bad(&answer) => Ok(Outcome::Bad),
                Some(Err(failure)) => Err(failure),
                Some(Ok(_)) | None => Ok(Outcome::Done),
            };
        }
        let bad = self
            .answers
            .iter()
            .filter(|one| one.result.as_ref().is_ok_and(&is_bad))
            .count();
        let failures: Vec<_> = self
            .answers
            .iter()
            .filter(|one| self.scope != Scope::All || !one.is_off())
            .filter_map(|one| one.result.as_ref().err())
            .collect();
        for failure in failures.iter().take(TOLD) {
            report::tell(context, failure);
        }
        if failures.len() > TOLD {
            context.ui.note(&format!(
                "… and {} more; --json shows each",
                failures.len() - TOLD
            ));
        }
        if failures.is_empty() && bad == 0 {
            Ok(Outcome::Done)
        } else {
            Ok(Outcome::SomeFailed)
        }
    }
}

impl<T> Answered<T> {
    /// Whether it is a VM that does not run, as it should be.
    pub(crate) fn is_off(&self) -> bool {
        self.vm.as_ref().is_some_and(is_off)
    }
}

/// Whether the VM does not run, as it should be.
pub(crate) fn is_off(vm: &Vm) -> bool {
    vm.state.is_off()
}

/// Descriptors that this program has open beside those of VMs that it asks.
const OWN_DESCRIPTORS: usize = 40;

/// How many one VM takes while it is asked: its socket, and its record or its VMM's socket.
const OF_ONE: usize = 2;

/// How many VMs may be asked at once: as many as `--parallel` says, or as descriptors allow, with a note
/// where that is fewer than are to be asked.
pub(crate) fn at_once(context: &Context, vms: usize) -> usize {
    let room = allow_descriptors().saturating_sub(OWN_DESCRIPTORS) / OF_ONE;
    let at_once = room.clamp(1, context.parallel);
    if at_once < context.parallel.min(vms) {
        context.ui.note(&format!(
            "{at_once} VMs are asked at once and not {}: more descriptors are not allowed (ulimit -Hn)",
            context.parallel
        ));
    }
    at_once
}

/// A thousand connections take more descriptors than the usual soft limit of 1,024 allows; the hard
/// one is far higher. Gives how many there may be.
pub(crate) fn allow_descriptors() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let _ = rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
    let allowed = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    // No limit at all.
    allowed.map_or(usize::MAX, |allowed| {
        usize::try_from(allowed).unwrap_or(usize::MAX)
    })
}
