//! Snapshot folders that have no name yet: where they are made, and what becomes of those that nobody
//! writes any more.

use super::{SnapshotDir, SnapshotError, Verified};
use crate::error::Error;
use mvm_registry::{Home, make_private};
use rustix::fs::{Mode, OFlags};
use std::fs::{File, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What the name of a folder that is being written begins with.
const PARTIAL: &str = ".partial-";

/// Where a snapshot folder is to be made. Whoever is to find it, if this program is killed, notes that
/// before it is there.
#[derive(Debug)]
pub(crate) struct SnapshotPlace {
    folder: PathBuf,
    target: PathBuf,
}

impl SnapshotPlace {
    /// Beside the folder that it is to become.
    pub(crate) fn beside(target: &Path) -> Result<Self, Error> {
        let target = std::path::absolute(target).map_err(Error::io("resolve", target))?;
        if target.symlink_metadata().is_ok() {
            return Err(SnapshotError::Exists { path: target }.into());
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.unwrap_or_default().as_nanos();
        // Nobody else's: what is there already is not taken.
        let name = format!("{PARTIAL}{now:x}-{:x}", std::process::id());
        let folder = target.parent().unwrap_or(Path::new("/")).join(name);
        Ok(Self { folder, target })
    }

    /// Where the VMM is to write.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes the folder. What it has will be known in that home as verified.
    pub(crate) fn make(self, home: &Home) -> Result<SnapshotDir, Error> {
        let parent = self.target.parent().unwrap_or(Path::new("/"));
        make_private(parent)?;
        let partial = tempfile::Builder::new()
            .prefix(self.folder.file_name().unwrap_or_default())
            .rand_bytes(0)
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(parent)
            .map_err(Error::io("make a folder in", parent))?;
        let lock = File::open(partial.path())
            .and_then(|folder| folder.lock().map(|()| folder))
            .map_err(Error::io("lock", partial.path()))?;
        Ok(SnapshotDir {
            partial,
            _lock: lock,
            target: self.target,
            verified: Verified::of(home),
        })
    }
}

/// Whether there is a pending snapshot that nobody writes any more.
pub(crate) fn is_left(snapshot_dir: &Path) -> bool {
    let name = snapshot_dir
        .file_name()
        .unwrap_or_default()
        .to_string_lossy();
    // One that another user made is no snapshot of ours, whatever a record says.
    let is_ours = |folder: &File| {
        let owner = folder.metadata().map(|folder| folder.uid());
        owner.is_ok_and(|owner| owner == 0 || owner == rustix::process::geteuid().as_raw())
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = || rustix::fs::open(snapshot_dir, flags, Mode::empty()).map(File::from);
    let is_free = |folder: File| is_ours(&folder) && folder.try_lock().is_ok();
    name.starts_with(PARTIAL) && folder().is_ok_and(is_free)
}

/// Removes a pending snapshot that nobody writes any more, if there is one.
pub(crate) fn discard(snapshot_dir: &Path) -> Result<(), Error> {
    if is_left(snapshot_dir) {
        std::fs::remove_dir_all(snapshot_dir).map_err(Error::io("remove", snapshot_dir))?;
    }
    Ok(())
}

/// Removes all of them in a folder. What cannot be looked at stays.
pub fn discard_all_left(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let _ = discard(&entry.path());
    }
}
