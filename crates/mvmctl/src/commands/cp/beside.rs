//! Files and folders of this host that appear whole or not at all: made beside where they go, under
//! another name, and renamed. What is dropped before that is removed.

use crate::ui::Ui;
use mvm_client::dev::archive::{KEPT_MODE, Sparse};
use rustix::fs::{AtFlags, Dir, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use tempfile::{Builder, NamedTempFile};

/// A file that is being written.
#[derive(Debug)]
pub(super) struct NewFile {
    file: NamedTempFile,
    target: PathBuf,
    content: Sparse,
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

/// A folder that is being filled.
pub(super) struct NewFolder<'a> {
    /// None once it is in its place.
    folder: Option<PathBuf>,
    target: PathBuf,
    ui: &'a Ui,
}

impl<'a> NewFolder<'a> {
    /// Beside its target, whose own folder is there. If it cannot be removed when it is dropped, that
    /// is said.
    pub(super) fn beside(target: &Path, ui: &'a Ui) -> io::Result<Self> {
        let folder = Builder::new()
            .prefix(".mvmctl-")
            .tempdir_in(folder_of(target))?;
        Ok(Self {
            folder: Some(folder.keep()),
            target: target.to_owned(),
            ui,
        })
    }

    /// Where it is filled.
    pub(super) fn path(&self) -> &Path {
        self.folder.as_deref().unwrap_or(&self.target)
    }

    /// Puts it in its place, where nothing may be.
    pub(super) fn finish(mut self, mode: u32) -> io::Result<()> {
        let opened = File::open(self.path())?;
        opened.set_permissions(Permissions::from_mode(mode & KEPT_MODE))?;
        // One call for all of its files.
        rustix::fs::syncfs(&opened)?;
        rustix::fs::renameat_with(
            rustix::fs::CWD,
            self.path(),
            rustix::fs::CWD,
            &self.target,
            RenameFlags::NOREPLACE,
        )?;
        // It is no longer there to be removed.
        self.folder = None;
        Ok(())
    }
}

impl Drop for NewFolder<'_> {
    fn drop(&mut self) {
        let Some(folder) = &self.folder else { return };
        if let Err(error) = remove(folder) {
            let folder = folder.display();
            self.ui
                .warning(&format!("{folder} is left, and cannot be removed: {error}"));
            self.ui.hint(&format!("rm -r {folder}"));
        }
    }
}

/// Removes a folder and all that is in it, whatever its depth, with a few descriptors and without
/// recursion: what is in its folders comes up to itself, under other names, until none has any.
fn remove(folder: &Path) -> io::Result<()> {
    const FLAGS: OFlags = OFlags::RDONLY
        .union(OFlags::DIRECTORY)
        .union(OFlags::NOFOLLOW)
        .union(OFlags::CLOEXEC);
    let root = rustix::fs::open(folder, FLAGS, Mode::empty())?;
    rustix::fs::fchmod(&root, Mode::RWXU)?;
    let mut risen = 0_u64;
    loop {
        let mut is_empty = true;
        for name in names(&root)? {
            is_empty = false;
            match rustix::fs::unlinkat(&root, &*name, AtFlags::empty()) {
                // Linux says the one, POSIX the other.
                Err(Errno::ISDIR | Errno::PERM) => {}
                removed => {
                    removed?;
                    continue;
                }
            }
            // Its mode came from outside.
            rustix::fs::chmodat(&root, &*name, Mode::RWXU, AtFlags::empty())?;
            let inner = rustix::fs::openat(&root, &*name, FLAGS, Mode::empty())?;
            for name in names(&inner)? {
                match rustix::fs::unlinkat(&inner, &*name, AtFlags::empty()) {
                    Err(Errno::ISDIR | Errno::PERM) => {}
                    removed => {
                        removed?;
                        continue;
                    }
                }
                // Another parent is a change to the folder itself.
                rustix::fs::chmodat(&inner, &*name, Mode::RWXU, AtFlags::empty())?;
                loop {
                    risen += 1;
                    let free = format!(".mvmctl-risen-{risen}");
                    let to = RenameFlags::NOREPLACE;
                    match rustix::fs::renameat_with(&inner, &*name, &root, free, to) {
                        // The names in it come from outside, too.
                        Err(Errno::EXIST) => {}
                        risen => break risen?,
                    }
                }
            }
            rustix::fs::unlinkat(&root, &*name, AtFlags::REMOVEDIR)?;
        }
        if is_empty {
            rustix::fs::rmdir(folder)?;
            return Ok(());
        }
    }
}

/// The names in a folder.
fn names(folder: &OwnedFd) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// The folder that something is in.
pub(super) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Color;
    use std::os::fd::AsRawFd as _;
    use std::os::unix::fs::MetadataExt as _;

    /// As deep as a path of any length can lead.
    #[test]
    fn what_is_removed_may_be_as_deep_as_it_likes() {
        // Whoever keeps a descriptor for each level fails, whatever the machine allows.
        let few = rustix::process::Rlimit {
            current: Some(100),
            ..rustix::process::getrlimit(rustix::process::Resource::Nofile)
        };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, few).unwrap();
        let parent = tempfile::tempdir().unwrap();
        let ui = Ui::new(Color::Never, false);
        let new = NewFolder::beside(&parent.path().join("x"), &ui).unwrap();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let mut folder = rustix::fs::open(new.path(), flags, Mode::empty()).unwrap();
        for _ in 0..3000 {
            std::fs::write(format!("/proc/self/fd/{}/file", folder.as_raw_fd()), "").unwrap();
            rustix::fs::mkdirat(&folder, ".mvmctl-risen-7", Mode::RWXU).unwrap();
            rustix::fs::mkdirat(&folder, "a-folder", Mode::RWXU).unwrap();
            let next = rustix::fs::openat(&folder, "a-folder", flags, Mode::empty()).unwrap();
            // Not to be entered by whoever is not root.
            rustix::fs::fchmod(&folder, Mode::empty()).unwrap();
            folder = next;
        }
        drop(new);
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
    }

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
        let ui = Ui::new(Color::Never, false);
        let other = NewFolder::beside(&folder.path().join("y"), &ui).unwrap();
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
        let ui = Ui::new(Color::Never, false);
        let new = NewFolder::beside(&target, &ui).unwrap();
        assert!(new.finish(0o755).is_err());
        std::fs::remove_dir(&target).unwrap();
        let new = NewFolder::beside(&target, &ui).unwrap();
        new.finish(0o2750).unwrap();
        assert_eq!(target.metadata().unwrap().mode() & 0o7777, 0o750);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
