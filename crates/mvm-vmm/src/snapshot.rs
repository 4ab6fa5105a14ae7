//! The snapshot folder: `manifest.json` beside the files that the VMM wrote.
//!
//! ```text
//! .partial-XXXX/  state           written by the VMM, for its owner alone
//!        │        manifest.json   once all that it names is on the disk
//!        ▼ fsync, rename
//! DIR/
//! ```
//!
//! A folder is complete or absent: it gets its name last, and never takes another one's place. It is
//! read strictly, and checked before a VMM is started: a state that was cut short or altered restores
//! into a guest that fails anywhere. How is in [`Verify`].

mod digest;
mod verified;

use crate::error::Error;
use crate::image;
use crate::manifest::{self, Wrong};
use crate::record::{Home, make_private, write_whole};
use mvm_protocol::Timestamp;
use mvm_protocol::lifecycle::Token;
use mvm_protocol::object::Problem;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use tempfile::TempDir;
use thiserror::Error as ThisError;
use verified::{Identity, Verified};

/// The manifest's name in its folder.
pub const MANIFEST: &str = "manifest.json";

/// The manifest's version that is written. That before is read as well.
pub const VERSION: u32 = 2;

/// The version whose files have the SHA-256 of their whole content.
const VERSION_SHA256: u32 = 1;

/// What a snapshot's `manifest.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`VERSION`].
    pub version: u32,
    /// The VM that it was taken of.
    pub vm: String,
    /// Who wrote the state, and can read it.
    pub vmm: Vmm,
    /// The image folder that the VM was started from.
    pub image: PathBuf,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// The vsock port of the agent.
    pub port: u32,
    /// The token of the sleep in which the guest is. Whoever wakes it has to know it.
    pub token: Token,
    /// The version of the agent in the guest.
    pub agent_version: String,
    /// When the guest was frozen, by this host's clock.
    pub created: Timestamp,
    /// All other files of the folder.
    pub files: Vec<StateFile>,
}

/// The VMM that wrote a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vmm {
    /// The backend: `qemu`.
    pub name: String,
    /// As it told itself: `7.2.22`.
    pub version: String,
    /// How it ran the guest, such as `tcg` or `kvm`.
    pub accelerator: Option<String>,
}

/// A file that the VMM wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateFile {
    /// Its name.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// In version 1, the SHA-256 of its content, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// From version 2 on, the SHA-256 of its blocks of 16 KiB that are not all zeros, in hexadecimal:
    /// of each in order its number in 8 bytes, big-endian, and the SHA-256 of its content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sparse_sha256: Option<String>,
}

impl StateFile {
    /// What is known of its content, with how it was computed.
    fn digest(&self) -> String {
        match (&self.sparse_sha256, &self.sha256) {
            (Some(digest), _) => format!("sparse-sha256:{digest}"),
            (None, digest) => format!("sha256:{}", digest.as_deref().unwrap_or_default()),
        }
    }
}

/// Whether a snapshot's files are read to see that they are what they were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verify {
    /// All of them, whatever is known.
    Always,
    /// Those that were not read and found sound before, on this machine by this user, or were altered
    /// since: a file is the same while its device, inode, size, mtime and ctime are.
    #[default]
    Once,
    /// None. Their sizes are compared all the same.
    Never,
}

/// Why a snapshot folder cannot be used, or made.
#[derive(Debug, ThisError)]
pub enum SnapshotError {
    /// The folder or its manifest cannot be read.
    #[error("{} is no snapshot: cannot read its {MANIFEST}: {source}", folder.display())]
    Unreadable {
        /// The folder.
        folder: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The manifest is not as it should be.
    #[error("{}, line {}: {}", path.display(), problem.line, problem.message)]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong, and where.
        problem: Problem,
    },
    /// Its version is another one.
    #[error("{} has version {found}; this mvmctl reads versions 1 and {VERSION}", path.display())]
    Version {
        /// The manifest.
        path: PathBuf,
        /// The version that it has.
        found: u32,
    },
    /// A file is not what the manifest says.
    #[error("{}: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// In what it differs.
        reason: String,
    },
    /// There is something at the place where the snapshot is to be.
    #[error("{} is there already", path.display())]
    Exists {
        /// The place.
        path: PathBuf,
    },
}

impl SnapshotError {
    /// What to do next.
    pub(crate) fn hint(&self) -> String {
        match self {
            Self::Unreadable { .. } => {
                "`mvmctl vm snapshot NAME` says into which folder it wrote".into()
            }
            Self::Version { .. } => "restore it with the mvmctl that took it".into(),
            Self::Manifest { .. } | Self::Damaged { .. } => {
                "the snapshot cannot be trusted: take it again, or copy it again".into()
            }
            Self::Exists { .. } => "choose another folder with --to, or remove that one".into(),
        }
    }
}

/// A snapshot folder whose manifest and files are sound.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The folder, absolute.
    pub folder: PathBuf,
    /// What its manifest says.
    pub manifest: Manifest,
}

impl Snapshot {
    /// Reads a snapshot folder and checks every byte of it.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        Self::read(folder, |folder, file| {
            check_file(folder, file, Verify::Always, None)
        })
    }

    /// Reads a snapshot folder and checks it as far as that is asked for. What was read and found
    /// sound is remembered in `$MVM_HOME/verified`.
    pub fn open_verified(home: &Home, folder: &Path, verify: Verify) -> Result<Self, Error> {
        let verified = Verified::of(home);
        Self::read(folder, |folder, file| {
            check_file(folder, file, verify, Some(&verified))
        })
    }

    fn read(
        folder: &Path,
        check: impl Fn(&Path, &StateFile) -> Result<(), SnapshotError>,
    ) -> Result<Self, Error> {
        let unreadable = |source| SnapshotError::Unreadable {
            folder: folder.to_owned(),
            source,
        };
        // Absolute, since the VMM runs in the VM's own folder.
        let folder = std::path::absolute(folder).map_err(unreadable)?;
        let path = folder.join(MANIFEST);
        let content = std::fs::read(&path).map_err(unreadable)?;
        let manifest = read_manifest(&path, &content)?;
        for file in &manifest.files {
            check(&folder, file)?;
        }
        Ok(Self { folder, manifest })
    }

    /// A file of it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

fn read_manifest(path: &Path, content: &[u8]) -> Result<Manifest, SnapshotError> {
    let failed = |wrong| {
        let path = path.to_owned();
        match wrong {
            Wrong::Shape(problem) => SnapshotError::Manifest { path, problem },
            Wrong::Version(found) => SnapshotError::Version { path, found },
        }
    };
    match manifest::read(content, VERSION) {
        Err(Wrong::Version(VERSION_SHA256)) => manifest::read(content, VERSION_SHA256),
        read => read,
    }
    .map_err(failed)
}

fn check_file(
    folder: &Path,
    expected: &StateFile,
    verify: Verify,
    verified: Option<&Verified>,
) -> Result<(), SnapshotError> {
    let path = folder.join(&expected.file);
    let damaged = |reason: String| SnapshotError::Damaged {
        path: path.clone(),
        reason,
    };
    let unreadable = |error: io::Error| damaged(error.to_string());
    if !image::is_plain(&expected.file) {
        return Err(damaged("the name of a file beside it is asked for".into()));
    }
    let file = File::open(&path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    let bytes = metadata.len();
    // The length is told before the long way through the content is gone.
    if bytes != expected.bytes {
        return Err(damaged(format!(
            "it has {bytes} bytes, and had {} when the snapshot was taken",
            expected.bytes
        )));
    }
    let known = || verified.is_some_and(|v| v.knows(&Identity::of(&metadata), expected));
    if verify == Verify::Never || (verify == Verify::Once && known()) {
        return Ok(());
    }
    let before = Identity::settled(&file).map_err(unreadable)?;
    let sound = match (&expected.sha256, &expected.sparse_sha256) {
        (Some(sha256), None) => digest::sha256(&file).map(|found| found == *sha256),
        (None, Some(sparse)) => digest::sparse_sha256(&file, bytes).map(|found| found == *sparse),
        _ => return Err(damaged("the manifest has not one digest of it".into())),
    };
    if !sound.map_err(unreadable)? {
        return Err(damaged(
            "its SHA-256 is another one than when the snapshot was taken".into(),
        ));
    }
    remember(verified, &file, before.as_ref(), expected).map_err(unreadable)
}

/// Remembers a file that was read since it was that; another one by now is not.
fn remember(
    verified: Option<&Verified>,
    file: &File,
    before: Option<&Identity>,
    found: &StateFile,
) -> io::Result<()> {
    // What was written by way of a mapping is seen once the page is on the disk, and not before.
    file.sync_all()?;
    let after = Identity::of(&file.metadata()?);
    if let (Some(verified), true) = (verified, before == Some(&after)) {
        verified.remember(after, found);
    }
    Ok(())
}

/// What the name of a folder that is being written begins with.
const PARTIAL: &str = ".partial-";

/// A snapshot folder that is being written. It is gone when this is dropped, and locked until then:
/// what a program has left that was killed can be told from what another is just writing.
#[derive(Debug)]
pub struct SnapshotDir {
    partial: TempDir,
    _lock: File,
    target: PathBuf,
    verified: Verified,
}

impl SnapshotDir {
    /// Begins a folder beside the one that it is to become. What it has will be known in that home as
    /// verified.
    pub(crate) fn begin(home: &Home, target: &Path) -> Result<Self, Error> {
        let target = std::path::absolute(target).map_err(Error::io("resolve", target))?;
        if target.symlink_metadata().is_ok() {
            return Err(SnapshotError::Exists { path: target }.into());
        }
        let parent = target.parent().unwrap_or(Path::new("/"));
        make_private(parent)?;
        let partial = tempfile::Builder::new()
            .prefix(PARTIAL)
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(parent)
            .map_err(Error::io("make a folder in", parent))?;
        let lock = File::open(partial.path())
            .and_then(|folder| folder.lock().map(|()| folder))
            .map_err(Error::io("lock", partial.path()))?;
        Ok(Self {
            partial,
            _lock: lock,
            target,
            verified: Verified::of(home),
        })
    }

    /// Where the VMM is to write.
    pub(crate) fn folder(&self) -> &Path {
        self.partial.path()
    }

    /// Writes the manifest and gives the folder its name.
    ///
    /// `manifest` has no files yet: they are those that are there.
    pub(crate) fn publish(self, mut manifest: Manifest) -> Result<Snapshot, Error> {
        let folder = self.partial.path();
        let failed = || Error::io("read", folder);
        for entry in std::fs::read_dir(folder).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            let file = File::options().read(true).write(true).open(&path);
            let file = file.map_err(Error::io("open", &path))?;
            let written = self.write_out(&file, name);
            manifest
                .files
                .push(written.map_err(Error::io("write", &path))?);
        }
        manifest.files.sort_by(|a, b| a.file.cmp(&b.file));
        let path = folder.join(MANIFEST);
        let mut content = serde_json::to_vec_pretty(&manifest)
            .map_err(|error| Error::io("write", &path)(error.into()))?;
        content.push(b'\n');
        write_whole(&path, &content)?;
        sync_folder(folder)?;
        renameat_with(CWD, folder, CWD, &self.target, RenameFlags::NOREPLACE).map_err(|errno| {
            if errno == rustix::io::Errno::EXIST {
                Error::from(SnapshotError::Exists {
                    path: self.target.clone(),
                })
            } else {
                Error::io("rename", folder)(errno.into())
            }
        })?;
        // It has another name now: there is nothing to remove.
        let _ = self.partial.keep();
        sync_folder(self.target.parent().unwrap_or(Path::new("/")))?;
        Ok(Snapshot {
            folder: self.target,
            manifest,
        })
    }
}

impl SnapshotDir {
    /// Has a file on the disk, without its zeros, and tells what it has.
    fn write_out(&self, file: &File, name: String) -> io::Result<StateFile> {
        let bytes = file.metadata()?.len();
        // First: what is a hole need neither be written nor read.
        digest::dig(file, bytes)?;
        let before = Identity::settled(file)?;
        let (synced, digest) = thread::scope(|scope| {
            let sync = scope.spawn(|| file.sync_all());
            let digest = digest::sparse_sha256(file, bytes);
            (sync.join(), digest)
        });
        synced.unwrap_or_else(|_| Err(io::Error::other("the thread that syncs panicked")))?;
        let written = StateFile {
            file: name,
            bytes,
            sha256: None,
            sparse_sha256: Some(digest?),
        };
        remember(Some(&self.verified), file, before.as_ref(), &written)?;
        Ok(written)
    }
}

/// Whether there is a pending snapshot that nobody writes any more.
pub(crate) fn is_left(snapshot_dir: &Path) -> bool {
    let name = snapshot_dir
        .file_name()
        .unwrap_or_default()
        .to_string_lossy();
    let free = || File::open(snapshot_dir).is_ok_and(|folder| folder.try_lock().is_ok());
    name.starts_with(PARTIAL) && snapshot_dir.is_dir() && free()
}

/// Removes a pending snapshot that nobody writes any more, if there is one.
pub(crate) fn discard(snapshot_dir: &Path) -> Result<(), Error> {
    if is_left(snapshot_dir) {
        std::fs::remove_dir_all(snapshot_dir).map_err(Error::io("remove", snapshot_dir))?;
    }
    Ok(())
}

fn sync_folder(folder: &Path) -> Result<(), Error> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(Error::io("sync", folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            version: VERSION,
            vm: "web".into(),
            vmm: Vmm {
                name: "qemu".into(),
                version: "7.2.22".into(),
                accelerator: Some("tcg".into()),
            },
            image: "/images/web".into(),
            cpus: 1,
            memory_mib: 256,
            port: 52,
            token: Token::new("t0ken").unwrap(),
            agent_version: "0.1.0".into(),
            created: Timestamp(1_763_964_131_123),
            files: Vec::new(),
        }
    }

    /// Of a test that does not look at what is remembered: nothing can be there.
    fn home() -> Home {
        Home::at("/dev/null/home")
    }

    fn taken(at: &Path) -> Snapshot {
        let snapshot_dir = SnapshotDir::begin(&home(), at).unwrap();
        std::fs::write(snapshot_dir.folder().join("state"), "the guest").unwrap();
        snapshot_dir.publish(manifest()).unwrap()
    }

    #[test]
    fn what_was_published_is_read_back_and_is_for_its_owner_alone() {
        let root = tempfile::tempdir().unwrap();
        let at = root.path().join("a/b");
        let taken = taken(&at);
        let read = Snapshot::open(&at).unwrap();
        assert_eq!(read.manifest, taken.manifest);
        let [file] = read.manifest.files.as_slice() else {
            panic!("{read:?}");
        };
        assert_eq!((file.file.as_str(), file.bytes), ("state", 9));
        assert_eq!((&file.sha256, read.manifest.version), (&None, 2));
        // `(printf '\0\0\0\0\0\0\0\0'; printf 'the guest' | openssl sha256 -binary) | sha256sum`
        assert_eq!(
            file.sparse_sha256.as_deref(),
            Some("48ddbca158513a499e8a55feeb39912941d4af5acd6f5ec4c19b8a297b3213aa")
        );
        let mode = std::fs::metadata(&at).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o700, "the guest's memory has its secrets");
        assert_eq!(std::fs::read_dir(at.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_draft_that_is_given_up_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let snapshot_dir = SnapshotDir::begin(&home(), &root.path().join("s")).unwrap();
        std::fs::write(snapshot_dir.folder().join("state"), "half").unwrap();
        drop(snapshot_dir);
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn nothing_is_replaced() {
        let root = tempfile::tempdir().unwrap();
        let at = root.path().join("s");
        let late = SnapshotDir::begin(&home(), &at).unwrap();
        taken(&at);
        let exists = |error| matches!(error, Error::Snapshot(SnapshotError::Exists { .. }));
        assert!(exists(SnapshotDir::begin(&home(), &at).unwrap_err()));
        // An empty folder could be renamed over, if that were not forbidden.
        std::fs::remove_file(at.join("state")).unwrap();
        std::fs::remove_file(at.join(MANIFEST)).unwrap();
        assert!(exists(late.publish(manifest()).unwrap_err()));
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn whatever_was_altered_is_found() {
        let check = |alter: &dyn Fn(&Path), expected: &str| {
            let root = tempfile::tempdir().unwrap();
            let at = root.path().join("s");
            taken(&at);
            alter(&at);
            let error = Snapshot::open(&at).unwrap_err().to_string();
            assert!(error.contains(expected), "{error:?} lacks {expected:?}");
        };
        let state = |content: &'static str| {
            move |at: &Path| std::fs::write(at.join("state"), content).unwrap()
        };
        let rewrite = |from: &'static str, to: &'static str| {
            move |at: &Path| {
                let path = at.join(MANIFEST);
                let text = std::fs::read_to_string(&path).unwrap();
                assert!(text.contains(from), "{text}");
                std::fs::write(path, text.replace(from, to)).unwrap();
            }
        };
        check(&state("the gu"), "it has 6 bytes, and had 9");
        check(&state("the guesT"), "its SHA-256 is another one");
        check(
            &|at| std::fs::remove_file(at.join("state")).unwrap(),
            "state: No such file",
        );
        check(
            &|at| std::fs::remove_file(at.join(MANIFEST)).unwrap(),
            "is no snapshot",
        );
        check(&rewrite("\"cpus\"", "\"cpu\""), "unknown field `cpu`");
        check(&rewrite("\"port\": 52,", ""), "missing field `port`");
        check(
            &rewrite("\"version\": 2", "\"version\": 3"),
            "has version 3",
        );
        check(
            &rewrite("\"state\"", "\"../s/state\""),
            "the name of a file beside it",
        );
    }
    #[test]
    fn a_snapshot_of_version_1_is_read_and_checked() {
        let root = tempfile::tempdir().unwrap();
        let at = root.path().join("s");
        let mut manifest = taken(&at).manifest;
        manifest.version = 1;
        // `printf 'the guest' | sha256sum`
        let sha256 = "ba3c94e4024dd874eb17b3ac4b8acf810ed8da98b4ca4736ebfcd3577b9d18c3";
        let [file] = manifest.files.as_mut_slice() else {
            panic!("{manifest:?}");
        };
        (file.sha256, file.sparse_sha256) = (Some(sha256.into()), None);
        let write = |manifest: &Manifest| {
            std::fs::write(at.join(MANIFEST), serde_json::to_vec(manifest).unwrap()).unwrap();
        };
        write(&manifest);
        assert_eq!(Snapshot::open(&at).unwrap().manifest, manifest);
        std::fs::write(at.join("state"), "the guesT").unwrap();
        let error = Snapshot::open(&at).unwrap_err().to_string();
        assert!(error.contains("its SHA-256 is another one"), "{error}");
        for digests in [(None, None), (Some(sha256.into()), Some(sha256.into()))] {
            (manifest.files[0].sha256, manifest.files[0].sparse_sha256) = digests;
            write(&manifest);
            let error = Snapshot::open(&at).unwrap_err().to_string();
            assert!(error.contains("has not one digest"), "{error}");
        }
    }

    /// The digest in the manifest is made another one, so that reading the file would be seen.
    #[test]
    fn what_was_verified_is_read_once() {
        let root = tempfile::tempdir().unwrap();
        let home = Home::at(root.path().join("home"));
        let at = root.path().join("s");
        let snapshot_dir = SnapshotDir::begin(&home, &at).unwrap();
        std::fs::write(snapshot_dir.folder().join("state"), "the guest").unwrap();
        snapshot_dir.publish(manifest()).unwrap();
        let entries = || std::fs::read_dir(home.root().join("verified")).unwrap();
        let entry = entries().next().unwrap().unwrap().path();
        let text = std::fs::read_to_string(&entry).unwrap();
        let opened = |verify| Snapshot::open_verified(&home, &at, verify);
        let sees_it = |verify| match opened(verify) {
            Ok(_) => false,
            Err(error) => error.to_string().contains("its SHA-256 is another one"),
        };
        for verify in [Verify::Always, Verify::Once, Verify::Never] {
            assert!(!sees_it(verify), "{verify:?}");
        }
        // Taken for the same file, it is not read; what is not the same is.
        let path = at.join("state");
        std::fs::write(&path, "the guesT").unwrap();
        assert!(sees_it(Verify::Once) && sees_it(Verify::Always) && !sees_it(Verify::Never));
        let file = File::open(&path).unwrap();
        let identity = Identity::settled(&file).unwrap().unwrap();
        let digest = serde_json::from_str::<serde_json::Value>(&text).unwrap()["digest"].clone();
        let forged = serde_json::json!({"identity": identity, "digest": digest});
        std::fs::write(&entry, forged.to_string()).unwrap();
        assert!(!sees_it(Verify::Once) && sees_it(Verify::Always));
        // Nobody knows it any more: it is read, and remembered.
        std::fs::write(&path, "the guest").unwrap();
        std::fs::remove_file(&entry).unwrap();
        opened(Verify::Once).unwrap();
        assert!(entry.exists());
    }
}
