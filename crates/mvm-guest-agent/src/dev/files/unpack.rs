//! A folder from a tar stream. What a stream says is not to be trusted: nothing is written outside of
//! the folder, and nothing through a link that the stream itself has put there.

use super::content::Content;
use super::report::{shown, trouble};
use super::sparse;
use super::target::Target;
use crate::ports::reply::failed;
use mvm_protocol::answer::ErrorAnswer;
use mvm_protocol::dev::files::{MAX_ARCHIVE_DEPTH, Mode as Bits};
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, Timespec, Timestamps};
use rustix::fs::{fchmod, futimens, mkdirat, open, openat, renameat_with, syncfs, utimensat};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use tar::{Archive, Entry, EntryType};

/// A folder that is not at its place yet, and is gone unless it gets there. It is the process's
/// working folder meanwhile: by whatever name others call it, this stays the same one.
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
        let failed = |error: rustix::io::Errno| target.trouble("create a folder beside", error);
        let temporary = target.temporary.as_str();
        mkdirat(&target.folder, temporary, Mode::RWXU).map_err(failed)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = openat(&target.folder, temporary, flags, Mode::empty()).map_err(failed)?;
        rustix::process::fchdir(&folder).map_err(failed)?;
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
            let unpacked = unpack(&mut entry, &path, &mut folders);
            unpacked.map_err(|error| failed(format!("{}: {error}", shown(&name))))?;
        }
        let bytes = archive.into_inner().finish().map_err(broken)?;
        for folder in folders.iter().rev() {
            finish(folder).map_err(|error| trouble("finish", &folder.path, &error))?;
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

fn unpack<R: Read>(
    entry: &mut Entry<'_, R>,
    path: &Path,
    folders: &mut Vec<Finish>,
) -> io::Result<()> {
    let kind = entry.header().entry_type();
    let mode = entry.header().mode()? & 0o7777;
    let mtime = entry.header().mtime().unwrap_or_default();
    make_parents(path)?;
    match kind {
        EntryType::Directory => {
            make_folder(path)?;
            folders.push(Finish {
                path: path.to_owned(),
                mode,
                mtime,
            });
        }
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            replace(path)?;
            let flags =
                OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = File::from(open(path, flags, Mode::RUSR | Mode::WUSR)?);
            sparse::copy(entry, &file)?;
            fchmod(&file, Mode::from_raw_mode(mode))?;
            futimens(&file, &timestamps(mtime))?;
        }
        EntryType::Symlink => {
            let to = entry.link_name_bytes().unwrap_or_default().into_owned();
            replace(path)?;
            rustix::fs::symlink(OsStr::from_bytes(&to), path)?;
        }
        EntryType::Link => {
            let to = entry.link_name()?.unwrap_or_default().into_owned();
            let to = inside(&to).map_err(|error| io::Error::other(error.message))?;
            check_parents(&to)?;
            replace(path)?;
            fs::hard_link(to, path)?;
        }
        EntryType::XGlobalHeader => {}
        _ => return Err(io::Error::other("neither file, folder nor link: refused")),
    }
    Ok(())
}

/// Of two entries with one name the later counts, as tar has it.
fn replace(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn make_folder(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => check_folder(path),
        other => other,
    }
}

/// The folders that an entry is in: those that no entry names get the usual mode.
fn make_parents(path: &Path) -> io::Result<()> {
    for parent in parents(path) {
        make_folder(parent)?;
    }
    Ok(())
}

fn check_parents(path: &Path) -> io::Result<()> {
    parents(path).into_iter().try_for_each(check_folder)
}

/// From the outermost in.
fn parents(path: &Path) -> Vec<&Path> {
    let mut parents: Vec<_> = path.ancestors().skip(1).collect();
    parents.retain(|parent| !parent.as_os_str().is_empty());
    parents.reverse();
    parents
}

/// Nobody but this process can write here, so that what was looked at stays as it is.
fn check_folder(path: &Path) -> io::Result<()> {
    let found = fs::symlink_metadata(path)?;
    if found.is_symlink() {
        let message = format!(
            "it would be written through the link {}: refused",
            shown(path)
        );
        Err(io::Error::other(message))
    } else if !found.is_dir() {
        let message = format!("{} is no folder", shown(path));
        Err(io::Error::other(message))
    } else {
        Ok(())
    }
}

fn finish(folder: &Finish) -> io::Result<()> {
    // An entry that came later may have taken its place.
    if !fs::symlink_metadata(&folder.path)?.is_dir() {
        return Ok(());
    }
    let mode = Mode::from_raw_mode(folder.mode);
    rustix::fs::chmod(&folder.path, mode)?;
    let times = timestamps(folder.mtime);
    utimensat(rustix::fs::CWD, &folder.path, &times, AtFlags::empty())?;
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
