//! How a console is kept that has more to say than there is room for.
//!
//! ```text
//! console.log     head │ "--- N bytes are missing here ---" │ end …     this boot
//! console.log.1   the same                                             the boot before
//! ```
//!
//! Each file has a share of the limit. One that would grow beyond its share is written anew, with its
//! beginning and its end, and takes the old one's place: whoever reads it has one or the other. While
//! that is done there are three files, and together they have no more than the limit.

use rustix::fs::{Mode, OFlags};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

/// The console of this boot, in the VM's folder.
pub(crate) const LOG: &str = "console.log";

/// That of the boot before.
pub(crate) const LAST_LOG: &str = "console.log.1";

/// What is to take the place of the first.
const NEW_LOG: &str = "console.log.new";

/// How much of consoles is kept of a VM by default, in MiB.
pub const DEFAULT_LIMIT_MIB: u32 = 4;

/// The length of the line that stands for what is missing.
const MISSING_LEN: usize = 53;

/// The same as a part of a file.
const MISSING: u64 = MISSING_LEN as u64;

/// How much is copied at once, in bytes.
const PIECE: usize = 64 * 1024;

/// How much of a console is kept, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share {
    whole: u64,
}

impl Share {
    /// One file's part of what is kept of a VM.
    pub(crate) fn of(limit_mib: Option<u32>) -> Self {
        let limit = u64::from(limit_mib.unwrap_or(DEFAULT_LIMIT_MIB).max(1)) << 20;
        // Two whole ones, and a half that is to take one's place.
        Self {
            whole: limit / 5 * 2,
        }
    }

    /// The most that a file has.
    pub(crate) fn whole(self) -> u64 {
        self.whole
    }

    /// How much of the beginning is kept.
    fn head(self) -> u64 {
        self.whole / 4
    }

    /// The length of a file that was just written anew.
    fn renewed(self) -> u64 {
        self.whole / 2
    }

    /// How much of the end it has.
    fn end(self) -> u64 {
        self.renewed() - self.head() - MISSING
    }
}

fn missing_line(bytes: u64) -> String {
    format!("\n--- {bytes:>20} bytes are missing here ---\n")
}

/// How many bytes are missing in a file. What looks like the line may be the guest's own, which
/// deceives nobody but who reads its console.
pub(super) fn missing(file: &File, share: Share) -> io::Result<u64> {
    let mut line = [0; MISSING_LEN];
    match file.read_exact_at(&mut line, share.head()) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
        read => read?,
    }
    let bytes = std::str::from_utf8(&line).ok().and_then(|line| {
        let number = line.strip_prefix("\n---")?.split_whitespace().next()?;
        let bytes: u64 = number.parse().ok()?;
        (missing_line(bytes) == line).then_some(bytes)
    });
    Ok(bytes.unwrap_or(0))
}

/// Where in the guest's output something is that is at that place in the file.
pub(super) fn said_at(place: u64, missing: u64, share: Share) -> u64 {
    if missing == 0 || place <= share.head() {
        return place;
    }
    let behind = place.saturating_sub(MISSING).max(share.head());
    behind.saturating_add(missing)
}

/// The other way round. What is missing is where the line is that stands for it.
pub(super) fn place_of(said: u64, missing: u64, share: Share) -> u64 {
    if missing == 0 || said <= share.head() {
        return said;
    }
    match said.checked_sub(missing) {
        Some(behind) if behind >= share.head() => behind.saturating_add(MISSING),
        _ => share.head(),
    }
}

/// Begins a console, and keeps the one before as the last. What lies there that is no file is not
/// written to, nor followed.
pub(crate) fn begin(folder: &Path, share: Share) -> io::Result<()> {
    let log = folder.join(LOG);
    match fs::symlink_metadata(&log) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
        Ok(found) if found.is_file() && found.len() > 0 => {
            // By another limit, or by an mvmctl that had none.
            if found.len() > share.whole() {
                let file = mvm_registry::open_regular(&log)?;
                renew(folder, &file, found.len(), share)?;
            }
            fs::rename(&log, folder.join(LAST_LOG))?;
        }
        Ok(found) if found.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
        Ok(_) => fs::remove_file(&log)?,
    }
    create(folder, LOG).map(drop)
}

/// Opens a console that has been begun, for those that write it themselves.
pub(crate) fn open(folder: &Path) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let flags = flags | OFlags::CLOEXEC;
    Ok(rustix::fs::open(folder.join(LOG), flags, Mode::empty())?.into())
}

fn create(folder: &Path, name: &str) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    Ok(rustix::fs::open(folder.join(name), flags, mode)?.into())
}

/// Writes a console's file of that length anew, shorter. Gives the file that has taken its place.
pub(super) fn renew(folder: &Path, file: &File, length: u64, share: Share) -> io::Result<File> {
    let before = missing(file, share)?;
    let head = share.head().min(length);
    let end = length.saturating_sub(share.end()).max(head);
    let said_before_end = said_at(end, before, share);
    let missing = said_before_end - head;
    match fs::remove_file(folder.join(NEW_LOG)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let written = create(folder, NEW_LOG).and_then(|mut new| {
        copy(file, 0, head, &mut new)?;
        new.write_all(missing_line(missing).as_bytes())?;
        copy(file, end, length, &mut new)?;
        fs::rename(folder.join(NEW_LOG), folder.join(LOG))?;
        Ok(new)
    });
    if written.is_err() {
        // It takes room that there may not be enough of.
        let _ = fs::remove_file(folder.join(NEW_LOG));
    }
    written
}

fn copy(from: &File, mut at: u64, until: u64, to: &mut File) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    while at < until {
        let wanted = usize::try_from(until - at).map_or(PIECE, |left| left.min(PIECE));
        let Some(space) = piece.get_mut(..wanted) else {
            break;
        };
        from.read_exact_at(space, at)?;
        to.write_all(space)?;
        at += space.len() as u64;
    }
    Ok(())
}

/// By what a file is known to be another one.
pub(super) fn identity(file: &File) -> io::Result<(u64, u64)> {
    let metadata = file.metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}
