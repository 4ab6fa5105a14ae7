//! Watch connections: one for each VM that should answer, again and again until it should not.

use super::{Fed, Heard, Sink, folders};
use crate::backoff::Backoff;
use mvm_client::{Deadlines, Dialer, Error, Session, Watcher};
use mvm_fleet::{Effect, Registered, RegistryEvent, RunState, Ticket};
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

/// How often it is looked whether a guest that was restored has been told so.
const LOOK_WOKEN: Duration = Duration::from_millis(100);

/// How often a VM that something else has paused is asked whether it runs again.
const ASK_PAUSED: Duration = Duration::from_secs(2);

/// How old what only `inspect` tells may get, where that costs little.
const INSPECT_EVERY: Duration = Duration::from_secs(60);

/// How many guests are inspected a second at most, beyond those that are dialled anyway: with thousands
/// of VMs that is what bounds the cost, and each is inspected more seldom.
const INSPECTED_A_SECOND: u64 = 5;

/// How guests are dialled.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) inventory: Inventory,
    pub(crate) dialer: Dialer,
    pub(crate) deadlines: Deadlines,
    /// Whether guests are inspected, too: what only `inspect` tells is in the series of each VM alone.
    pub(crate) inspect: bool,
    /// How many are dialled at once.
    pub(crate) at_once: usize,
    /// How often a guest says that it is there.
    pub(crate) heartbeat: Duration,
}

/// What all watches share.
#[derive(Debug)]
struct Dialling<S> {
    inventory: Inventory,
    dialer: Dialer,
    deadlines: Deadlines,
    inspect: bool,
    at_once: Semaphore,
    /// In ms.
    heartbeat: AtomicU64,
    /// How many are watched.
    watched: AtomicU64,
    sink: S,
}

/// The watches that run; they end with it.
#[derive(Debug)]
pub(crate) struct Watches<S> {
    dialling: Arc<Dialling<S>>,
    tasks: HashMap<Ticket, (Arc<str>, AbortHandle)>,
    /// Those that are looked at until they run again.
    paused: HashMap<Arc<str>, AbortHandle>,
}

impl<S: Sink> Watches<S> {
    /// None yet.
    pub(crate) fn new(settings: Settings, sink: S) -> Self {
        let watches = Self {
            dialling: Arc::new(Dialling {
                inventory: settings.inventory,
                dialer: settings.dialer,
                deadlines: settings.deadlines,
                inspect: settings.inspect,
                at_once: Semaphore::new(settings.at_once),
                heartbeat: AtomicU64::new(0),
                watched: AtomicU64::new(0),
                sink,
            }),
            tasks: HashMap::new(),
            paused: HashMap::new(),
        };
        watches.set_heartbeat(settings.heartbeat);
        watches
    }

    /// Does what the view wants done.
    pub(crate) fn effect(&mut self, effect: Effect) {
        match effect {
            Effect::Watch { name, ticket } => self.watch(name, ticket),
            Effect::Unwatch { ticket } => self.unwatch(ticket),
            Effect::Ask { ticket } => self.ask(ticket),
            Effect::AwaitResume { name } => self.await_resume(name),
        }
    }

    /// How often guests are to say that they are there, from their next connection on.
    pub(crate) fn set_heartbeat(&self, heartbeat: Duration) {
        let ms = u64::try_from(heartbeat.as_millis()).unwrap_or(u64::MAX);
        self.dialling.heartbeat.store(ms, Ordering::Relaxed);
    }

    fn watch(&mut self, name: Arc<str>, ticket: Ticket) {
        let task = watch(Arc::clone(&self.dialling), Arc::clone(&name), ticket);
        let handle = tokio::spawn(task).abort_handle();
        self.tasks.insert(ticket, (name, handle));
        self.count();
    }

    fn await_resume(&mut self, name: Arc<str>) {
        self.paused.retain(|_, task| !task.is_finished());
        let task = await_resume(Arc::clone(&self.dialling), Arc::clone(&name));
        let task = tokio::spawn(task).abort_handle();
        if let Some(before) = self.paused.insert(name, task) {
            before.abort();
        }
    }

    fn count(&self) {
        let watched = self.tasks.len() as u64;
        self.dialling.watched.store(watched, Ordering::Relaxed);
    }

    /// Ends a watch. A handshake that is under way is finished by the dialer.
    fn unwatch(&mut self, ticket: Ticket) {
        if let Some((_, task)) = self.tasks.remove(&ticket) {
            task.abort();
            self.count();
        }
    }

    /// Asks a guest that is watched for all that it tells, on a connection of its own.
    fn ask(&self, ticket: Ticket) {
        let Some((name, _)) = self.tasks.get(&ticket) else {
            return;
        };
        tokio::spawn(ask(Arc::clone(&self.dialling), Arc::clone(name), ticket));
    }
}

impl<S> Drop for Watches<S> {
    fn drop(&mut self) {
        let watches = self.tasks.values().map(|(_, task)| task);
        watches
            .chain(self.paused.values())
            .for_each(AbortHandle::abort);
    }
}

impl<S: Sink> Dialling<S> {
    async fn dial(&self, name: &str) -> Result<Session, Error> {
        let vm = self.inventory.now(name, self.deadlines.connect).await?;
        self.dialer.connect(vm.endpoint()?, &self.deadlines).await
    }

    fn is_unwoken(&self, name: &str) -> bool {
        folders::is_unwoken(self.inventory.home(), name)
    }

    /// Tells of a VM that something has paused. Its folder may say that it runs.
    async fn tell_paused(&self, name: &str) {
        let Some(registered) = folders::look(self.inventory.home(), name) else {
            return;
        };
        let paused = Registered {
            run_state: RunState::Paused { by_fleet: false },
            // Nobody has noted that.
            since: None,
            ..registered.clone()
        };
        let is_told = registered.run_state != RunState::Running;
        self.tell(if is_told { registered } else { paused }).await;
    }

    async fn tell(&self, registered: Registered) {
        let event = RegistryEvent::Changed(registered);
        self.sink.feed(Fed::Registry(event)).await;
    }

    /// Waits until it has been told, but no longer than for one that is to be frozen.
    async fn until_woken(&self, name: &str) {
        let until = Instant::now() + FROZEN_WITHIN;
        while self.is_unwoken(name) && Instant::now() < until {
            sleep(LOOK_WOKEN).await;
        }
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
            match self.told(&mut session).await {
                Ok(heard) => self.sink.feed(Fed::Agent(ticket, heard)).await,
                // An agent that does not know it tells the rest all the same.
                Err(Error::Refused(_) | Error::TooOld { .. } | Error::NotServed { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let heartbeat = Duration::from_millis(self.heartbeat.load(Ordering::Relaxed));
        let (status, watcher) = Watcher::start(session, heartbeat).await?;
        let heard = Heard::Status(Box::new(status));
        self.sink.feed(Fed::Agent(ticket, heard)).await;
        Ok(watcher)
    }
}

/// Asks a guest for all that it tells, on a connection of its own. Beside the watch: whichever comes
/// first, what is told here may be the older. What it could not be asked is asked
/// again later; that it is lost the watch says.
async fn ask<S: Sink>(dialling: Arc<Dialling<S>>, name: Arc<str>, ticket: Ticket) {
    let _permit = dialling.at_once.acquire().await;
    if let Ok(mut session) = dialling.dial(&name).await
        && let Ok(heard) = dialling.told(&mut session).await
    {
        let heard = match heard {
            Heard::Status(status) => Heard::AskedStatus(status),
            Heard::Inspect(inspect) => Heard::AskedInspect(inspect),
            other => other,
        };
        dialling.sink.feed(Fed::Agent(ticket, heard)).await;
    }
}

async fn watch<S: Sink>(dialling: Arc<Dialling<S>>, name: Arc<str>, ticket: Ticket) {
    let mut backoff = Backoff::up_to(LONGEST_PAUSE);
    let tell = |heard| dialling.sink.feed(Fed::Agent(ticket, heard));
    loop {
        let is_unwoken = dialling.is_unwoken(&name);
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
                if is_unwoken {
                    // It is ready since its snapshot was taken, and is about to run on.
                    dialling.until_woken(&name).await;
                } else {
                    sleep(FROZEN_WITHIN).await;
                }
            }
            Some(Error::Registry(mvm_registry::Error::NotRunning {
                state: VmState::Paused(_),
            })) => {
                // The view ends this watch then.
                dialling.tell_paused(&name).await;
                sleep(FROZEN_WITHIN).await;
            }
            Some(_) => {
                tell(Heard::Lost).await;
                sleep(backoff.pause()).await;
            }
        }
    }
}

/// Tells what a VM is that something has paused, as soon as it is something else.
async fn await_resume<S: Sink>(dialling: Arc<Dialling<S>>, name: Arc<str>) {
    let paused = RunState::Paused { by_fleet: false };
    loop {
        sleep(ASK_PAUSED).await;
        let at_most = dialling.deadlines.connect;
        if let Ok(vm) = dialling.inventory.now(&name, at_most).await
            && matches!(vm.state, VmState::Paused(_) | VmState::Unknown(_))
        {
            continue;
        }
        match folders::look(dialling.inventory.home(), &name) {
            Some(registered) if registered.run_state == paused => {}
            Some(registered) => return dialling.tell(registered).await,
            // One that is gone the folders tell of.
            None => return,
        }
    }
}
