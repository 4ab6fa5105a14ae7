//! What a VM is now, and when that changes: where the commands ask that follow a VM over its sleeps
//! and its end.
//!
//! The registry says what it is. That it may have changed is told by inotify, for its folder (where this
//! user has no instance of it left, it is looked at each second), and by a pidfd, for its process. Two
//! questions are all that is asked here, [`VmState::now`] and [`VmState::changed`].

use crate::backoff::Backoff;
use crate::commands::Context;
use crate::feed::folders;
use crate::report::Failure;
use futures_util::future::FutureExt as _;
use mvm_client::{Error, Vm};
use mvm_registry::{Ending, Inventory, VmName, VmState as Registered};
use mvm_vmm::Vmms;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

/// How long whoever has made a guest ready may take from there to saying in the VM's record that it is
/// frozen; see [`VmState::frozen_or_not`].
const FROZEN_WITHIN: Duration = Duration::from_secs(15);

/// How often a VM is looked at of which nobody tells that it has changed.
const UNTOLD: Duration = Duration::from_secs(1);

/// The file that tells a VM's state.
const RECORD: &CStr = c"vm.json";

/// What a VM is now.
#[derive(Debug)]
pub(crate) enum Now {
    /// Nothing says that it does not run: its agent may be dialled.
    Runs(Vm),
    /// It was stopped or put to sleep in order, or is on its way up: it may run again.
    Off(Error),
    /// Its VMM has ended by itself, in that way.
    Ended(Ending, Failure),
}

/// The VMs whose changes are told. One for a process: inotify's instances are few.
pub(crate) struct VmStates<'a> {
    context: &'a Context,
    /// None where this user has no instance left: 128 by default, and each program that follows VMs
    /// takes one.
    inotify: Option<AsyncFd<OwnedFd>>,
    /// By the number of their watch.
    watched: RefCell<HashMap<i32, Rc<Changes>>>,
}

/// What was told of one VM's folder.
#[derive(Debug, Default)]
struct Changes {
    /// How often its record was written.
    writes: Cell<u64>,
    news: Notify,
}

/// One VM, and what was told of it.
pub(crate) struct VmState<'a> {
    states: &'a VmStates<'a>,
    name: String,
    /// None if nobody tells.
    changes: Option<Rc<Changes>>,
    /// The pidfd of its process, while that runs.
    process: Option<AsyncFd<OwnedFd>>,
    /// How many writes are known: those that came before it was last waited for.
    known: u64,
    was_off: bool,
    /// Whether a change was told after which nobody has looked to the end yet: whoever did may have been
    /// dropped meanwhile.
    unseen: bool,
    /// Since when it runs on, if that was seen, and how long to wait for its guest to be woken.
    runs_on: Option<(Instant, Backoff)>,
}

impl<'a> VmStates<'a> {
    pub(crate) fn new(context: &'a Context) -> Self {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK);
        Self {
            context,
            inotify: inotify.ok().and_then(|inotify| readable(inotify).ok()),
            watched: RefCell::default(),
        }
    }

    /// Begins to watch one of that name. What changes from now on is told.
    pub(crate) fn of(&'a self, name: &str) -> Result<VmState<'a>, Failure> {
        let folder = folder(&self.context.inventory()?, name);
        Ok(VmState {
            states: self,
            name: name.to_owned(),
            changes: folder.and_then(|folder| self.watch(&folder)),
            process: None,
            known: 0,
            was_off: false,
            unseen: false,
            runs_on: None,
        })
    }

    /// Begins to watch a file that is written to.
    pub(crate) fn growth_of(&'a self, file: &Path) -> Growth<'a> {
        let watch = |inotify: &AsyncFd<OwnedFd>| {
            let number = inotify::add_watch(inotify.get_ref(), file, WatchFlags::MODIFY).ok()?;
            let mut watched = self.watched.borrow_mut();
            Some(Rc::clone(watched.entry(number).or_default()))
        };
        Growth {
            states: self,
            changes: self.inotify.as_ref().and_then(watch),
        }
    }

    fn watch(&self, folder: &Path) -> Option<Rc<Changes>> {
        let flags = WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        let Some(inotify) = &self.inotify else {
            return folder.is_dir().then(Rc::default);
        };
        let number = inotify::add_watch(inotify.get_ref(), folder, flags).ok()?;
        let mut watched = self.watched.borrow_mut();
        Some(Rc::clone(watched.entry(number).or_default()))
    }

    /// Reads what changed, and tells each VM's followers. Whoever waits does this for all: any of them
    /// may be the one that is woken.
    async fn read(&self) {
        let guard = match &self.inotify {
            Some(inotify) => inotify.readable().await.ok(),
            None => None,
        };
        match guard {
            Some(mut guard) => {
                self.read_now();
                guard.clear_ready();
            }
            // Better late than never.
            None => sleep(UNTOLD).await,
        }
    }

    fn read_now(&self) {
        let Some(inotify) = &self.inotify else {
            return;
        };
        let mut buffer = [const { MaybeUninit::uninit() }; 4096];
        let mut reader = inotify::Reader::new(inotify.get_ref(), &mut buffer);
        loop {
            match reader.next() {
                Ok(event) => self.tell(event.wd(), event.events(), event.file_name()),
                Err(Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    fn tell(&self, watch: i32, what: ReadFlags, name: Option<&CStr>) {
        let watched = self.watched.borrow();
        if what.contains(ReadFlags::QUEUE_OVERFLOW) {
            watched.values().for_each(|it| it.news.notify_one());
        } else if name.is_none_or(|name| name == RECORD)
            && let Some(changes) = watched.get(&watch)
        {
            let written = what.intersects(ReadFlags::CLOSE_WRITE | ReadFlags::MOVED_TO);
            changes
                .writes
                .set(changes.writes.get() + u64::from(written));
            changes.news.notify_one();
        }
    }
}

/// A file, and whether it was written to.
pub(crate) struct Growth<'a> {
    states: &'a VmStates<'a>,
    /// None if nobody tells.
    changes: Option<Rc<Changes>>,
}

impl Growth<'_> {
    /// Waits until it may have been written to since the last time that this was waited for.
    pub(crate) async fn changed(&self) {
        let Some(changes) = &self.changes else {
            return sleep(UNTOLD).await;
        };
        loop {
            tokio::select! {
                biased;
                () = changes.news.notified() => return,
                () = self.states.read() => {}
            }
        }
    }
}

/// The folder of a VM, if that is a name and no address.
fn folder(inventory: &Inventory, name: &str) -> Option<PathBuf> {
    let name = VmName::new(name).ok()?;
    Some(inventory.home().vm(&name).path().to_owned())
}

/// A descriptor of which the runtime tells that it can be read.
#[expect(
    unsafe_code,
    reason = "the runtime cannot see that an OwnedFd keeps its descriptor"
)]
fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` owns its descriptor, gives the same one each time, and is dropped after
    // the `AsyncFd` has deregistered it.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

impl VmState<'_> {
    /// Its name, or its address.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether somebody tells that it is frozen, and that it runs again. Nobody does of an address, of
    /// a VM that `discover` has found, and of a bare socket.
    pub(crate) fn is_told(&self) -> bool {
        let inventory = self.states.context.inventory();
        self.changes.is_some()
            && inventory.is_ok_and(|inventory| {
                let folder = folder(&inventory, &self.name);
                folder.is_some_and(|folder| folder.join("vm.json").symlink_metadata().is_ok())
            })
    }

    /// What it is now.
    ///
    /// # Errors
    ///
    /// There is no such VM any more, or its record cannot be read.
    pub(crate) async fn now(&mut self) -> Result<Now, Error> {
        let now = self.look().await;
        self.unseen = false;
        let now = now?;
        let is_off = !matches!(now, Now::Runs(_));
        if self.was_off && !is_off {
            self.ran_on();
        }
        self.was_off = is_off;
        Ok(now)
    }

    async fn look(&mut self) -> Result<Now, Error> {
        let inventory = match self.states.context.inventory() {
            Ok(inventory) => inventory,
            // Its settings were read before, and are being changed now.
            Err(_) => Inventory::without_settings()?.with_vmms(Arc::new(Vmms)),
        };
        let at_most = self.states.context.deadlines().connect;
        let vm = inventory.now(&self.name, at_most).await?;
        let alive = vm.record().and_then(|record| record.alive().ok());
        let main = alive.and_then(|alive| alive.into_iter().find(|it| it.role.is_main()));
        self.process = main.and_then(|main| readable(main.into_pidfd()).ok());
        let Err(error) = vm.endpoint() else {
            return Ok(Now::Runs(vm));
        };
        match vm.state {
            Registered::Ended(ref how) => {
                let failure = Failure::registry(&self.name, &error);
                Ok(Now::Ended(how.clone(), failure))
            }
            Registered::Unknown(_) => Err(error.into()),
            _ => Ok(Now::Off(error.into())),
        }
    }

    /// Waits until it may have changed since the last time that this was waited for. For ever, if
    /// nobody tells.
    pub(crate) async fn changed(&mut self) {
        if self.unseen {
            return;
        }
        let Some(changes) = &self.changes else {
            return std::future::pending().await;
        };
        let process = &self.process;
        let ended = async {
            match process {
                Some(process) => drop(process.readable().await),
                None => std::future::pending().await,
            }
        };
        tokio::pin!(ended);
        loop {
            tokio::select! {
                biased;
                () = changes.news.notified() => break,
                () = &mut ended => break,
                () = self.states.read() => if self.states.inotify.is_none() {
                    break;
                },
            }
        }
        self.known = changes.writes.get();
        self.unseen = true;
    }

    /// Waits until it is something else than a VM that runs.
    pub(crate) async fn until_not_running(&mut self) -> Result<Now, Error> {
        loop {
            self.changed().await;
            match self.now().await? {
                Now::Runs(_) => {}
                now => return Ok(now),
            }
        }
    }

    /// Waits until its guest has been told that it was restored, if it was, but no longer than for one
    /// that is to be frozen: whoever was to tell it may have been killed.
    pub(crate) async fn until_woken(&mut self) {
        let told = async {
            while self.is_unwoken() {
                self.changed().await;
                // It is looked at right now.
                self.unseen = false;
            }
        };
        let _ = timeout(FROZEN_WITHIN, told).await;
    }

    fn is_unwoken(&self) -> bool {
        let inventory = self.states.context.inventory();
        inventory.is_ok_and(|inventory| folders::is_unwoken(inventory.home(), &self.name))
    }

    fn ran_on(&mut self) {
        self.runs_on = Some((Instant::now(), Backoff::new()));
    }

    /// After its guest has said that it is ready to be frozen: waits until its record tells that it is,
    /// or that it was and runs on. If nobody freezes it (its snapshot was given up, or its orchestrator
    /// writes no record) some seconds are waited for. One that has just begun to run on is ready until
    /// it is woken, which it is in a moment.
    pub(crate) async fn frozen_or_not(&mut self) {
        if let Some((since, backoff)) = &mut self.runs_on
            && since.elapsed() < FROZEN_WITHIN
        {
            let pause = backoff.pause();
            let _ = timeout(pause, self.changed()).await;
            return;
        }
        self.states.read_now();
        if let Some(changes) = &self.changes {
            let missed = changes.writes.get() - self.known;
            self.known = changes.writes.get();
            let _ = changes.news.notified().now_or_never();
            // That it is about to be snapshotted may be written when the guest is not ready yet. What
            // follows tells that it is frozen, and then that it runs on.
            if missed > 1 {
                return self.ran_on();
            }
        }
        if let Ok(Now::Runs(_)) = self.now().await
            && timeout(FROZEN_WITHIN, self.changed()).await.is_ok()
        {
            // Whether it is frozen, or was and runs on already.
            self.was_off = true;
        }
    }
}
