//! Where the inputs come from: the VMs' folders, and a watch connection for each VM that should answer.

use super::input::{Heard, Input};
use super::model::HEARTBEAT;
use crate::backoff::Backoff;
use mvm_client::{Deadlines, Dialer, Error, Session, Watcher};
use mvm_fleet::{Effect, Registered, RegistryEvent, RunState, Ticket};
use mvm_registry::{Inventory, Vm, VmState, Watch};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;
use tokio::time::sleep;

/// How many inputs may wait. Agents that send faster than they are taken are read more slowly.
const WAITING: usize = 1024;

/// How long a guest that has made itself ready to be frozen may take until it is.
const FROZEN_WITHIN: Duration = Duration::from_secs(15);

/// How often a VM that something else has paused is looked at.
const PAUSED: Duration = Duration::from_secs(2);

/// What is shared by all that feeds.
#[derive(Debug)]
struct Source {
    inventory: Inventory,
    dialer: Dialer,
    deadlines: Deadlines,
    at_once: Semaphore,
    inputs: mpsc::Sender<Input>,
}

/// The watches that run; they end with it.
#[derive(Debug)]
pub(super) struct Feed {
    source: Arc<Source>,
    watches: HashMap<Ticket, (Arc<str>, AbortHandle)>,
    folders: AbortHandle,
}

impl Feed {
    /// Begins to feed, first with all VMs that there are.
    pub(super) fn start(
        inventory: Inventory,
        dialer: Dialer,
        deadlines: Deadlines,
        at_once: usize,
    ) -> (Self, mpsc::Sender<Input>, mpsc::Receiver<Input>) {
        let (inputs, received) = mpsc::channel(WAITING);
        let source = Arc::new(Source {
            inventory,
            dialer,
            deadlines,
            at_once: Semaphore::new(at_once),
            inputs: inputs.clone(),
        });
        let folders = tokio::spawn(folders(Arc::clone(&source))).abort_handle();
        let feed = Self {
            source,
            watches: HashMap::new(),
            folders,
        };
        (feed, inputs, received)
    }

    /// Does what the view wants done.
    pub(super) fn effect(&mut self, effect: Effect) {
        match effect {
            Effect::Watch { name, ticket } => {
                let task = watch(Arc::clone(&self.source), Arc::clone(&name), ticket);
                let handle = tokio::spawn(task).abort_handle();
                self.watches.insert(ticket, (name, handle));
            }
            Effect::Unwatch { ticket } => {
                // A handshake that is under way is finished by the dialer.
                if let Some((_, task)) = self.watches.remove(&ticket) {
                    task.abort();
                }
            }
            Effect::Ask { ticket } => {
                let Some((name, _)) = self.watches.get(&ticket) else {
                    return;
                };
                let (source, name) = (Arc::clone(&self.source), Arc::clone(name));
                tokio::spawn(async move {
                    // That it is lost, the watch says.
                    if let Ok(mut session) = source.dial(&name).await
                        && let Ok(inspect) = session.inspect().await
                    {
                        let heard = Heard::Inspect(Box::new(inspect));
                        source.send(Input::Agent(ticket, heard)).await;
                    }
                });
            }
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.folders.abort();
        for (_, task) in self.watches.values() {
            task.abort();
        }
    }
}

impl Source {
    async fn send(&self, input: Input) {
        // One that has ended needs none.
        let _ = self.inputs.send(input).await;
    }

    async fn dial(&self, name: &str) -> Result<Session, Error> {
        let _permit = self.at_once.acquire().await;
        let vm = self.inventory.now(name, self.deadlines.connect).await?;
        self.dialer.connect(vm.endpoint()?, &self.deadlines).await
    }

    async fn begin(&self, name: &str, ticket: Ticket) -> Result<Watcher, Error> {
        let mut session = self.dial(name).await?;
        match session.inspect().await {
            Ok(inspect) => {
                let heard = Heard::Inspect(Box::new(inspect));
                self.send(Input::Agent(ticket, heard)).await;
            }
            // An agent that does not know it tells the rest all the same.
            Err(Error::Refused(_) | Error::TooOld { .. } | Error::NotServed { .. }) => {}
            Err(error) => return Err(error),
        }
        let (status, watcher) = Watcher::start(session, HEARTBEAT).await?;
        let heard = Heard::Status(Box::new(status));
        self.send(Input::Agent(ticket, heard)).await;
        Ok(watcher)
    }

    /// What the VM's folder says now; `None` if there is no such VM.
    fn look(&self, name: &str) -> Option<Registered> {
        self.inventory.find(name).ok().map(|vm| registered(&vm))
    }
}

/// Follows the folders for ever, also those of `discover`, which tell nothing by themselves.
async fn folders(source: Arc<Source>) {
    let mut backoff = Backoff::new();
    loop {
        let list = || {
            let listing = source.inventory.list();
            let whole = listing
                .as_ref()
                .is_ok_and(|found| found.unreadable.is_empty());
            let vms = listing.map(|found| found.vms).unwrap_or_default();
            RegistryEvent::Listed {
                vms: vms.iter().map(registered).collect(),
                whole,
            }
        };
        let home = source.inventory.home();
        let watch = Watch::all(home);
        source.send(Input::Registry(list())).await;
        let Ok(mut watch) = watch else {
            // This user has no inotify instance left.
            sleep(backoff.pause()).await;
            continue;
        };
        while let Ok(change) = watch.next().await {
            let name = change.name.to_string();
            let event = match source.look(&name) {
                Some(registered) => RegistryEvent::Changed(registered),
                None => RegistryEvent::Gone { name },
            };
            source.send(Input::Registry(event)).await;
        }
    }
}

async fn watch(source: Arc<Source>, name: Arc<str>, ticket: Ticket) {
    let mut backoff = Backoff::new();
    let tell = |heard| source.send(Input::Agent(ticket, heard));
    loop {
        // In a box: ten thousand watches are kept, and few of them dial.
        let ended = match Box::pin(source.begin(&name, ticket)).await {
            Ok(mut watcher) => {
                backoff = Backoff::new();
                loop {
                    match watcher.next().await {
                        Ok(Some(event)) => tell(Heard::Event(Box::new(event))).await,
                        Ok(None) => break None,
                        Err(error) => break Some(error),
                    }
                }
            }
            Err(error) => Some(error),
        };
        match ended {
            None => {
                tell(Heard::LetGo).await;
                sleep(FROZEN_WITHIN).await;
            }
            Some(Error::Registry(mvm_registry::Error::NotRunning {
                state: VmState::Paused(_),
            })) => {
                // The view ends this watch then, so another task sees when it runs again.
                tokio::spawn(paused(Arc::clone(&source), Arc::clone(&name)));
                sleep(FROZEN_WITHIN).await;
            }
            Some(_) => {
                tell(Heard::Lost).await;
                sleep(backoff.pause()).await;
            }
        }
    }
}

/// Tells of a VM that something has paused, of which its folder says nothing, and when it runs again.
async fn paused(source: Arc<Source>, name: Arc<str>) {
    let Some(registered) = source.look(&name) else {
        return;
    };
    let run_state = RunState::Paused { by_fleet: false };
    let paused = Registered {
        run_state,
        ..registered
    };
    source
        .send(Input::Registry(RegistryEvent::Changed(paused)))
        .await;
    loop {
        sleep(PAUSED).await;
        let vm = source.inventory.now(&name, source.deadlines.connect).await;
        if !matches!(&vm, Ok(vm) if matches!(vm.state, VmState::Paused(_) | VmState::Unknown(_))) {
            break;
        }
    }
    if let Some(registered) = source.look(&name) {
        source
            .send(Input::Registry(RegistryEvent::Changed(registered)))
            .await;
    }
}

fn registered(vm: &Vm) -> Registered {
    Registered {
        pool: Some(vm.pool().to_owned()),
        pinned: vm.pinned,
        ..Registered::new(&vm.name, run_state(&vm.state))
    }
}

fn run_state(state: &VmState) -> RunState {
    match state {
        VmState::Running => RunState::Running,
        VmState::Starting => RunState::Starting,
        VmState::Paused(_) => RunState::Paused { by_fleet: false },
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
