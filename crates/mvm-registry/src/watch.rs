//! Told when what a VM is changes: by the end of its processes (pidfds) and by what is written to its
//! folder (inotify). Nothing is looked at that no event asked for.
//!
//! ```text
//! vms/             a folder comes or goes        ─┐
//! vms/NAME/        vm.json, v.sock, notes        ─┼─► epoll ─► looked at anew ─► Change, if it is one
//! pidfds           of its processes, and of who  ─┘
//!                  holds its lock
//! ```
//!
//! Each descriptor is registered before what it tells of is looked at, so that nothing is missed in
//! between. What cannot be told so: that something else pauses a VM. Whoever dials asks for that.

use crate::inventory::Vm;
use crate::labels::POOL;
use crate::notes::Notes;
use crate::process::ProcessId;
use crate::state::{Pause, VmState};
use crate::{Error, Home, VmFolder, VmName};
use mvm_protocol::Timestamp;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::fs::inotify::{self, ReadFlags, WatchFlags};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How many events are taken at once.
const AT_ONCE: usize = 64;

/// What epoll calls the one descriptor of inotify. The others are pidfds, numbered from 1.
const FILES: u64 = 0;

/// The events of a VM's folder after which it is looked at.
const CONTENT: WatchFlags = WatchFlags::MOVED_TO
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::ONLYDIR);

/// The events of the folder in which those are.
const FOLDERS: WatchFlags = WatchFlags::MOVED_TO
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR);

/// What a VM's folder and its processes say of it, in short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// What it is.
    pub state: VmState,
    /// Whether `mvmctl` started it.
    pub is_ours: bool,
    /// Its label `pool`.
    pub pool: Option<Box<str>>,
    /// Whether the fleet is to leave it alone.
    pub pinned: bool,
    /// Since when its record says what it says.
    pub since: Option<Timestamp>,
    /// When it was started or cloned.
    pub started_at: Option<Timestamp>,
    /// Whether there is a snapshot in which it sleeps, also if somebody has begun to restore it.
    pub sleeps: bool,
    /// What else is noted of it.
    pub notes: Notes,
}

impl Known {
    /// What the folder of a VM of ours says, or that of another's.
    pub fn of(vm: &Vm, folder: &VmFolder) -> Self {
        let record = vm.record();
        Self {
            state: vm.state.clone(),
            is_ours: record.is_some(),
            pool: vm.labels.get(POOL).map(Into::into),
            pinned: vm.pinned,
            since: record.and_then(|record| record.since),
            started_at: record.and_then(|record| record.started_at),
            sleeps: record.is_some_and(|record| record.suspended_in.is_some()),
            notes: record.map(|_| folder.notes()).unwrap_or_default(),
        }
    }
}

/// Something has become of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Which one.
    pub name: VmName,
    /// What it is now; `None` if it is not there any more.
    pub state: Option<VmState>,
}

/// Watches VMs of `$MVM_HOME`: those that were named, or all.
#[derive(Debug)]
pub struct Watch {
    /// The epoll of `vms` once more, which can be waited for while that is changed.
    ready: OwnedFd,
    vms: Vms,
}

impl Watch {
    /// Begins to watch the VMs of those names, whether they are there or not.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], also if this user has no inotify instance left.
    pub fn of(home: &Home, names: impl IntoIterator<Item = VmName>) -> Result<Self, Error> {
        Self::new(home, Some(names.into_iter().collect()))
    }

    /// Begins to watch all VMs, those that are still to come as well. Told is any change of what is
    /// [known](Watch::known) of one, and not only that of its state.
    ///
    /// # Errors
    ///
    /// Those of [`Watch::of`].
    pub fn all(home: &Home) -> Result<Self, Error> {
        Self::new(home, None)
    }

    fn new(home: &Home, names: Option<BTreeSet<VmName>>) -> Result<Self, Error> {
        let begin = || {
            let mut vms = Vms::new(home.clone(), names)?;
            vms.look_at_all()?;
            vms.changes.clear();
            Ok(Self {
                ready: vms.epoll.try_clone()?,
                vms,
            })
        };
        begin().map_err(Error::io("watch", &home.vms()))
    }

    /// What a VM is, as of the last change that was told; `None` if there is none of that name.
    pub fn state(&self, name: &VmName) -> Option<&VmState> {
        self.known(name).map(|known| &known.state)
    }

    /// What is known of a VM, likewise.
    pub fn known(&self, name: &VmName) -> Option<&Known> {
        self.vms.watched.get(name)?.known.as_ref()
    }

    /// All VMs that there are, likewise.
    pub fn all_known(&self) -> impl Iterator<Item = (&VmName, &Known)> {
        let all = self.vms.watched.iter();
        all.filter_map(|(name, vm)| Some((name, vm.known.as_ref()?)))
    }

    /// The next change. It may be dropped while it waits, without losing anything. A VM that changes
    /// twice before it is looked at has changed once.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub async fn next(&mut self) -> Result<Change, Error> {
        let Self { ready, vms } = self;
        let next = async {
            #[expect(
                unsafe_code,
                reason = "tokio has no other way for a descriptor of one's own"
            )]
            // SAFETY: the descriptor is borrowed for longer than this lives, and is always the same.
            let ready =
                unsafe { AsyncFd::register_with_interest(ready.as_fd(), Interest::READABLE) }?;
            loop {
                if let Some(change) = vms.changes.pop_front() {
                    return Ok(change);
                }
                let mut guard = ready.readable().await?;
                guard.clear_ready();
                vms.take_events()?;
            }
        };
        next.await.map_err(Error::io("watch", &vms.home.vms()))
    }

    /// The same for those who may block; `None` if nothing has changed by then.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn wait(&mut self, at_most: Duration) -> Result<Option<Change>, Error> {
        let until = Instant::now() + at_most;
        let Self { ready, vms } = self;
        let mut next = || {
            loop {
                if let Some(change) = vms.changes.pop_front() {
                    return Ok(Some(change));
                }
                let left = until.saturating_duration_since(Instant::now());
                let left = Timespec::try_from(left).map_err(io::Error::other)?;
                match poll(&mut [PollFd::new(&*ready, PollFlags::IN)], Some(&left)) {
                    Ok(0) => return Ok(None),
                    Ok(_) => vms.take_events()?,
                    Err(Errno::INTR) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
        };
        let next = next();
        next.map_err(Error::io("watch", &self.vms.home.vms()))
    }
}

/// The VMs that are watched, and by what.
#[derive(Debug)]
struct Vms {
    home: Home,
    /// Those that were named; none means all.
    names: Option<BTreeSet<VmName>>,
    epoll: OwnedFd,
    inotify: OwnedFd,
    /// The watch on `vms/`, or on the nearest folder above it that is there.
    root: Option<i32>,
    /// Whether it is `vms/`: then an event's name is that of a VM.
    is_vms_watched: bool,
    folders: BTreeMap<i32, VmName>,
    watched: BTreeMap<VmName, Watched>,
    /// Whose process ends when that descriptor of epoll's is ready.
    processes: BTreeMap<u64, VmName>,
    next_process: u64,
    changes: VecDeque<Change>,
}

#[derive(Debug, Default)]
struct Watched {
    known: Option<Known>,
    folder: Option<i32>,
    /// Open for as long as their ends are waited for.
    processes: Vec<(u64, OwnedFd)>,
}

impl Vms {
    fn new(home: Home, names: Option<BTreeSet<VmName>>) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let inotify = inotify::init(flags)?;
        let files = epoll::EventData::new_u64(FILES);
        epoll::add(&epoll, &inotify, files, epoll::EventFlags::IN)?;
        Ok(Self {
            home,
            names,
            epoll,
            inotify,
            root: None,
            is_vms_watched: false,
            folders: BTreeMap::new(),
            watched: BTreeMap::new(),
            processes: BTreeMap::new(),
            next_process: FILES + 1,
            changes: VecDeque::new(),
        })
    }

    /// Takes what has come about, until nothing more has: only then will there be another wakeup.
    fn take_events(&mut self) -> io::Result<()> {
        loop {
            let mut events = [MaybeUninit::<epoll::Event>::uninit(); AT_ONCE];
            let (events, _) = match epoll::wait(&self.epoll, &mut events, Some(&ZERO)) {
                Err(Errno::INTR) => continue,
                events => events?,
            };
            if events.is_empty() {
                return Ok(());
            }
            let mut touched = BTreeSet::new();
            let mut all = false;
            for event in events {
                match event.data.u64() {
                    FILES => all |= self.read_files(&mut touched)?,
                    process => touched.extend(self.processes.get(&process).cloned()),
                }
            }
            if all {
                self.look_at_all()?;
            } else {
                for name in touched {
                    self.look_at(&name)?;
                }
            }
        }
    }

    /// Reads what inotify has to say: adds the VMs that it is about, or tells that it is about all.
    fn read_files(&mut self, touched: &mut BTreeSet<VmName>) -> io::Result<bool> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        let mut all = false;
        loop {
            let event = match reader.next() {
                Err(Errno::WOULDBLOCK) => return Ok(all),
                Err(Errno::INTR) => continue,
                event => event?,
            };
            let flags = event.events();
            if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
                all = true;
            } else if Some(event.wd()) == self.root {
                let name = event.file_name().filter(|_| self.is_vms_watched);
                match name {
                    // One of ten thousand has come or gone: the others are as they were.
                    Some(name) => {
                        let name = name.to_str().ok().and_then(|name| VmName::new(name).ok());
                        touched.extend(name.filter(|name| self.is_meant(name)));
                    }
                    None => all = true,
                }
            } else if flags.contains(ReadFlags::IGNORED) {
                self.folders.remove(&event.wd());
            } else if let Some(name) = self.folders.get(&event.wd()) {
                let file = event.file_name().map(CStr::to_bytes);
                if matches!(
                    file,
                    Some(b"vm.json" | b"v.sock" | b"fleet.json" | b"touched.json")
                ) {
                    touched.insert(name.clone());
                }
            }
        }
    }

    fn is_meant(&self, name: &VmName) -> bool {
        self.names.as_ref().is_none_or(|names| names.contains(name))
    }

    fn look_at_all(&mut self) -> io::Result<()> {
        self.watch_root()?;
        let mut names: BTreeSet<_> = self.watched.keys().cloned().collect();
        match &self.names {
            Some(wanted) => names.extend(wanted.iter().cloned()),
            None => match std::fs::read_dir(self.home.vms()) {
                Ok(entries) => names.extend(entries.filter_map(|entry| {
                    let name = entry.ok()?.file_name();
                    VmName::new(name.to_str()?).ok()
                })),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            },
        }
        for name in &names {
            self.look_at(name)?;
        }
        Ok(())
    }

    /// Watches `vms/`, or the nearest folder above it as long as that is not there.
    fn watch_root(&mut self) -> io::Result<()> {
        let vms = self.home.vms();
        let mut last = None;
        loop {
            let nearest = vms.ancestors().find(|folder| folder.is_dir());
            let nearest = nearest.unwrap_or(Path::new("/"));
            // One that is nearer may have been made before this was watched.
            if last == Some(nearest) {
                return Ok(());
            }
            let root = match inotify::add_watch(&self.inotify, nearest, FOLDERS) {
                Ok(root) => root,
                Err(Errno::NOENT | Errno::NOTDIR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            if let Some(old) = self.root.replace(root).filter(|old| *old != root) {
                // It has gone if the folder has.
                let _ = inotify::remove_watch(&self.inotify, old);
            }
            self.is_vms_watched = nearest == vms;
            last = Some(nearest);
        }
    }

    fn look_at(&mut self, name: &VmName) -> io::Result<()> {
        let folder = self.home.vm(name);
        let mut watched = self.watched.remove(name).unwrap_or_default();
        for (number, _) in watched.processes.drain(..) {
            self.processes.remove(&number);
        }
        let watch = match inotify::add_watch(&self.inotify, folder.path(), CONTENT) {
            Ok(watch) => Some(watch),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => None,
            Err(errno) => return Err(errno.into()),
        };
        if let Some(old) = watched.folder.filter(|old| Some(*old) != watch) {
            // It has gone if the folder has.
            let _ = inotify::remove_watch(&self.inotify, old);
            self.folders.remove(&old);
        }
        watched.folder = watch;
        self.folders
            .extend(watch.map(|watch| (watch, name.clone())));
        let mut vm = folder.vm();
        let processes = vm.as_ref().map(|vm| processes(vm, &folder));
        let processes = processes.unwrap_or_default();
        let has_processes = !processes.is_empty();
        for process in processes {
            if let Some(handle) = process.open()? {
                let number = self.next_process;
                self.next_process += 1;
                let data = epoll::EventData::new_u64(number);
                epoll::add(&self.epoll, &handle, data, epoll::EventFlags::IN)?;
                self.processes.insert(number, name.clone());
                watched.processes.push((number, handle));
            }
        }
        if has_processes {
            vm = folder.vm();
        }
        let known = vm.map(|vm| Known::of(&vm, &folder));
        let (before, after) = (watched.known.as_ref(), known.as_ref());
        let has_changed = match &self.names {
            None => before != after,
            Some(_) => before.map(|known| &known.state) != after.map(|known| &known.state),
        };
        if has_changed {
            self.changes.push_back(Change {
                name: name.clone(),
                state: after.map(|known| known.state.clone()),
            });
        }
        let is_wanted = known.is_some() || self.names.is_some();
        watched.known = known;
        // An empty folder is watched all the same: a VM may be made in it.
        if is_wanted || watched.folder.is_some() {
            self.watched.insert(name.clone(), watched);
        }
        Ok(())
    }
}

const ZERO: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// The processes whose end may change what the VM is: its own, and the `mvmctl` that is at it.
fn processes(vm: &Vm, folder: &VmFolder) -> Vec<ProcessId> {
    let Some(record) = vm.record() else {
        return Vec::new();
    };
    let own = record.processes.iter().map(|process| ProcessId {
        pid: process.pid,
        start_ticks: process.start_ticks,
    });
    let mut all: Vec<_> = own.collect();
    if matches!(
        vm.state,
        VmState::Starting | VmState::Paused(Pause::Snapshot)
    ) {
        all.extend(folder.lock_holder());
    }
    all
}

#[cfg(test)]
mod tests;
