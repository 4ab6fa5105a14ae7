//! What is remembered of files that were read and found sound, so that a restore need not read all of
//! a guest's memory once more.
//!
//! A file is the same as long as its device, inode, size, mtime and ctime are: whatever is written to
//! it by ordinary means gives it another ctime, which nobody can set. So that two changes within one
//! tick of the kernel's clock cannot be taken for one, a file is looked at only when its last change
//! is older than that. What alters the disk below the file system, or a clock that is set back, is
//! not found in this way: `--verify always` reads everything.

use super::StateFile;
use mvm_registry::{Home, make_private, write_whole};
use serde::{Deserialize, Serialize};
use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime, SystemTimeError};

/// How long after a file's last change another one is sure to get another time: the kernel's clock for
/// that ticks every 1 to 10 ms.
const TICK: Duration = Duration::from_millis(20);

/// No more files are remembered than that; the ones that were verified longest ago are forgotten.
const REMEMBERED: usize = 1024;

/// An entry is short.
const ENTRY_MAX: u64 = 4096;

/// By what a file is known to be the one that it was, as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    bytes: u64,
    /// Seconds and nanoseconds.
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl Identity {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            ctime: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// That of an open file, once its last change is long enough ago for the next to be seen. `None`
    /// if that lies in the future: the clock was set.
    pub(super) fn settled(file: &File) -> io::Result<Option<Self>> {
        loop {
            let identity = Self::of(&file.metadata()?);
            match identity.age() {
                Err(ahead) if ahead.duration() > TICK => return Ok(None),
                Err(_) => thread::sleep(TICK),
                Ok(age) if age < TICK => thread::sleep(TICK.saturating_sub(age)),
                Ok(_) => return Ok(Some(identity)),
            }
        }
    }

    /// Whether the next change is sure to be seen.
    fn is_settled(&self) -> bool {
        self.age().is_ok_and(|age| age >= TICK)
    }

    fn age(&self) -> Result<Duration, SystemTimeError> {
        let since = Duration::new(
            u64::try_from(self.ctime.0).unwrap_or_default(),
            u32::try_from(self.ctime.1).unwrap_or_default(),
        );
        (SystemTime::UNIX_EPOCH + since).elapsed()
    }
}

/// With which the digest begins of what is a program's answer.
const SAID: &str = "said:";

/// What was verified, and what it was found to have: a digest, or what it says.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    identity: Identity,
    digest: String,
}

/// `$MVM_HOME/verified`, a file for each that was verified. Nobody but its owner may write there.
#[derive(Debug, Clone)]
pub(crate) struct Verified {
    folder: PathBuf,
}

impl Verified {
    pub(crate) fn of(home: &Home) -> Self {
        Self {
            folder: home.root().join("verified"),
        }
    }

    /// Whether a file was verified, as it is now, to be what the manifest says.
    pub(super) fn knows(&self, identity: &Identity, expected: &StateFile) -> bool {
        let entry = self.read(identity);
        entry.is_some_and(|entry| entry.identity == *identity && entry.digest == expected.digest())
    }

    /// Remembers a file that was verified, as it was before and after. What cannot be remembered is
    /// read again the next time.
    pub(super) fn remember(&self, identity: Identity, verified: &StateFile) {
        self.keep(identity, verified.digest());
    }

    /// What a program says when it is asked, or has said when it was the same file.
    pub(crate) fn said<E>(
        &self,
        program: &Path,
        ask: impl FnOnce() -> Result<String, E>,
    ) -> Result<String, E> {
        let identity = || Some(Identity::of(&program.metadata().ok()?));
        let before = identity().filter(Identity::is_settled);
        let entry = before.as_ref().and_then(|before| self.read(before));
        if let Some(entry) = entry.filter(|entry| Some(&entry.identity) == before.as_ref())
            && let Some(said) = entry.digest.strip_prefix(SAID)
        {
            return Ok(said.to_owned());
        }
        let said = ask()?;
        if let Some(after) = identity().filter(|after| Some(after) == before.as_ref()) {
            self.keep(after, format!("{SAID}{said}"));
        }
        Ok(said)
    }

    fn keep(&self, identity: Identity, digest: String) {
        let path = self.path(&identity);
        let kept = make_private(&self.folder).is_ok() && is_private(&self.folder);
        let entry = serde_json::to_vec(&Entry { identity, digest });
        if let (true, Ok(entry)) = (kept, entry) {
            self.forget_oldest();
            let _ = write_whole(&path, &entry);
        }
    }

    fn path(&self, identity: &Identity) -> PathBuf {
        let name = format!("{}-{}.json", identity.device, identity.inode);
        self.folder.join(name)
    }

    fn read(&self, identity: &Identity) -> Option<Entry> {
        let path = self.path(identity);
        if !is_private(&self.folder) || !is_private(&path) {
            return None;
        }
        let mut content = Vec::new();
        let file = mvm_registry::open_regular(&path).ok()?;
        file.take(ENTRY_MAX).read_to_end(&mut content).ok()?;
        serde_json::from_slice(&content).ok()
    }

    fn forget_oldest(&self) {
        let entries = std::fs::read_dir(&self.folder)
            .into_iter()
            .flatten()
            .flatten();
        let mut entries: Vec<_> = entries
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .collect();
        let excess = (entries.len() + 1).saturating_sub(REMEMBERED);
        if excess > 0 {
            entries.sort();
            for (_, path) in entries.into_iter().take(excess) {
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

/// Whether it is no link, is this user's, and is writable by no other.
fn is_private(path: &Path) -> bool {
    let own = rustix::process::geteuid().as_raw();
    path.symlink_metadata()
        .is_ok_and(|found| !found.is_symlink() && found.uid() == own && found.mode() & 0o022 == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{Permissions, set_permissions, write};
    use std::os::unix::fs::PermissionsExt as _;

    fn file(digest: &str) -> StateFile {
        StateFile {
            file: "memory".into(),
            bytes: 5,
            sha256: None,
            sparse_sha256: Some(digest.into()),
        }
    }

    struct Remembered {
        root: tempfile::TempDir,
        verified: Verified,
        identity: Identity,
    }

    impl Remembered {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let verified = Verified::of(&Home::at(root.path()));
            write(root.path().join("memory"), "guest").unwrap();
            let opened = File::open(root.path().join("memory")).unwrap();
            let identity = Identity::settled(&opened).unwrap().unwrap();
            verified.remember(identity.clone(), &file("aa"));
            Self {
                root,
                verified,
                identity,
            }
        }

        fn now(&self) -> Identity {
            Identity::of(&self.root.path().join("memory").metadata().unwrap())
        }
    }

    #[test]
    fn a_file_is_known_as_long_as_nothing_was_written_to_it() {
        let it = Remembered::new();
        assert!(it.verified.knows(&it.now(), &file("aa")));
        assert!(!it.verified.knows(&it.now(), &file("bb")));
        let path = it.root.path().join("memory");
        // The same bytes: that they are the same is not known without reading them. The times that a
        // program can set are set back.
        let mtime = path.metadata().unwrap().modified().unwrap();
        write(&path, "guest").unwrap();
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(mtime)
            .unwrap();
        assert_eq!(it.now().mtime, it.identity.mtime);
        assert!(!it.verified.knows(&it.now(), &file("aa")));
    }

    #[test]
    fn a_program_is_asked_once_as_long_as_it_is_the_same() {
        let it = Remembered::new();
        let program = it.root.path().join("memory");
        let asked = std::cell::Cell::new(0);
        let said = || {
            it.verified.said(&program, || {
                asked.set(asked.get() + 1);
                Ok::<_, ()>(format!("version {}", asked.get()))
            })
        };
        // What is known of its content is no answer.
        assert_eq!(said().unwrap(), "version 1");
        assert_eq!(said().unwrap(), "version 1");
        write(&program, "other").unwrap();
        Identity::settled(&File::open(&program).unwrap()).unwrap();
        assert_eq!(said().unwrap(), "version 2");
        assert_eq!(it.verified.said(&program, || Err(())).unwrap(), "version 2");
        std::fs::remove_file(it.verified.path(&it.now())).unwrap();
        it.verified.said(&program, || Err(())).unwrap_err();
        assert_eq!(said().unwrap(), "version 3");
    }

    #[test]
    fn what_others_may_write_is_not_believed() {
        let it = Remembered::new();
        let entry = it.verified.path(&it.identity);
        for path in [&entry, &it.verified.folder] {
            let mode = path.metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "{}", path.display());
            set_permissions(path, Permissions::from_mode(mode | 0o020)).unwrap();
            assert!(!it.verified.knows(&it.now(), &file("aa")));
            set_permissions(path, Permissions::from_mode(mode)).unwrap();
            assert!(it.verified.knows(&it.now(), &file("aa")));
        }
        let aside = it.root.path().join("aside");
        std::fs::rename(&entry, &aside).unwrap();
        std::os::unix::fs::symlink(&aside, &entry).unwrap();
        assert!(!it.verified.knows(&it.now(), &file("aa")));
    }

    #[test]
    fn no_more_is_remembered_than_that() {
        let it = Remembered::new();
        for inode in 0..REMEMBERED as u64 {
            let identity = Identity {
                inode: inode + (1 << 40),
                ..it.identity.clone()
            };
            it.verified.remember(identity, &file("aa"));
        }
        let entries = std::fs::read_dir(&it.verified.folder).unwrap();
        assert_eq!(entries.count(), REMEMBERED);
        assert!(!it.verified.knows(&it.now(), &file("aa")), "the oldest");
    }
}
