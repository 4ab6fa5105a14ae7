//! `put`: a file or a folder, whole or not at all.

use super::content::Content;
use super::report::{report, shown, trouble};
use super::target::Target;
use super::{sparse, unpack};
use crate::ports::reply::failed;
use mvm_protocol::answer::{ErrorAnswer, ErrorCode};
use mvm_protocol::dev::DevAnswer;
use mvm_protocol::dev::files::{Mode as Bits, Put, PutDone, PutReady};
use rustix::fs::{AtFlags, Mode, OFlags, fchmod, fchown, linkat, openat, renameat, unlinkat};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

pub(super) fn serve(asked: &Put) -> Result<DevAnswer, ErrorAnswer> {
    let (path, replaced) = decide(asked)?;
    let target = Target::new(path)?;
    let content = Content::new(io::stdin().lock());
    let path = target.path.to_string_lossy().into_owned();
    let bytes = if asked.archive.is_some() {
        let folder = unpack::Folder::make(&target)?;
        report(DevAnswer::PutReady(PutReady { path }));
        folder.fill(content, asked.mode)?
    } else {
        let file = Temporary::make(&target)?;
        report(DevAnswer::PutReady(PutReady { path }));
        file.fill(content, asked.mode, replaced.as_ref())?
    };
    Ok(DevAnswer::PutDone(PutDone { bytes }))
}

/// The path that is meant, and the file that is replaced, if there is one.
fn decide(asked: &Put) -> Result<(PathBuf, Option<Metadata>), ErrorAnswer> {
    let mut path = PathBuf::from(asked.path.as_str());
    let is_folder = fs::metadata(&path).is_ok_and(|it| it.is_dir());
    match &asked.name {
        Some(name) if is_folder => path.push(name.as_str()),
        None if is_folder && asked.archive.is_none() => {
            let shown = shown(&path);
            return Err(failed(format!(
                "{shown} is a folder: say which `name` the file gets in it"
            )));
        }
        _ if asked.path.as_str().ends_with('/') && asked.archive.is_none() => {
            let message = format!("no folder {}", shown(&path));
            return Err(ErrorAnswer::new(ErrorCode::NotFound, message));
        }
        _ => {}
    }
    if asked.archive.is_some() {
        return match fs::symlink_metadata(&path) {
            Ok(_) => Err(failed(format!(
                "{} is there already: nothing is merged; remove it first",
                shown(&path)
            ))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((path, None)),
            Err(error) => Err(trouble("look at", &path, &error)),
        };
    }
    match fs::metadata(&path) {
        Ok(old) if !old.is_file() => Err(failed(format!(
            "{} is there and is no file: it is not replaced",
            shown(&path)
        ))),
        Ok(old) => {
            // What is meant by a link is the file at its end.
            let path = fs::canonicalize(&path).map_err(|it| trouble("find", &path, &it))?;
            Ok((path, Some(old)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let path = follow(&path).map_err(|error| trouble("follow", &path, &error))?;
            Ok((path, None))
        }
        // Before all of the content has come for nothing.
        Err(error) => Err(trouble("look at", &path, &error)),
    }
}

/// Where a link leads to whose file is not there: it stays, and the file appears.
fn follow(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    // As many as the kernel follows: path_resolution(7).
    for _ in 0..40 {
        match fs::read_link(&path) {
            Ok(to) => {
                path.pop();
                path.push(to);
            }
            // It is no link, or nothing.
            Err(_) => return Ok(path),
        }
    }
    Err(Errno::LOOP.into())
}

/// A file that is not at its place yet, and is gone unless it gets there.
struct Temporary<'a> {
    target: &'a Target,
    file: File,
    /// Whether it has a name, which has to be removed.
    named: bool,
}

impl<'a> Temporary<'a> {
    /// A file without a name where the filesystem has those: whatever happens, it does not stay.
    fn make(target: &'a Target) -> Result<Self, ErrorAnswer> {
        let mode = Mode::RUSR | Mode::WUSR;
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let unnamed = openat(&target.folder, ".", flags | OFlags::TMPFILE, mode);
        let (file, named) = match unnamed {
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::INVAL) => {
                let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
                let file = openat(&target.folder, target.temporary.as_str(), flags, mode);
                (file, true)
            }
            file => (file, false),
        };
        let file = file.map_err(|error| target.trouble("create a file beside", error))?;
        Ok(Self {
            target,
            file: File::from(file),
            named,
        })
    }

    fn fill<R: Read>(
        mut self,
        mut content: Content<R>,
        mode: Option<Bits>,
        replaced: Option<&Metadata>,
    ) -> Result<u64, ErrorAnswer> {
        let target = self.target;
        let bytes = sparse::copy(&mut content, &self.file)
            .map_err(|error| target.trouble("write", error))?;
        let kept = replaced.map(|old| self.keep_owner(old));
        // What only some could read stays so, unless the host says otherwise.
        let mode = mode.or(kept).unwrap_or(Bits::DEFAULT);
        fchmod(&self.file, Mode::from_raw_mode(mode.bits()))
            .map_err(|error| target.trouble("set the mode of", error))?;
        self.file
            .sync_all()
            .map_err(|error| target.trouble("sync", error))?;
        self.give_name()?;
        renameat(
            &target.folder,
            target.temporary.as_str(),
            &target.folder,
            &target.name,
        )
        .map_err(|error| target.trouble("rename to", error))?;
        self.named = false;
        rustix::fs::fsync(&target.folder)
            .map_err(|error| target.trouble("sync the folder of", error))?;
        Ok(bytes)
    }

    /// Whose it was, it stays, as far as the agent may say so. Gives its mode: to run as its owner is
    /// a right that no other owner ever gave.
    fn keep_owner(&self, old: &Metadata) -> Bits {
        let (uid, gid) = (Uid::from_raw(old.uid()), Gid::from_raw(old.gid()));
        match fchown(&self.file, Some(uid), Some(gid)) {
            Ok(()) => Bits::of(old.mode()),
            Err(_) => Bits::of(old.mode() & 0o777),
        }
    }

    /// A file without a name gets one, since nothing else can take another file's place.
    fn give_name(&mut self) -> Result<(), ErrorAnswer> {
        if self.named {
            return Ok(());
        }
        let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        linkat(
            rustix::fs::CWD,
            Path::new(&own),
            &self.target.folder,
            self.target.temporary.as_str(),
            AtFlags::SYMLINK_FOLLOW,
        )
        .map_err(|error| self.target.trouble("name a file beside", error))?;
        self.named = true;
        Ok(())
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if self.named {
            let temporary = self.target.temporary.as_str();
            let _ = unlinkat(&self.target.folder, temporary, AtFlags::empty());
        }
    }
}
