//! A folder as a tar stream: its files, folders and links, in the order of their names.

use super::report::trouble;
use crate::dev::reply::failed;
use mvm_protocol::answer::ErrorAnswer;
use mvm_protocol::dev::files::MAX_ARCHIVE_DEPTH;
use rustix::fs::{Mode, OFlags};
use std::fs::{self, File, Metadata};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use tar::{Builder, EntryType, Header};

/// Writes the folder's entries, and gives how many bytes that were.
pub(super) fn folder(root: &Path, output: File) -> Result<u64, ErrorAnswer> {
    let counted = Counted {
        to: BufWriter::with_capacity(64 * 1024, output),
        bytes: 0,
    };
    let mut archive = Builder::new(counted);
    let mut waiting = vec![(PathBuf::new(), 0)];
    while let Some((path, depth)) = waiting.pop() {
        let full = root.join(&path);
        let entries = entries(&full).map_err(|error| trouble("read folder", &full, &error))?;
        for name in entries {
            if depth >= MAX_ARCHIVE_DEPTH {
                return Err(failed(format!(
                    "there are entries more than {MAX_ARCHIVE_DEPTH} levels down, and no deeper ones are \
                     packed: pack the folder with tar, and copy that file"
                )));
            }
            let (path, full) = (path.join(&name), full.join(&name));
            let is_folder =
                add(&mut archive, &path, &full).map_err(|error| trouble("read", &full, &error))?;
            if is_folder {
                waiting.push((path, depth + 1));
            }
        }
    }
    let finished = archive.into_inner().and_then(|mut counted| {
        counted.to.flush()?;
        Ok(counted.bytes)
    });
    finished.map_err(|error| trouble("send", root, &error))
}

fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        names.push(PathBuf::from(entry?.file_name()));
    }
    names.sort();
    Ok(names)
}

/// Adds one entry. True if it is a folder, whose entries are to follow.
fn add<W: Write>(archive: &mut Builder<W>, path: &Path, full: &Path) -> io::Result<bool> {
    let found = match fs::symlink_metadata(full) {
        Ok(found) => found,
        // It was removed meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    if found.is_symlink() {
        let to = fs::read_link(full)?;
        archive.append_link(&mut header(&found, EntryType::Symlink), path, to)?;
    } else if found.is_dir() {
        archive.append_data(&mut header(&found, EntryType::Directory), path, io::empty())?;
        return Ok(true);
    } else if found.is_file() {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::open(full, flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => return Ok(false),
            file => File::from(file?),
        };
        let found = file.metadata()?;
        let size = found.len();
        let mut header = header(&found, EntryType::Regular);
        header.set_size(size);
        // A file may grow or shrink while it is read, but the archive has said how long it is.
        let content = file.take(size).chain(io::repeat(0)).take(size);
        archive.append_data(&mut header, path, content)?;
    }
    // Sockets, pipes and devices mean something where they are alone.
    Ok(false)
}

fn header(found: &Metadata, kind: EntryType) -> Header {
    let mut header = Header::new_gnu();
    header.set_metadata(found);
    header.set_entry_type(kind);
    header.set_size(0);
    header
}

struct Counted<W> {
    to: W,
    bytes: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
