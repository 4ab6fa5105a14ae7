//! Tells when a drop-in folder changes, or what its links lead to: inotify(7).
//!
//! A folder is watched, not a file: one that is replaced is another file. Of a link each name on the
//! way that may come to mean something else is watched in its own folder, and in the end the file's
//! ([`links`](super::links)).

use super::console::say;
use super::links::deciding_names;
use super::polled::Polled;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use std::ffi::OsString;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use tokio::io::Interest;

/// How many links of both folders are followed, and how many folders are watched for them.
const MAX_LINKS: usize = 1024;
const MAX_FOLDERS: usize = 256;

/// After so many changes that do not matter others have their turn.
const MAX_CHANGES: usize = 512;

/// Watches folders that may come and go.
#[derive(Debug)]
pub(crate) struct Watch {
    fd: Polled,
    dirs: Vec<PathBuf>,
    /// By the kernel's number, what matters in each folder.
    watched: Vec<(i32, Matters)>,
    /// Whether it was said that there are more than can be watched.
    told: bool,
}

/// What matters in a folder.
#[derive(Debug, Clone, Default)]
struct Matters {
    /// All drop-ins, and links that they go through (Kubernetes' `..data`).
    drop_ins: bool,
    /// Whether one of the names is a file's, whose content counts.
    content: bool,
    names: Vec<OsString>,
}

impl Matters {
    fn name(name: OsString, content: bool) -> Self {
        Self {
            drop_ins: false,
            content,
            names: vec![name],
        }
    }
}

/// Adds what matters in a folder to what is listed. There are few folders.
fn add<K: PartialEq>(list: &mut Vec<(K, Matters)>, folder: K, more: Matters) {
    match list.iter_mut().find(|(other, _)| *other == folder) {
        None => list.push((folder, more)),
        Some((_, known)) => {
            known.drop_ins |= more.drop_ins;
            known.content |= more.content;
            for name in more.names {
                if !known.names.contains(&name) {
                    known.names.push(name);
                }
            }
        }
    }
}

impl Watch {
    pub(crate) fn new(dirs: Vec<PathBuf>) -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let mut watch = Self {
            fd: Polled::new(fd, Interest::READABLE)?,
            dirs,
            watched: Vec::new(),
            told: false,
        };
        watch.update();
        Ok(watch)
    }

    /// Watches what is to be watched now, and nothing else. Adding what is watched already changes
    /// nothing.
    fn update(&mut self) {
        let (folders, mut complete) = self.folders();
        let mut watched = Vec::new();
        for (folder, matters) in folders {
            let names = WatchFlags::CREATE
                | WatchFlags::DELETE
                | WatchFlags::MOVE
                | WatchFlags::DELETE_SELF
                | WatchFlags::MOVE_SELF;
            let content = WatchFlags::CLOSE_WRITE | WatchFlags::ATTRIB;
            let mut flags = names | WatchFlags::ONLYDIR;
            // By another path it may be watched already, for more than this.
            flags |= WatchFlags::MASK_ADD;
            flags.set(content, matters.drop_ins || matters.content);
            match inotify::add_watch(self.fd.get_ref(), &folder, flags) {
                Ok(number) => add(&mut watched, number, matters),
                Err(rustix::io::Errno::NOSPC | rustix::io::Errno::NOMEM) => complete = false,
                // It is not there, and whoever makes it does so in a folder that is watched.
                Err(_) => {}
            }
        }
        for (number, _) in &self.watched {
            if watched.iter().all(|(other, _)| other != number) {
                let _ = inotify::remove_watch(self.fd.get_ref(), *number);
            }
        }
        self.watched = watched;
        if !complete && !std::mem::replace(&mut self.told, true) {
            say!(
                "drop-ins: too many links to watch; send SIGHUP, or reload, for changes behind them"
            );
        }
    }

    /// The folders to be watched, and whether that is all.
    fn folders(&self) -> (Vec<(PathBuf, Matters)>, bool) {
        let mut folders = Vec::new();
        for dir in &self.dirs {
            let all = Matters {
                drop_ins: true,
                ..Matters::default()
            };
            add(&mut folders, dir.clone(), all);
            for (folder, name) in deciding_names(dir) {
                add(&mut folders, folder, Matters::name(name, false));
            }
        }
        let entries = self.dirs.iter().flat_map(std::fs::read_dir);
        let links = entries.flatten().flatten().filter(|entry| {
            entry.file_type().is_ok_and(|kind| kind.is_symlink())
                && entry.file_name().as_bytes().ends_with(b".json")
        });
        let (mut complete, mut count) = (true, 0);
        for link in links {
            count += 1;
            if count > MAX_LINKS {
                complete = false;
                break;
            }
            let names = deciding_names(&link.path());
            let last = names.len().saturating_sub(1);
            for (number, (folder, name)) in names.into_iter().enumerate() {
                if folders.len() >= MAX_FOLDERS && folders.iter().all(|(it, _)| *it != folder) {
                    complete = false;
                    continue;
                }
                add(&mut folders, folder, Matters::name(name, number == last));
            }
        }
        (folders, complete)
    }

    /// Waits until something changed that may matter.
    pub(crate) async fn changed(&mut self) -> io::Result<()> {
        loop {
            let mut guard = self.fd.readable().await?;
            let mut buffer = [const { MaybeUninit::uninit() }; 4096];
            let mut reader = inotify::Reader::new(self.fd.get_ref(), &mut buffer);
            let mut matters = false;
            let mut seen = 0;
            // What has been read and not looked at would be lost.
            while seen < MAX_CHANGES || !reader.is_buffer_empty() {
                seen += 1;
                match reader.next() {
                    Ok(event) => {
                        let flags = event.events();
                        let name = event.file_name().map(std::ffi::CStr::to_bytes);
                        matters |= flags.contains(ReadFlags::QUEUE_OVERFLOW)
                            || !flags.contains(ReadFlags::IGNORED)
                                && self.concerns(event.wd(), name);
                    }
                    Err(rustix::io::Errno::WOULDBLOCK) => {
                        guard.clear_ready();
                        break;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            if matters {
                // What was replaced needs a new watch, and a link may lead elsewhere.
                self.update();
                return Ok(());
            }
            tokio::task::yield_now().await;
        }
    }

    fn concerns(&self, folder: i32, name: Option<&[u8]>) -> bool {
        // It is not watched any more: that was said of it before.
        let watched = self.watched.iter().find(|(number, _)| *number == folder);
        let Some((_, matters)) = watched else {
            return false;
        };
        // The folder itself.
        let Some(name) = name else { return true };
        matters.drop_ins && (name.ends_with(b".json") || name.starts_with(b".."))
            || matters.names.iter().any(|it| it.as_bytes() == name)
    }
}

/// The folders of a configuration, for a watch.
pub(crate) fn dirs(integrations: &Path, probes: &Path) -> Vec<PathBuf> {
    vec![integrations.to_owned(), probes.to_owned()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::time::Duration;
    use tokio::time::timeout;

    async fn within<T>(work: impl Future<Output = T>) -> T {
        timeout(Duration::from_secs(10), work).await.unwrap()
    }

    #[tokio::test]
    async fn a_folder_that_comes_later_is_watched() {
        let etc = tempfile::tempdir().unwrap();
        let dir = etc.path().join("integrations.d");
        let mut watch = Watch::new(dirs(&dir, &etc.path().join("probes.d"))).unwrap();
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
        let mut watch = Watch::new(dirs(&dir, &dir)).unwrap();
        std::fs::write(dir.join("notes.txt"), "x").unwrap();
        std::fs::write(etc.path().join("other"), "x").unwrap();
        let first = timeout(Duration::from_millis(50), watch.changed()).await;
        assert!(first.is_err(), "nothing that matters has changed");
        std::fs::write(dir.join("a.json"), "x").unwrap();
        within(watch.changed()).await.unwrap();
    }

    /// A `current` link of a deployment, in a chain: what is behind it, and where it leads.
    #[tokio::test]
    async fn what_a_link_leads_to_is_watched_as_long_as_it_does() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        for folder in ["etc", "app/v1/conf", "app/v2/conf", "app/other"] {
            std::fs::create_dir_all(at(folder)).unwrap();
        }
        for version in ["v1", "v2"] {
            std::fs::write(at(&format!("app/{version}/conf/a.json")), "{}").unwrap();
        }
        symlink("v1", at("app/current")).unwrap();
        symlink("../app/current/conf/a.json", at("etc/a.json")).unwrap();
        let mut watch = Watch::new(dirs(&at("etc"), &at("none"))).unwrap();
        for round in 0..2 {
            std::fs::write(at("app/current/conf/a.json"), "{ }").unwrap();
            within(watch.changed()).await.unwrap();
            // In the place of the old one, as an editor does it.
            std::fs::write(at("app/current/conf/a.json.new"), "{  }").unwrap();
            std::fs::rename(
                at("app/current/conf/a.json.new"),
                at("app/current/conf/a.json"),
            )
            .unwrap();
            within(watch.changed()).await.unwrap();
            symlink(if round == 0 { "v2" } else { "v1" }, at("app/next")).unwrap();
            std::fs::rename(at("app/next"), at("app/current")).unwrap();
            within(watch.changed()).await.unwrap();
        }
        std::fs::write(at("app/v2/conf/a.json"), "{   }").unwrap();
        std::fs::write(at("app/v1/conf/b.json"), "{   }").unwrap();
        std::fs::write(at("app/other/a.json"), "{   }").unwrap();
        let first = timeout(Duration::from_millis(50), watch.changed()).await;
        assert!(first.is_err(), "nothing leads there");
        // The whole release goes, and comes back.
        std::fs::rename(at("app/v1"), at("app/away")).unwrap();
        std::fs::rename(at("app/away/conf"), at("app/away/gone")).unwrap();
        within(watch.changed()).await.unwrap();
        std::fs::remove_file(at("etc/a.json")).unwrap();
        within(watch.changed()).await.unwrap();
    }

    #[tokio::test]
    async fn a_link_to_nowhere_is_noticed_when_it_leads_somewhere() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        std::fs::create_dir(at("etc")).unwrap();
        symlink("../app/a.json", at("etc/a.json")).unwrap();
        let mut watch = Watch::new(dirs(&at("etc"), &at("etc"))).unwrap();
        std::fs::create_dir(at("app")).unwrap();
        within(watch.changed()).await.unwrap();
        std::fs::write(at("app/a.json"), "{}").unwrap();
        within(watch.changed()).await.unwrap();
    }

    #[tokio::test]
    async fn the_folder_may_be_a_link() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        for folder in ["v1", "v2"] {
            std::fs::create_dir(at(folder)).unwrap();
        }
        symlink("v1", at("etc")).unwrap();
        let mut watch = Watch::new(dirs(&at("etc"), &at("none"))).unwrap();
        std::fs::write(at("v1/a.json"), "{}").unwrap();
        within(watch.changed()).await.unwrap();
        symlink("v2", at("next")).unwrap();
        std::fs::rename(at("next"), at("etc")).unwrap();
        within(watch.changed()).await.unwrap();
        std::fs::write(at("v2/a.json"), "{}").unwrap();
        within(watch.changed()).await.unwrap();
    }

    #[tokio::test]
    async fn the_number_of_watches_is_bounded() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: String| root.path().join(name);
        std::fs::create_dir(at("etc".into())).unwrap();
        for number in 0..2000 {
            std::fs::create_dir(at(format!("{number}"))).unwrap();
            std::fs::write(at(format!("{number}/a.json")), "{}").unwrap();
            symlink(
                format!("../{number}/a.json"),
                at(format!("etc/{number:04}.json")),
            )
            .unwrap();
        }
        let etc = at("etc".into());
        let mut watch = Watch::new(dirs(&etc, &etc)).unwrap();
        assert!(
            watch.watched.len() <= MAX_FOLDERS,
            "{}",
            watch.watched.len()
        );
        std::fs::write(etc.join("new.json"), "{}").unwrap();
        within(watch.changed()).await.unwrap();
    }
}
