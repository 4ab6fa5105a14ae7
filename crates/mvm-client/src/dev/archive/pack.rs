//! A folder of this host as a tar stream.

use mvm_protocol::dev::archive::append;
use mvm_protocol::dev::files::MAX_ARCHIVE_DEPTH;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use tar::{Builder, EntryType, Header};

/// Packs a folder's entries, sorted by name, with paths relative to it. Of a link what it is is packed,
/// not what it leads to.
///
/// # Errors
///
/// Those of this host and of the stream, and one for what can be in no archive: a socket, a device, what
/// lies too deep. Each names the path that it is about.
pub fn pack(folder: &Path, stream: impl Write) -> io::Result<()> {
    let mut archive = Builder::new(stream);
    add_entries(&mut archive, folder)?;
    archive.into_inner()?.flush()
}

/// A folder on the way down: its descriptor, and the names in it that are still to be added.
struct Level {
    folder: OwnedFd,
    names: std::vec::IntoIter<OsString>,
}

impl Level {
    fn read(folder: OwnedFd) -> io::Result<Self> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&folder)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(Self {
            folder,
            names: names.into_iter(),
        })
    }
}

/// Each folder is opened in the one before it, so that neither the length of a path nor what others
/// rename meanwhile matters, and there is no recursion.
fn add_entries(archive: &mut Builder<impl Write>, root: &Path) -> io::Result<()> {
    let about = |path: PathBuf| {
        move |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
    };
    let opened = rustix::fs::open(root, FOLDER, Mode::empty()).map_err(io::Error::from);
    let mut levels = vec![
        opened
            .and_then(Level::read)
            .map_err(about(root.to_owned()))?,
    ];
    let mut inside = PathBuf::new();
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.names.next() else {
            levels.pop();
            inside.pop();
            continue;
        };
        inside.push(&name);
        if levels.len() > MAX_ARCHIVE_DEPTH {
            return Err(io::Error::other(format!(
                "{}… is the entry of a folder {MAX_ARCHIVE_DEPTH} levels down, and no deeper ones are \
                 copied; nothing of the folder was: pack it with tar, and copy that file",
                root.join(inside.iter().take(3).collect::<PathBuf>())
                    .display()
            )));
        }
        let Some(level) = levels.last() else { break };
        let folder =
            add(archive, &level.folder, &name, &inside).map_err(about(root.join(&inside)))?;
        match folder {
            Some(folder) => {
                levels.push(Level::read(folder).map_err(about(root.join(&inside)))?);
            }
            None => {
                inside.pop();
            }
        }
    }
    Ok(())
}

const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

/// Adds one entry. If it is a folder it is opened, for its entries to follow.
fn add(
    archive: &mut Builder<impl Write>,
    folder: &OwnedFd,
    name: &OsStr,
    inside: &Path,
) -> io::Result<Option<OwnedFd>> {
    let found = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let no_link = OsStr::new("");
    let mut header = Header::new_gnu();
    header.set_mode(found.st_mode & 0o7777);
    header.set_mtime(u64::try_from(found.st_mtime).unwrap_or(0));
    // Whose it is there is the agent's matter.
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    match FileType::from_raw_mode(found.st_mode) {
        FileType::Directory => {
            header.set_entry_type(EntryType::Directory);
            append(archive, &mut header, inside, no_link, io::empty())?;
            let flags = FOLDER | OFlags::NOFOLLOW;
            return Ok(Some(rustix::fs::openat(
                folder,
                name,
                flags,
                Mode::empty(),
            )?));
        }
        FileType::Symlink => {
            header.set_entry_type(EntryType::Symlink);
            let target = rustix::fs::readlinkat(folder, name, Vec::new())?;
            let target = OsStr::from_bytes(target.to_bytes());
            append(archive, &mut header, inside, target, io::empty())?;
        }
        FileType::RegularFile => {
            // What has taken its place meanwhile, a pipe for example, is not waited for.
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = File::from(rustix::fs::openat(folder, name, flags, Mode::empty())?);
            let left = file.metadata()?.len();
            header.set_entry_type(EntryType::Regular);
            header.set_size(left);
            let content = Exactly { file, left };
            append(archive, &mut header, inside, no_link, content)?;
        }
        _ => {
            return Err(io::Error::other(
                "neither a file, a folder nor a symbolic link, and nothing of the folder was copied",
            ));
        }
    }
    Ok(None)
}

/// So many bytes of a file: the length is in the archive before the content.
struct Exactly {
    file: File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let Some(buffer) = buffer.get_mut(..most).filter(|buffer| !buffer.is_empty()) else {
            return Ok(0);
        };
        match self.file.read(buffer)? {
            0 => Err(io::Error::other("it became shorter while it was read")),
            count => {
                self.left -= count as u64;
                Ok(count)
            }
        }
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
        let mut stream = Vec::new();
        pack(folder.path(), &mut stream).unwrap();
        let into = tempfile::tempdir().unwrap();
        super::super::unpack(&*stream, into.path()).unwrap();
        let unpacked = |name: &[u8]| into.path().join(OsStr::from_bytes(name));
        assert_eq!(std::fs::read(unpacked(&long)).unwrap(), b"content");
        for (name, to) in links {
            let leads_to = std::fs::read_link(unpacked(name)).unwrap();
            assert_eq!(leads_to.as_os_str().as_bytes(), to);
        }
    }
}
