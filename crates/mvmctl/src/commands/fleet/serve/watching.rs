//! Watch connections: one for each VM that should answer, again and again until it should not.

use super::inputs::{Heard, Input, Inputs};
use crate::backoff::Backoff;
use mvm_client::{Deadlines, Dialer, Error, Session, Watcher};
use mvm_fleet::Ticket;
use mvm_registry::{Inventory, VmState};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};

/// The longest pause before a VM is dialled again that cannot be reached. One that comes back writes
/// its record, and is dialled then.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How long a guest that has made itself ready to be frozen may take until it is.
const FROZEN_WITHIN: Duration = Duration::from_secs(15);

/// How often a VM that something else has paused is asked whether it runs again.
const ASK_PAUSED: Duration = Duration::from_secs(2);

/// How old what only `inspect` tells may get, where that costs little.
const INSPECT_EVERY: Duration = Duration::from_secs(60);

/// How many guests are inspected a second at most, beyond those that are dialled anyway: with thousands
/// of VMs that is what bounds the cost, and each is inspected more seldom.
const INSPECTED_A_SECOND: u64 = 5;

/// How guests are dialled.
#[derive(Debug)]
pub(super) struct Dialling {
    pub(super) inventory: Inventory,
    pub(super) dialer: Dialer,
    pub(super) deadlines: Deadlines,
    /// Whether guests are inspected, too: what only `inspect` tells is in the series of each VM alone.
    pub(super) inspect: bool,
    /// How many are dialled at once.
    pub(super) at_once: Semaphore,
    /// How often a guest says that it is there, in ms.
    pub(super) heartbeat: AtomicU64,
    /// How many are watched.
    pub(super) watched: AtomicU64,
    pub(super) inputs: Inputs,
}

/// The watches that run.
#[derive(Debug)]
pub(super) struct Watches {
    dialling: Arc<Dialling>,
    tasks: HashMap<Ticket, (Arc<str>, AbortHandle)>,
}

impl Watches {
    pub(super) fn new(dialling: Dialling) -> Self {
        Self {
            dialling: Arc::new(dialling),
            tasks: HashMap::new(),
        }
    }

    /// How often guests are to say that they are there, from their next connection on.
    pub(super) fn set_heartbeat(&self, heartbeat: Duration) {
        let ms = u64::try_from(heartbeat.as_millis()).unwrap_or(u64::MAX);
        self.dialling.heartbeat.store(ms, Ordering::Relaxed);
    }

    pub(super) fn watch(&mut self, name: Arc<str>, ticket: Ticket) {
        let task = watch(Arc::clone(&self.dialling), Arc::clone(&name), ticket);
        let handle = tokio::spawn(task).abort_handle();
        self.tasks.insert(ticket, (name, handle));
        self.count();
    }

    fn count(&self) {
        let watched = self.tasks.len() as u64;
        self.dialling.watched.store(watched, Ordering::Relaxed);
    }

    /// Ends a watch. A handshake that is under way is finished by the dialer.
    pub(super) fn unwatch(&mut self, ticket: Ticket) {
        if let Some((_, task)) = self.tasks.remove(&ticket) {
            task.abort();
            self.count();
        }
    }

    /// Asks a guest that is watched for all that it tells, on a connection of its own.
    pub(super) fn ask(&self, ticket: Ticket) {
        let Some((name, _)) = self.tasks.get(&ticket) else {
            return;
        };
        tokio::spawn(ask(Arc::clone(&self.dialling), Arc::clone(name), ticket));
    }

    /// Tells of a VM that something else has paused when it may run again.
    pub(super) fn until_resumed(&self, name: Arc<str>) {
        let dialling = Arc::clone(&self.dialling);
        tokio::spawn(async move {
            loop {
                sleep(ASK_PAUSED).await;
                let at_most = dialling.deadlines.connect;
                match dialling.inventory.now(&name, at_most).await {
                    Ok(vm) if matches!(vm.state, VmState::Paused(_) | VmState::Unknown(_)) => {}
                    _ => break,
                }
            }
            dialling.inputs.send(Input::Look(name)).await;
        });
    }
}

impl Drop for Watches {
    fn drop(&mut self) {
        for (_, task) in self.tasks.values() {
            task.abort();
        }
    }
}

impl Dialling {
    async fn dial(&self, name: &str) -> Result<Session, Error> {
        let vm = self.inventory.now(name, self.deadlines.connect).await?;
        self.dialer.connect(vm.endpoint()?, &self.deadlines).await
    }

    /// How often each guest is inspected.
    fn inspect_every(&self) -> Duration {
        if !self.inspect {
            return Duration::MAX;
        }
        let watched = self.watched.load(Ordering::Relaxed);
        INSPECT_EVERY.max(Duration::from_secs(watched / INSPECTED_A_SECOND))
    }

    async fn told(&self, session: &mut Session) -> Result<Heard, Error> {
        Ok(if self.inspect {
            Heard::Inspect(Box::new(session.inspect().await?))
        } else {
            Heard::Status(Box::new(session.status().await?))
        })
    }

    /// Dials and begins to watch.
    async fn begin(&self, name: &str, ticket: Ticket) -> Result<Watcher, Error> {
        let _permit = self.at_once.acquire().await;
        let mut session = self.dial(name).await?;
        if self.inspect {
            let heard = self.told(&mut session).await?;
            self.inputs.send(Input::Agent(ticket, heard)).await;
        }
        let heartbeat = Duration::from_millis(self.heartbeat.load(Ordering::Relaxed));
        let (status, watcher) = Watcher::start(session, heartbeat).await?;
        let heard = Heard::Status(Box::new(status));
        self.inputs.send(Input::Agent(ticket, heard)).await;
        Ok(watcher)
    }
}

/// Asks a guest for all that it tells, on a connection of its own. What it could not be asked is asked
/// again later; that it is lost the watch says.
async fn ask(dialling: Arc<Dialling>, name: Arc<str>, ticket: Ticket) {
    let _permit = dialling.at_once.acquire().await;
    if let Ok(mut session) = dialling.dial(&name).await
        && let Ok(heard) = dialling.told(&mut session).await
    {
        dialling.inputs.send(Input::Agent(ticket, heard)).await;
    }
}

async fn watch(dialling: Arc<Dialling>, name: Arc<str>, ticket: Ticket) {
    let mut backoff = Backoff::up_to(LONGEST_PAUSE);
    let tell = |heard| dialling.inputs.send(Input::Agent(ticket, heard));
    loop {
        // In a box of its own: ten thousand watches are kept, and few of them dial.
        let begun = Box::pin(dialling.begin(&name, ticket)).await;
        let error = match begun {
            Ok(mut watcher) => {
                backoff = Backoff::up_to(LONGEST_PAUSE);
                let mut inspected = Instant::now();
                loop {
                    match watcher.next().await {
                        Ok(Some(event)) => {
                            tell(Heard::Event(Box::new(event))).await;
                            if inspected.elapsed() >= dialling.inspect_every() {
                                inspected = Instant::now();
                                let name = Arc::clone(&name);
                                tokio::spawn(ask(Arc::clone(&dialling), name, ticket));
                            }
                        }
                        Ok(None) => break None,
                        Err(error) => break Some(error),
                    }
                }
            }
            Err(error) => Some(error),
        };
        match error {
            None => {
                tell(Heard::LetGo).await;
                sleep(FROZEN_WITHIN).await;
            }
            Some(Error::Registry(mvm_registry::Error::NotRunning {
                state: VmState::Paused(_),
            })) => {
                // What follows ends this watch.
                let input = Input::PausedByOthers(Arc::clone(&name));
                dialling.inputs.send(input).await;
                sleep(ASK_PAUSED).await;
            }
            Some(_) => {
                tell(Heard::Lost).await;
                sleep(backoff.pause()).await;
            }
        }
    }
}
