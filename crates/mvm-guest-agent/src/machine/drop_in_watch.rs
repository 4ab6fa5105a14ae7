//! Tells when a drop-in folder changes: inotify(7).

use super::polled::polled;
use rustix::fd::OwnedFd;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use std::io;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Watches folders that may come and go.
#[derive(Debug)]
pub(crate) struct Watch {
    fd: AsyncFd<OwnedFd>,
    dirs: Vec<PathBuf>,
}

impl Watch {
    pub(crate) fn new(dirs: Vec<PathBuf>) -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let watch = Self {
            fd: polled(fd, Interest::READABLE)?,
            dirs,
        };
        watch.add();
        Ok(watch)
    }

    /// Watches each folder, and its parent for the folder's coming. Adding what is watched already
    /// changes nothing.
    fn add(&self) {
        let content = WatchFlags::CLOSE_WRITE
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVE
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF;
        for dir in &self.dirs {
            let _ = inotify::add_watch(self.fd.get_ref(), dir, content | WatchFlags::ONLYDIR);
            if let Some(parent) = dir.parent() {
                let coming = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR;
                // The parent of one may be the other, whose own watch must not be narrowed.
                let _ =
                    inotify::add_watch(self.fd.get_ref(), parent, coming | WatchFlags::MASK_ADD);
            }
        }
    }

    /// Waits until something changed that may matter.
    pub(crate) async fn changed(&self) -> io::Result<()> {
        loop {
            let mut guard = self.fd.readable().await?;
            let mut buffer = [const { MaybeUninit::uninit() }; 4096];
            let mut reader = inotify::Reader::new(self.fd.get_ref(), &mut buffer);
            let mut matters = false;
            loop {
                match reader.next() {
                    Ok(event) => {
                        let flags = event.events();
                        let name = event.file_name().map(|name| name.to_bytes().to_vec());
                        matters |= flags.contains(ReadFlags::QUEUE_OVERFLOW) || self.concerns(name);
                    }
                    Err(rustix::io::Errno::WOULDBLOCK) => break,
                    Err(error) => return Err(error.into()),
                }
            }
            guard.clear_ready();
            if matters {
                // A folder that was replaced needs a new watch.
                self.add();
                return Ok(());
            }
        }
    }

    /// A drop-in, a link that drop-ins go through (Kubernetes' `..data`), or the folder itself; not
    /// some other file beside the folder.
    fn concerns(&self, name: Option<Vec<u8>>) -> bool {
        let Some(name) = name else { return true };
        let is_folder = |dir: &PathBuf| {
            dir.file_name()
                .is_some_and(|folder| folder.as_encoded_bytes() == name)
        };
        name.ends_with(b".json") || name.starts_with(b"..") || self.dirs.iter().any(is_folder)
    }
}

/// The folders of a configuration, for a watch.
pub(crate) fn dirs(integrations: &Path, probes: &Path) -> Vec<PathBuf> {
    vec![integrations.to_owned(), probes.to_owned()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    async fn within<T>(work: impl Future<Output = T>) -> T {
        timeout(Duration::from_secs(10), work).await.unwrap()
    }

    #[tokio::test]
    async fn a_folder_that_comes_later_is_watched() {
        let etc = tempfile::tempdir().unwrap();
        let dir = etc.path().join("integrations.d");
        let watch = Watch::new(dirs(&dir, &etc.path().join("probes.d"))).unwrap();
        std::fs::create_dir(&dir).unwrap();
        within(watch.changed()).await.unwrap();
        std::fs::write(dir.join("a.json"), "{}").unwrap();
        within(watch.changed()).await.unwrap();
        std::fs::rename(dir.join("a.json"), dir.join("b.json")).unwrap();
        within(watch.changed()).await.unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        within(watch.changed()).await.unwrap();
    }

    #[tokio::test]
    async fn other_files_do_not_matter() {
        let etc = tempfile::tempdir().unwrap();
        let dir = etc.path().join("integrations.d");
        std::fs::create_dir(&dir).unwrap();
        let watch = Watch::new(dirs(&dir, &dir)).unwrap();
        std::fs::write(dir.join("notes.txt"), "x").unwrap();
        std::fs::write(etc.path().join("other"), "x").unwrap();
        let first = timeout(Duration::from_millis(50), watch.changed()).await;
        assert!(first.is_err(), "nothing that matters has changed");
        std::fs::write(dir.join("a.json"), "x").unwrap();
        within(watch.changed()).await.unwrap();
    }
}
