//! Where a `put` writes: beside its target until it is whole.

use super::record::{Record, TEMPORARY};
use super::report::{shown, trouble};
use crate::ports::reply::failed;
use mvm_protocol::answer::ErrorAnswer;
use rustix::fs::{Mode, OFlags};
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// Where it goes.
pub(super) struct Target {
    pub(super) path: PathBuf,
    /// The folder that it goes into, and its name there.
    pub(super) folder: OwnedFd,
    pub(super) name: OsString,
    /// Beside it, until it is whole.
    pub(super) temporary: String,
    /// Goes last.
    _record: Record,
}

impl Target {
    pub(super) fn new(path: PathBuf) -> Result<Self, ErrorAnswer> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(failed(format!("{} names no file", shown(&path))));
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(parent, flags, Mode::empty())
            .map_err(|error| trouble("open folder", parent, &error.into()))?;
        let mut random = [0_u8; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| failed(format!("getrandom: {error}")))?;
        let number = u64::from_ne_bytes(random);
        let temporary = format!("{TEMPORARY}{number:016x}");
        Ok(Self {
            name: name.to_owned(),
            folder,
            _record: Record::make(&path.with_file_name(&temporary), number),
            temporary,
            path,
        })
    }

    /// What failed with it.
    pub(super) fn trouble(&self, what: &str, error: impl Into<io::Error>) -> ErrorAnswer {
        trouble(what, &self.path, &error.into())
    }
}
