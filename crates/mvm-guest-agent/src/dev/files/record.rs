//! What of a `put` is beside its target until it is whole, on record: whoever is killed cannot remove it.
//!
//! The process that writes keeps a file in the run directory that names it, and removes that last. An
//! agent that starts ends what an earlier one has left under way, and has what is on record removed, by a
//! process of its own, since a disk may not answer.

use crate::machine::children::MARK;
use crate::machine::regular_file::{Link, Trust, read_regular};
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The folder of the records, in the run directory.
const RECORDS: &str = "puts";

/// What each name begins with that is beside a target.
pub(super) const TEMPORARY: &str = ".mvm-put-";

/// The longest path that there is (PATH_MAX).
const LONGEST: usize = 4096;

/// A record. It goes with this.
pub(super) struct Record(Option<PathBuf>);

impl Record {
    /// Records what will be there. Without room for the record it is done without: it is needed only if
    /// somebody is killed.
    pub(super) fn make(beside: &Path, number: u64) -> Self {
        Self(keep(beside, number).ok())
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

fn keep(beside: &Path, number: u64) -> io::Result<PathBuf> {
    let (folder, agent) = place().ok_or(io::ErrorKind::NotFound)?;
    match DirBuilder::new().mode(0o700).create(&folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let path = folder.join(format!("{agent}-{number:016x}"));
    let mut options = File::options();
    options.write(true).create_new(true).mode(0o600);
    let written = options
        .open(&path)
        .and_then(|mut file| file.write_all(beside.as_os_str().as_bytes()));
    if written.is_err() {
        let _ = fs::remove_file(&path);
    }
    written.map(|()| path)
}

/// The folder, and the process id of the agent that has started this process: both are in its mark.
fn place() -> Option<(PathBuf, String)> {
    let mark = std::env::var(MARK).ok()?;
    let mut parts = mark.rsplitn(3, ':').skip(1);
    let (agent, run_dir) = (parts.next()?, parts.next()?);
    Some((folder(Path::new(run_dir)), agent.to_owned()))
}

fn folder(run_dir: &Path) -> PathBuf {
    run_dir.join(RECORDS)
}

/// Whether earlier agents have left records.
pub(crate) fn are_left(run_dir: &Path) -> bool {
    fs::read_dir(folder(run_dir)).is_ok_and(|mut records| records.next().is_some())
}

/// Removes what earlier agents' records name, and those.
pub(super) fn remove_left() {
    let Some((folder, agent)) = place() else {
        return;
    };
    let own = format!("{agent}-");
    for record in fs::read_dir(folder).into_iter().flatten().flatten() {
        if record.file_name().as_bytes().starts_with(own.as_bytes()) {
            continue;
        }
        let path = record.path();
        let named = read_regular(&path, Link::Refused, Trust::Owner, LONGEST).unwrap_or_default();
        let beside = Path::new(OsStr::from_bytes(&named));
        let name = beside.file_name().unwrap_or_default().as_bytes();
        let removed = if !name.starts_with(TEMPORARY.as_bytes()) {
            Ok(())
        } else if fs::symlink_metadata(beside).is_ok_and(|it| it.is_dir()) {
            fs::remove_dir_all(beside)
        } else {
            fs::remove_file(beside)
        };
        // The next agent tries again.
        if removed.is_ok() || removed.is_err_and(|it| it.kind() == io::ErrorKind::NotFound) {
            let _ = fs::remove_file(path);
        }
    }
}
