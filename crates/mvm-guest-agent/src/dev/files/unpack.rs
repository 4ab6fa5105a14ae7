//! A folder from a tar stream. What a stream says is not to be trusted: nothing is written outside of
//! the folder, and nothing through a link that the stream itself has put there.

use super::beneath::{self, Missing};
use super::content::Content;
use super::report::{shown, trouble};
use super::sparse;
use super::target::Target;
use crate::ports::reply::failed;
use mvm_protocol::answer::ErrorAnswer;
use mvm_protocol::dev::archive::SPARSE;
use mvm_protocol::dev::files::{MAX_ARCHIVE_DEPTH, Mode as Bits};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, Timespec, Timestamps};
use rustix::fs::{fchmod, futimens, linkat, mkdirat, openat, renameat_with, statat};
use rustix::fs::{symlinkat, syncfs, unlinkat};
use rustix::io::Errno;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use tar::{Archive, Entry, EntryType};

/// A folder that is not at its place yet, and is gone unless it gets there. All that is made in it is made
/// below its descriptor: by whatever name others call it, this stays the same one.
pub(super) struct Folder<'a> {
    target: &'a Target,
    fd: OwnedFd,
    kept: bool,
}

/// What is set when all is in them: a folder may not be writable.
struct Finish {
    path: PathBuf,
    mode: u32,
    mtime: u64,
}

impl<'a> Folder<'a> {
    pub(super) fn make(target: &'a Target) -> Result<Self, ErrorAnswer> {
        let failed = |error: Errno| target.trouble("create a folder beside", error);
        let temporary = target.temporary.as_str();
        mkdirat(&target.folder, temporary, Mode::RWXU).map_err(failed)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = openat(&target.folder, temporary, flags, Mode::empty()).map_err(failed)?;
        Ok(Self {
            target,
            fd: folder,
            kept: false,
        })
    }

    /// Unpacks all, and moves the folder to its place.
    pub(super) fn fill<R: Read>(
        mut self,
        content: Content<R>,
        mode: Option<Bits>,
    ) -> Result<u64, ErrorAnswer> {
        let mut archive = Archive::new(content);
        let mut root = 0o755;
        let mut folders = Vec::new();
        let broken = |error: io::Error| failed(format!("the archive cannot be read: {error}"));
        for entry in archive.entries().map_err(broken)? {
            let mut entry = entry.map_err(broken)?;
            let name = entry.path().map_err(broken)?.into_owned();
            let path = inside(&name)?;
            if path.as_os_str().is_empty() {
                root = entry.header().mode().unwrap_or(root);
                continue;
            }
            let unpacked = unpack(&self.fd, &mut entry, &path, &mut folders);
            unpacked.map_err(|error| failed(format!("{}: {error}", shown(&name))))?;
        }
        let bytes = archive.into_inner().finish().map_err(broken)?;
        // Of a folder that has several entries the last one counts, which may leave it unreadable.
        let mut finished = HashSet::new();
        for folder in folders.iter().rev() {
            if !finished.insert(folder.path.as_path()) {
                continue;
            }
            finish(&self.fd, folder).map_err(|error| trouble("finish", &folder.path, &error))?;
        }
        let root = mode.map_or(root, Bits::bits);
        let target = self.target;
        fchmod(&self.fd, Mode::from_raw_mode(root & 0o7777))
            .map_err(|error| target.trouble("set the mode of", error))?;
        syncfs(&self.fd).map_err(|error| target.trouble("sync", error))?;
        renameat_with(
            &target.folder,
            target.temporary.as_str(),
            &target.folder,
            &target.name,
            RenameFlags::NOREPLACE,
        )
        .map_err(|error| target.trouble("rename to", error))?;
        self.kept = true;
        rustix::fs::fsync(&target.folder)
            .map_err(|error| target.trouble("sync the folder of", error))?;
        Ok(bytes)
    }
}

impl Drop for Folder<'_> {
    fn drop(&mut self) {
        if !self.kept {
            let beside = self.target.path.with_file_name(&self.target.temporary);
            let _ = fs::remove_dir_all(beside);
        }
    }
}

/// The path below the folder, if it is one.
fn inside(path: &Path) -> Result<PathBuf, ErrorAnswer> {
    let mut inside = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::Normal(name) => inside.push(name),
            Component::RootDir | Component::Prefix(_) | Component::ParentDir => {
                return Err(failed(format!(
                    "the archive has an entry {}, which is absolute or leads outside: refused",
                    shown(path)
                )));
            }
        }
    }
    let depth = inside.components().count();
    if depth > MAX_ARCHIVE_DEPTH {
        return Err(failed(format!(
            "the archive has an entry that lies {depth} folders deep, and no more than \
             {MAX_ARCHIVE_DEPTH} are unpacked"
        )));
    }
    Ok(inside)
}

fn refuse_sparse_pax<R: Read>(entry: &mut Entry<'_, R>) -> io::Result<()> {
    for record in entry.pax_extensions()?.into_iter().flatten() {
        if record?.key_bytes().starts_with(SPARSE) {
            let why = "a sparse file of the pax format: refused (bsdtar: --no-read-sparse)";
            return Err(io::Error::other(why));
        }
    }
    Ok(())
}

/// One entry. Its folder is opened without following a link, and it is made in that by its name alone.
fn unpack<R: Read>(
    root: &OwnedFd,
    entry: &mut Entry<'_, R>,
    path: &Path,
    folders: &mut Vec<Finish>,
) -> io::Result<()> {
    let kind = entry.header().entry_type();
    let mode = entry.header().mode()? & 0o7777;
    let mtime = entry.header().mtime().unwrap_or_default();
    let (above, name) = split(path);
    let folder = beneath::folder(root, above, Missing::Make)?;
    match kind {
        EntryType::Directory => {
            beneath::make(&folder, name)?;
            beneath::open(&folder, name, path)?;
            folders.push(Finish {
                path: path.to_owned(),
                mode,
                mtime,
            });
        }
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            refuse_sparse_pax(entry)?;
            remove(&folder, name)?;
            let flags =
                OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = File::from(openat(&folder, name, flags, Mode::RUSR | Mode::WUSR)?);
            sparse::copy(entry, &file)?;
            fchmod(&file, Mode::from_raw_mode(mode))?;
            futimens(&file, &timestamps(mtime))?;
        }
        EntryType::Symlink => {
            let to = entry.link_name_bytes().unwrap_or_default().into_owned();
            remove(&folder, name)?;
            symlinkat(OsStr::from_bytes(&to), &folder, name)?;
        }
        EntryType::Link => {
            let to = entry.link_name()?.unwrap_or_default().into_owned();
            let to = inside(&to).map_err(|error| io::Error::other(error.message))?;
            let (to_above, to) = split(&to);
            let to_folder = beneath::folder(root, to_above, Missing::Fail)?;
            remove(&folder, name)?;
            linkat(&to_folder, to, &folder, name, AtFlags::empty())?;
        }
        EntryType::XGlobalHeader => {}
        _ => return Err(io::Error::other("neither file, folder nor link: refused")),
    }
    Ok(())
}

/// The folder of a path, and the name in it.
fn split(path: &Path) -> (&Path, &OsStr) {
    let above = path.parent().unwrap_or_else(|| Path::new(""));
    (above, path.file_name().unwrap_or_default())
}

/// Of two entries with one name the later counts, as tar has it.
fn remove(folder: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match unlinkat(folder, name, AtFlags::empty()) {
        Err(error) if error != Errno::NOENT => Err(error.into()),
        _ => Ok(()),
    }
}

fn finish(root: &OwnedFd, folder: &Finish) -> io::Result<()> {
    let (above, name) = split(&folder.path);
    let above = beneath::folder(root, above, Missing::Fail)?;
    // An entry that came later may have taken its place.
    let found = statat(&above, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::Directory {
        return Ok(());
    }
    let opened = beneath::open(&above, name, &folder.path)?;
    fchmod(&opened, Mode::from_raw_mode(folder.mode))?;
    futimens(&opened, &timestamps(folder.mtime))?;
    Ok(())
}

fn timestamps(mtime: u64) -> Timestamps {
    let time = Timespec {
        tv_sec: i64::try_from(mtime).unwrap_or(i64::MAX),
        tv_nsec: 0,
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}
