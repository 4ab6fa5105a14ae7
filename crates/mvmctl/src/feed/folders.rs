//! What the VMs' folders say: followed, and turned into what the view takes.

use super::{Fed, Sink, Unreadable};
use mvm_fleet::{FailedAction, Registered, RegistryEvent, RunState};
use mvm_registry::{Ending, Error, Home, Inventory, Known, Pause, VmName, VmState, Watch};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::task::{AbortHandle, JoinHandle, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval, sleep};

/// How often the folders of `discover` are looked at: others make sockets there, as seldom as VMs.
const DISCOVER_EVERY: Duration = Duration::from_secs(5);

/// How long to wait after the folders could not be watched until it is tried again.
const AGAIN_AFTER: Duration = Duration::from_secs(2);

/// Ends with this.
#[derive(Debug)]
pub(crate) struct Following(AbortHandle);

impl Drop for Following {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Follows all folders from now on.
pub(crate) fn watch(inventory: Inventory, sink: impl Sink) -> Following {
    let task: JoinHandle<()> = tokio::spawn(async move {
        loop {
            let Err(error) = follow(&inventory, &sink).await;
            tracing::warn!("the folders of VMs cannot be watched: {error}");
            // There may be others, too, until the next look.
            let vms = listed(&inventory);
            let event = RegistryEvent::Listed { vms, whole: false };
            sink.feed(Fed::Registry(event)).await;
            let unreadable = Unreadable {
                problem: format!("the folders of VMs cannot be watched: {error}"),
                hint: None,
            };
            sink.feed(Fed::Unreadable(vec![unreadable])).await;
            sleep(AGAIN_AFTER).await;
        }
    });
    Following(task.abort_handle())
}

async fn follow(
    inventory: &Inventory,
    sink: &impl Sink,
) -> Result<std::convert::Infallible, Error> {
    let home = inventory.home().clone();
    // Ten thousand folders take a second or two to read.
    let begun = spawn_blocking({
        let home = home.clone();
        move || Watch::all(&home)
    });
    let mut watch = match begun.await {
        Ok(watch) => watch?,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    };
    let mut strangers = Strangers::default();
    let mut vms: Vec<_> = watch
        .all_known()
        .map(|(name, known)| registered(name.as_str(), known))
        .collect();
    let found = strangers.look(inventory);
    let whole = strangers.unreadable.is_empty();
    vms.extend(found.into_iter().filter(|vm| !is_known(&watch, &vm.name)));
    sink.feed(Fed::Registry(RegistryEvent::Listed { vms, whole }))
        .await;
    // Those of a try before this one are over.
    sink.feed(Fed::Unreadable(strangers.unreadable.clone()))
        .await;
    let mut discover = interval(DISCOVER_EVERY);
    discover.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let change = tokio::select! {
            change = watch.next() => change?,
            _ = discover.tick() => {
                let (names, unreadable) = (strangers.names.clone(), strangers.unreadable.clone());
                let found = strangers.look(inventory);
                if (&strangers.names, &strangers.unreadable) != (&names, &unreadable) {
                    let whole = strangers.unreadable.is_empty();
                    let mut vms: Vec<_> = watch.all_known().map(|(name, known)| registered(name.as_str(), known)).collect();
                    vms.extend(found.into_iter().filter(|vm| !is_known(&watch, &vm.name)));
                    sink.feed(Fed::Registry(RegistryEvent::Listed { vms, whole })).await;
                    sink.feed(Fed::Unreadable(strangers.unreadable.clone())).await;
                }
                continue;
            }
        };
        let name = change.name.as_str();
        let event = match watch.known(&change.name) {
            Some(known) => RegistryEvent::Changed(registered(name, known)),
            None if strangers.names.contains(name) => RegistryEvent::Changed(stranger(name)),
            None => RegistryEvent::Gone {
                name: name.to_owned(),
            },
        };
        sink.feed(Fed::Registry(event)).await;
    }
}

/// What can be found without following anything.
fn listed(inventory: &Inventory) -> Vec<Registered> {
    let found = inventory.list().map(|found| found.vms).unwrap_or_default();
    let look = |name: &str| look(inventory.home(), name).unwrap_or_else(|| stranger(name));
    found.iter().map(|vm| look(&vm.name)).collect()
}

fn is_known(watch: &Watch, name: &str) -> bool {
    VmName::new(name).is_ok_and(|name| watch.known(&name).is_some())
}

/// What the folder of a VM says now; none if there is no VM in it.
pub(crate) fn look(home: &Home, name: &str) -> Option<Registered> {
    let folder = home.vm(&VmName::new(name).ok()?);
    let known = Known::of(&folder.vm()?, &folder);
    Some(registered(name, &known))
}

/// Whether a VM was restored, and its guest is not known to have been told.
pub(crate) fn is_unwoken(home: &Home, name: &str) -> bool {
    let name = VmName::new(name).ok();
    let record = name.and_then(|name| home.vm(&name).record().ok());
    record.is_some_and(|record| record.unwoken.is_some())
}

/// The VMs that `discover` finds, and the folders that it cannot look at.
#[derive(Debug, Default)]
struct Strangers {
    names: BTreeSet<String>,
    unreadable: Vec<Unreadable>,
}

impl Strangers {
    /// Looks for them.
    fn look(&mut self, inventory: &Inventory) -> Vec<Registered> {
        let listing = inventory.strangers();
        let unreadable = listing.unreadable.iter().map(|one| Unreadable {
            problem: one.to_string(),
            hint: Some(one.hint()),
        });
        self.unreadable = unreadable.collect();
        let vms = listing.vms.iter().map(|vm| stranger(&vm.name)).collect();
        self.names = listing.vms.into_iter().map(|vm| vm.name).collect();
        vms
    }
}

fn stranger(name: &str) -> Registered {
    Registered::new(name, RunState::NotOurs)
}

fn registered(name: &str, known: &Known) -> Registered {
    let notes = &known.notes;
    let run_state = match run_state(&known.state) {
        // Its restore was broken off: it sleeps where it slept.
        RunState::StartBrokenOff if known.sleeps => RunState::Asleep,
        run_state => run_state,
    };
    let failed = notes.fleet.failed.as_ref().and_then(|failed| {
        let mut kinds = mvm_fleet::ActionKind::ALL.into_iter();
        Some(FailedAction {
            action: kinds.find(|kind| kind.as_str() == failed.action)?,
            at: failed.at,
            times: failed.times,
        })
    });
    Registered {
        pool: known.pool.as_deref().map(str::to_owned),
        // When it ended, or something else paused it, nobody has noted.
        since: known.since.filter(|_| is_noted(&known.state)),
        started_at: known.started_at,
        has_crashed: matches!(&known.state, VmState::Ended(how) if is_crash(how)),
        made_by_fleet: notes.fleet.made,
        // Nobody may do anything to another's, or to one of which nobody knows what is wanted.
        pinned: known.pinned || !known.is_ours || notes.is_unreadable,
        touched_at: notes.touched.at,
        keep_until: notes.touched.keep_until,
        failed,
        ..Registered::new(name, run_state)
    }
}

fn is_crash(how: &Ending) -> bool {
    match how {
        Ending::Panicked(_) | Ending::Crashed(_) | Ending::Killed(_) | Ending::Unknown => true,
        Ending::PoweredOff | Ending::Restarted | Ending::HostRestarted => false,
    }
}

fn is_noted(state: &VmState) -> bool {
    !matches!(state, VmState::Ended(_) | VmState::Paused(Pause::Other))
}

fn run_state(state: &VmState) -> RunState {
    match state {
        VmState::Running => RunState::Running,
        VmState::Starting => RunState::Starting,
        VmState::Paused(Pause::Fleet) => RunState::Paused { by_fleet: true },
        VmState::Paused(Pause::Snapshot | Pause::BrokenSnapshot | Pause::Asked | Pause::Other) => {
            RunState::Paused { by_fleet: false }
        }
        VmState::Asleep { .. } => RunState::Asleep,
        VmState::Stopped => RunState::Stopped,
        VmState::Ended(_) => RunState::Ended,
        VmState::StartBrokenOff => RunState::StartBrokenOff,
        VmState::NotOurs { state } => match state.as_deref() {
            None => RunState::NotOurs,
            Some("asleep") => RunState::Asleep,
            Some("paused") => RunState::Paused { by_fleet: false },
            Some("starting") => RunState::Starting,
            Some("stopped") => RunState::Stopped,
            Some(_) => RunState::Unreadable,
        },
        VmState::Unknown(_) => RunState::Unreadable,
    }
}
