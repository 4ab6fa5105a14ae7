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
mod error;
mod partial;
mod verified;

pub(crate) use digest::copy as copy_sparse;
pub use error::SnapshotError;
pub use partial::discard_all_left;
pub(crate) use partial::{SnapshotPlace, discard, is_left};

use crate::deadline::Deadline;
use crate::error::Error;
use crate::image;
use crate::manifest::{self, Wrong};
use mvm_protocol::Timestamp;
use mvm_protocol::lifecycle::Token;
use mvm_registry::{Home, open_regular, read_bounded, write_whole};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use tempfile::TempDir;
use verified::Identity;
pub(crate) use verified::Verified;

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
    /// sound is remembered in `$MVM_HOME/verified`. Large files on a slow disk take long: it is looked
    /// at the deadline again and again.
    pub fn open_verified(
        home: &Home,
        folder: &Path,
        verify: Verify,
        deadline: Deadline<'_>,
    ) -> Result<Self, Error> {
        let verified = Verified::of(home);
        Self::read(folder, |folder, file| {
            check_file(folder, file, verify, Some((&verified, deadline)))
        })
    }

    fn read(
        folder: &Path,
        check: impl Fn(&Path, &StateFile) -> Result<(), Error>,
    ) -> Result<Self, Error> {
        let unreadable = |source| SnapshotError::Unreadable {
            folder: folder.to_owned(),
            source,
        };
        // Absolute, since the VMM runs in the VM's own folder.
        let folder = std::path::absolute(folder).map_err(unreadable)?;
        let path = folder.join(MANIFEST);
        let content = read_bounded(&path, manifest::MAX).map_err(unreadable)?;
        let manifest = read_manifest(&path, &content)?;
        let snapshot = Self { folder, manifest };
        if snapshot.manifest.files.is_empty() {
            return Err(snapshot.contradicts_itself("it names no files of the VM's state".into()));
        }
        for expected in &snapshot.manifest.files {
            check(&snapshot.folder, expected)?;
        }
        Ok(snapshot)
    }

    /// What its manifest says of a file that its VMM may have written.
    pub(crate) fn find(&self, name: &str) -> Option<&StateFile> {
        self.manifest.files.iter().find(|file| file.file == name)
    }

    /// What its manifest says of a file that its VMM has written, if it was this one.
    pub(crate) fn need(&self, name: &str) -> Result<&StateFile, Error> {
        let Some(file) = self.find(name) else {
            let vmm = &self.manifest.vmm.name;
            let missing = format!("it names no file {name:?}, which {vmm} writes");
            return Err(self.contradicts_itself(missing));
        };
        if file.bytes == 0 {
            return Err(self.contradicts_itself(format!("its file {name:?} has no bytes")));
        }
        Ok(file)
    }

    /// The manifest's parts do not go together.
    pub(crate) fn contradicts_itself(&self, reason: String) -> Error {
        let path = self.folder.join(MANIFEST);
        SnapshotError::Contradiction { path, reason }.into()
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

/// Whether there is no such file at all.
fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

fn check_file(
    folder: &Path,
    expected: &StateFile,
    verify: Verify,
    known: Option<(&Verified, Deadline<'_>)>,
) -> Result<(), Error> {
    let (verified, deadline) = known.unzip();
    let path = folder.join(&expected.file);
    let damaged = |reason: String| SnapshotError::Damaged {
        path: path.clone(),
        reason,
    };
    if !image::is_plain(&expected.file) {
        return Err(damaged("the name of a file beside it is asked for".into()).into());
    }
    let failed = |error: io::Error| {
        if is_absent(&error) {
            damaged(error.to_string())
        } else {
            SnapshotError::File {
                path: path.clone(),
                source: error,
            }
        }
    };
    let file = open_regular(&path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let bytes = metadata.len();
    // The length is told before the long way through the content is gone.
    if bytes != expected.bytes {
        return Err(damaged(format!(
            "it has {bytes} bytes, and had {} when the snapshot was taken",
            expected.bytes
        ))
        .into());
    }
    let known = || verified.is_some_and(|v| v.knows(&Identity::of(&metadata), expected));
    if verify == Verify::Never || (verify == Verify::Once && known()) {
        return Ok(());
    }
    let before = Identity::settled(&file).map_err(failed)?;
    let sound = match (&expected.sha256, &expected.sparse_sha256) {
        (Some(sha256), None) => {
            digest::sha256(&file, bytes, deadline).map(|found| found == *sha256)
        }
        (None, Some(sparse)) => {
            digest::sparse_sha256(&file, bytes, deadline).map(|found| found == *sparse)
        }
        _ => return Err(damaged("the manifest has not one digest of it".into()).into()),
    };
    if let (Err(_), Some(deadline)) = (&sound, deadline) {
        Error::if_over(deadline, || {
            format!("the end of reading {}", path.display())
        })?;
    }
    if !sound.map_err(failed)? {
        let other = "its SHA-256 is another one than when the snapshot was taken";
        return Err(damaged(other.into()).into());
    }
    Ok(remember(verified, &file, before.as_ref(), expected).map_err(failed)?)
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

/// What the name of a copy begins with that is being made.
const COPY: &str = ".copy-";

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
        // All of them before: copies come into the folder.
        let entries: io::Result<Vec<_>> = std::fs::read_dir(folder).map_err(failed())?.collect();
        for entry in entries.map_err(failed())? {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            let written = self.write_out(&path, name);
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
    fn write_out(&self, path: &Path, name: String) -> io::Result<StateFile> {
        let mut file = File::options().read(true).write(true).open(path)?;
        let bytes = file.metadata()?.len();
        // First: what is a hole need neither be written nor read.
        let is_copied =
            digest::is_mostly_zeros(&file, bytes)? && replace(&file, bytes, path).is_ok();
        if is_copied {
            file = File::open(path)?;
        } else {
            // It is not worth it, or there is no room for two.
            digest::dig(&file, bytes)?;
        }
        let before = Identity::settled(&file)?;
        let (synced, digest) = thread::scope(|scope| {
            let sync = scope.spawn(|| file.sync_all());
            let digest = digest::sparse_sha256(&file, bytes, None);
            (sync.join(), digest)
        });
        synced.unwrap_or_else(|_| Err(io::Error::other("the thread that syncs panicked")))?;
        let written = StateFile {
            file: name,
            bytes,
            sha256: None,
            sparse_sha256: Some(digest?),
        };
        remember(Some(&self.verified), &file, before.as_ref(), &written)?;
        Ok(written)
    }
}

/// Puts a copy without zeros in the place of a file. To dig holes costs more where there are many: before
/// a file system digs one it writes what is there to the disk (ext4, XFS), while what the page cache has
/// of a file that is gone need not be written.
fn replace(file: &File, bytes: u64, path: &Path) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let copy = tempfile::Builder::new().prefix(COPY).tempfile_in(folder)?;
    digest::copy(file, bytes, copy.as_file())?;
    copy.persist(path)?;
    Ok(())
}

fn sync_folder(folder: &Path) -> Result<(), Error> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(Error::io("sync", folder))
}

/// Whether it is there, and not the same one by another path.
pub(crate) fn is_another_folder(one: &Path, other: &Path) -> bool {
    let file = |path: &Path| std::fs::metadata(path).map(|file| (file.dev(), file.ino()));
    match (file(one), file(other)) {
        (Ok(one), Ok(other)) => one != other,
        (one, _) => one.is_ok(),
    }
}

#[cfg(test)]
mod tests;
