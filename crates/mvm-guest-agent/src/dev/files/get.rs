//! `get`: a file's content, or a folder as an archive.

use super::pack;
use super::report::{output, report, shown, trouble};
use crate::ports::reply::failed;
use mvm_protocol::answer::ErrorAnswer;
use mvm_protocol::dev::DevAnswer;
use mvm_protocol::dev::files::{Get, GetDone, GetStarted, Mode as Bits};
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

pub(super) fn serve(asked: &Get) -> Result<DevAnswer, ErrorAnswer> {
    let path = Path::new(asked.path.as_str());
    // What is opened may be a pipe that nobody writes to.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty())
        .map_err(|error| trouble("open", path, &error.into()))?;
    let mut file = File::from(file);
    let found = file
        .metadata()
        .map_err(|error| trouble("look at", path, &error))?;
    let mut started = GetStarted {
        bytes: (found.is_file() && !is_made_up(&file)).then_some(found.len()),
        mode: Bits::of(found.mode()).bits(),
        archive: None,
    };
    let mut output = output().map_err(|error| failed(format!("standard output: {error}")))?;
    let bytes = if found.is_file() {
        let announced = started.bytes.unwrap_or_default();
        report(DevAnswer::GetStarted(started));
        let bytes = io::copy(&mut file, &mut output);
        let bytes = bytes.map_err(|error| trouble("read", path, &error))?;
        if bytes < announced {
            return Err(failed(format!(
                "{} became shorter while it was read: {bytes} bytes have come of {announced}",
                shown(path)
            )));
        }
        bytes
    } else if found.is_dir() && asked.archive.is_some() {
        started.archive = asked.archive;
        report(DevAnswer::GetStarted(started));
        pack::folder(path, output)?
    } else if found.is_dir() {
        return Err(failed(format!(
            "{} is a folder: ask for it as an `archive`",
            shown(path)
        )));
    } else {
        return Err(failed(format!(
            "{} is neither file nor folder: refused",
            shown(path)
        )));
    };
    Ok(DevAnswer::GetDone(GetDone { bytes }))
}

/// Whether a file's size says nothing: in sysfs each has that of a page (sysfs(5)).
fn is_made_up(file: &File) -> bool {
    const SYSFS_MAGIC: u64 = 0x6265_6572;
    let kind = rustix::fs::fstatfs(file).map(|it| u64::try_from(it.f_type));
    kind == Ok(Ok(SYSFS_MAGIC))
}
