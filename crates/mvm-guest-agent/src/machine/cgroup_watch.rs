//! Whether a cgroup is as it was made: empty, and nobody has opened a file of it, changed its owner or
//! made another one below it, by inotify(7). What cannot be known counts as changed.
//!
//! Whoever mounts cgroups a second time in a namespace of its own has other inodes, and is not seen.

use rustix::fd::OwnedFd;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::cell::RefCell;
use std::io;
use std::mem::MaybeUninit;
use std::path::Path;

/// A change of one of its files begins by opening it. The kernel's own changes of `cgroup.events` do
/// not, and would be told as writes are. The first is enough, so that the queue is as short as the
/// list of cgroups.
const CHANGES: WatchFlags = WatchFlags::OPEN
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::CREATE)
    .union(WatchFlags::ONESHOT)
    .union(WatchFlags::ONLYDIR);

/// Watches cgroups.
#[derive(Debug)]
pub(super) struct CgroupWatch {
    fd: OwnedFd,
    /// The kernel's number of each that is watched, and whether it was changed.
    watched: RefCell<Vec<(i32, bool)>>,
}

/// One that is watched.
#[derive(Debug)]
pub(super) struct Watched {
    number: i32,
    /// Its `cgroup.events`, open since before the watch.
    events: OwnedFd,
}

impl CgroupWatch {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            fd: inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?,
            watched: RefCell::default(),
        })
    }

    /// Watches one that was just made.
    pub(super) fn add(&self, path: &Path) -> io::Result<Watched> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let events = rustix::fs::open(path.join("cgroup.events"), flags, Mode::empty())?;
        let number = inotify::add_watch(&self.fd, path, CHANGES)?;
        self.watched.borrow_mut().push((number, false));
        Ok(Watched { number, events })
    }

    /// Watches it no more.
    pub(super) fn forget(&self, one: &Watched) {
        // Fails if a change, or its removal, has ended the watch.
        let _ = inotify::remove_watch(&self.fd, one.number);
        let mut watched = self.watched.borrow_mut();
        watched.retain(|(number, _)| *number != one.number);
    }

    /// Whether it is as it was made.
    pub(super) fn is_unchanged(&self, one: &Watched) -> bool {
        is_empty_and_thawed(&one.events)
            && self.read().is_ok()
            && self.watched.borrow().contains(&(one.number, false))
    }

    /// Takes what the kernel has told. What it says of one that was forgotten is left out.
    fn read(&self) -> io::Result<()> {
        let mut buffer = [MaybeUninit::uninit(); 1024];
        let mut reader = inotify::Reader::new(&self.fd, &mut buffer);
        loop {
            let number = match reader.next() {
                Ok(event) => event.wd(),
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            for (watched, changed) in self.watched.borrow_mut().iter_mut() {
                // Below 0 when some were dropped, of whichever.
                *changed |= *watched == number || number < 0;
            }
        }
    }
}

/// By `cgroup.events`, which says `populated 0` and `frozen 0`.
fn is_empty_and_thawed(events: &OwnedFd) -> bool {
    let mut buffer = [0; 256];
    let Ok(read) = rustix::io::pread(events, &mut buffer, 0) else {
        return false;
    };
    let text = buffer.get(..read).unwrap_or_default();
    let has = |line: &[u8]| text.split(|byte| *byte == b'\n').any(|it| it == line);
    has(b"populated 0") && has(b"frozen 0")
}
