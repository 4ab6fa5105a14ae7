//! A folder as a tar stream: its files, folders and links, in the order of their names.

use super::beneath::{self, Missing};
use super::report::trouble;
use crate::dev::reply::failed;
use mvm_protocol::answer::ErrorAnswer;
use mvm_protocol::dev::archive::append;
use mvm_protocol::dev::files::MAX_ARCHIVE_DEPTH;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::fs::{fstat, openat, readlinkat, statat};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use tar::{Builder, EntryType, Header};

/// Writes the folder's entries, and gives how many bytes that were.
pub(super) fn folder(root: &Path, output: File) -> Result<u64, ErrorAnswer> {
    let counted = Counted {
        to: BufWriter::with_capacity(64 * 1024, output),
        bytes: 0,
    };
    let mut archive = Builder::new(counted);
    // Below this one no link is followed, though a folder may be replaced by one meanwhile.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(root, flags, Mode::empty());
    let opened = opened.map_err(|error| trouble("open folder", root, &error.into()))?;
    let mut waiting = vec![(PathBuf::new(), 0)];
    while let Some((path, depth)) = waiting.pop() {
        let full = root.join(&path);
        let read = beneath::folder(&opened, &path, Missing::Fail)
            .and_then(|folder| Ok((entries(&folder)?, folder)));
        let (entries, folder) = read.map_err(|error| trouble("read folder", &full, &error))?;
        for name in entries {
            if depth >= MAX_ARCHIVE_DEPTH {
                return Err(failed(format!(
                    "there are entries more than {MAX_ARCHIVE_DEPTH} levels down, and no deeper ones are \
                     packed: pack the folder with tar, and copy that file"
                )));
            }
            let (path, full) = (path.join(&name), full.join(&name));
            let added = add(&mut archive, &path, &folder, &name);
            let is_folder = added.map_err(|error| trouble("read", &full, &error))?;
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

fn entries(folder: &OwnedFd) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Adds one entry. True if it is a folder, whose entries are to follow.
fn add<W: Write>(
    archive: &mut Builder<W>,
    path: &Path,
    folder: &OwnedFd,
    name: &OsStr,
) -> io::Result<bool> {
    let found = match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) => found,
        // It was removed meanwhile.
        Err(Errno::NOENT) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    let no_link = OsStr::new("");
    match FileType::from_raw_mode(found.st_mode) {
        FileType::Symlink => {
            let to = readlinkat(folder, name, Vec::new())?;
            let to = OsStr::from_bytes(to.to_bytes());
            append(
                archive,
                &mut header(&found, EntryType::Symlink),
                path,
                to,
                io::empty(),
            )?;
        }
        FileType::Directory => {
            let header = &mut header(&found, EntryType::Directory);
            append(archive, header, path, no_link, io::empty())?;
            return Ok(true);
        }
        FileType::RegularFile => {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = match openat(folder, name, flags, Mode::empty()) {
                Err(Errno::NOENT) => return Ok(false),
                file => File::from(file?),
            };
            let found = fstat(&file)?;
            let size = u64::try_from(found.st_size).unwrap_or_default();
            let mut header = header(&found, EntryType::Regular);
            header.set_size(size);
            // A file may grow or shrink while it is read, but the archive has said how long it is.
            let content = file.take(size).chain(io::repeat(0)).take(size);
            append(archive, &mut header, path, no_link, content)?;
        }
        // Sockets, pipes and devices mean something where they are alone.
        _ => {}
    }
    Ok(false)
}

fn header(found: &Stat, kind: EntryType) -> Header {
    let mut header = Header::new_gnu();
    header.set_mode(found.st_mode & 0o7777);
    header.set_mtime(u64::try_from(found.st_mtime).unwrap_or_default());
    header.set_uid(found.st_uid.into());
    header.set_gid(found.st_gid.into());
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// Any bytes but a slash make a name, and where a link leads is its own matter.
    #[test]
    fn names_and_links_are_packed_byte_for_byte() {
        let folder = tempfile::tempdir().unwrap();
        let below = |name: &[u8]| folder.path().join(OsStr::from_bytes(name));
        let long = [0xff; 120];
        std::fs::write(below(&long), "content").unwrap();
        let links: [(&[u8], &[u8]); 5] = [
            (b"dots", b".././a/./b//c/"),
            (b"slash", b"dir/"),
            (b"dot", b"./"),
            (b"bytes", &[0xfe; 90]),
            (b"long", &[0xfe; 200]),
        ];
        for (name, to) in links {
            symlink(OsStr::from_bytes(to), below(name)).unwrap();
        }
        let stream = super::super::fuzz::pack(folder.path());
        let into = tempfile::tempdir().unwrap();
        assert!(super::super::fuzz::unpack(&stream, &into.path().join("x")));
        let unpacked = |name: &[u8]| into.path().join("x").join(OsStr::from_bytes(name));
        assert_eq!(std::fs::read(unpacked(&long)).unwrap(), b"content");
        for (name, to) in links {
            let leads_to = std::fs::read_link(unpacked(name)).unwrap();
            assert_eq!(leads_to.as_os_str().as_bytes(), to);
        }
    }
}
