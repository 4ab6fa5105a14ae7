//! Files and folders of this host that appear whole or not at all: made beside where they go, under
//! another name, and renamed. What is dropped before that is removed.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use tempfile::{Builder, NamedTempFile, TempDir};

/// The bits of a mode that are kept of what a guest sends. A program of the guest's that is setuid
/// would be one of the host's root, were root to copy it.
pub(super) const KEPT_MODE: u32 = 0o777;

/// A filesystem's block, in bytes: what a hole is made of.
const BLOCK: usize = 4096;

/// A file that is being written.
#[derive(Debug)]
pub(super) struct NewFile {
    file: NamedTempFile,
    target: PathBuf,
    content: Sparse,
}

/// What has been written to a file: zeros are left out.
#[derive(Debug, Default)]
pub(super) struct Sparse {
    length: u64,
}

impl NewFile {
    /// Beside its target, whose folder is there.
    pub(super) fn beside(target: &Path) -> io::Result<Self> {
        let file = Builder::new()
            .prefix(".mvmctl-")
            .tempfile_in(folder_of(target))?;
        Ok(Self {
            file,
            target: target.to_owned(),
            content: Sparse::default(),
        })
    }

    /// Adds content.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.content.write(self.file.as_file(), bytes)
    }

    /// Puts it in its place, in place of what is there.
    pub(super) fn finish(self, mode: u32) -> io::Result<()> {
        let file = self.file.as_file();
        self.content.finish(file)?;
        file.set_permissions(Permissions::from_mode(mode & KEPT_MODE))?;
        file.sync_all()?;
        self.file.persist(self.target)?;
        Ok(())
    }
}

impl Sparse {
    /// Writes at the end of what was written.
    pub(super) fn write(&mut self, file: &File, mut bytes: &[u8]) -> io::Result<()> {
        const ZEROS: [u8; BLOCK] = [0; BLOCK];
        // What is not zero and not written yet.
        let mut run: &[u8] = &[];
        let mut all = bytes;
        while !bytes.is_empty() {
            let into_block = usize::try_from(self.length % BLOCK as u64).unwrap_or_default();
            let (block, rest) = bytes.split_at(bytes.len().min(BLOCK - into_block));
            bytes = rest;
            self.length += block.len() as u64;
            if ZEROS.starts_with(block) {
                let before = self.length - block.len() as u64 - run.len() as u64;
                file.write_all_at(run, before)?;
                run = &[];
                all = rest;
            } else {
                run = all.get(..run.len() + block.len()).unwrap_or_default();
            }
        }
        file.write_all_at(run, self.length - run.len() as u64)
    }

    /// Makes the file as long as what was written.
    pub(super) fn finish(&self, file: &File) -> io::Result<()> {
        file.set_len(self.length)
    }
}

/// A folder that is being filled.
#[derive(Debug)]
pub(super) struct NewFolder {
    folder: TempDir,
    target: PathBuf,
}

impl NewFolder {
    /// Beside its target, whose own folder is there.
    pub(super) fn beside(target: &Path) -> io::Result<Self> {
        let folder = Builder::new()
            .prefix(".mvmctl-")
            .tempdir_in(folder_of(target))?;
        Ok(Self {
            folder,
            target: target.to_owned(),
        })
    }

    /// Where it is filled.
    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Puts it in its place, where nothing may be.
    pub(super) fn finish(self, mode: u32) -> io::Result<()> {
        let opened = File::open(self.path())?;
        opened.set_permissions(Permissions::from_mode(mode & KEPT_MODE))?;
        // One call for all of its files.
        rustix::fs::syncfs(&opened)?;
        rustix::fs::renameat_with(
            rustix::fs::CWD,
            self.path(),
            rustix::fs::CWD,
            &self.target,
            rustix::fs::RenameFlags::NOREPLACE,
        )?;
        // It is no longer there to be removed.
        let _ = self.folder.keep();
        Ok(())
    }
}

/// The folder that something is in.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn zeros_are_holes_and_are_read_as_zeros() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("x");
        let mut content = vec![0; 5_000_000];
        content[1_234_567..1_300_000].fill(7);
        content[4096] = 1;
        content[2_000_000] = 1;
        // Ends in zeros, and comes in pieces that end nowhere in particular.
        let mut file = NewFile::beside(&target).unwrap();
        for piece in content.chunks(262_143) {
            file.write(piece).unwrap();
        }
        file.finish(0o4755).unwrap();
        assert!(std::fs::read(&target).unwrap() == content);
        let metadata = target.metadata().unwrap();
        assert_eq!(metadata.mode() & 0o7777, 0o755);
        assert!(metadata.blocks() * 512 < 200_000, "{}", metadata.blocks());
    }

    #[test]
    fn what_is_dropped_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("x"), "old").unwrap();
        let mut file = NewFile::beside(&folder.path().join("x")).unwrap();
        file.write(b"new").unwrap();
        let other = NewFolder::beside(&folder.path().join("y")).unwrap();
        std::fs::write(other.path().join("z"), "").unwrap();
        drop((file, other));
        let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(left.len(), 1);
        assert_eq!(std::fs::read(folder.path().join("x")).unwrap(), b"old");
    }

    #[test]
    fn a_folder_replaces_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("x");
        std::fs::create_dir(&target).unwrap();
        let new = NewFolder::beside(&target).unwrap();
        assert!(new.finish(0o755).is_err());
        std::fs::remove_dir(&target).unwrap();
        NewFolder::beside(&target).unwrap().finish(0o2750).unwrap();
        assert_eq!(target.metadata().unwrap().mode() & 0o7777, 0o750);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
