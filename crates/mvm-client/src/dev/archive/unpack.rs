//! A tar stream from a guest, unpacked into a folder of this host.
//!
//! The guest is not trusted. Every entry is made relative to an open folder, and no symbolic link is
//! followed on the way: neither `..` nor an absolute path nor a link that an earlier entry made leads
//! outside. What is no file, folder or symbolic link is refused, and so is whatever is there already.
//! Long names are read up to a bound; of the content nothing is held in memory but a piece.

use super::{KEPT_MODE, Sparse};
use crate::error::cut;
use mvm_protocol::dev::archive::SPARSE;
use mvm_protocol::dev::files::MAX_ARCHIVE_DEPTH;
use rustix::fs::{Mode, OFlags, ResolveFlags, Timespec, Timestamps};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Permissions};
use std::io::{self, Read};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};
use tar::{Archive, EntryType, Header};

/// How long a path may be, and a header that gives one, in bytes.
const LONGEST: u64 = 64 * 1024;

/// How much is kept of folders until all is unpacked, in bytes: enough for half a million of them.
const MOST_FOLDERS: usize = 64 * 1024 * 1024;

/// How a folder is opened.
const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// How much is written at once, in bytes.
const PIECE: usize = 256 * 1024;

/// Unpacks a stream into a folder that is there, and is to be empty: what is there already is an error.
///
/// # Errors
///
/// Those of the stream and of this host, and [`io::ErrorKind::InvalidData`] for what is refused; an
/// error of an entry begins with its name. What had been unpacked by then stays.
pub fn unpack(stream: impl Read, folder: &Path) -> io::Result<()> {
    let root = rustix::fs::open(
        folder,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut unpacker = Unpacker {
        root,
        folders: Vec::new(),
        kept: 0,
        last: None,
        buffer: vec![0; PIECE],
    };
    let mut archive = Archive::new(stream);
    let mut names = Names::default();
    // As they stand, since the library itself would hold a long name of any length.
    for entry in archive.entries()?.raw(true) {
        let mut entry = entry?;
        let header = entry.header().clone();
        match header.entry_type() {
            EntryType::GNULongName => names.path = Some(long_name(&mut entry)?),
            EntryType::GNULongLink => names.link = Some(long_name(&mut entry)?),
            EntryType::XHeader => names.read_pax(&mut entry, &header)?,
            EntryType::XGlobalHeader => {}
            kind => {
                let names = std::mem::take(&mut names);
                let path = match names.path {
                    Some(path) => path,
                    None => header.path_bytes().into_owned(),
                };
                let path = PathBuf::from(OsString::from_vec(path));
                let link = names
                    .link
                    .or_else(|| Some(header.link_name_bytes()?.into_owned()));
                let added = unpacker.add(kind, &path, link, &header, &mut entry);
                added.map_err(|error| {
                    let path = path.to_string_lossy();
                    let path = cut(&path, 200);
                    io::Error::new(error.kind(), format!("{path}: {error}"))
                })?;
            }
        }
    }
    unpacker.finish_folders()
}

/// What the headers before an entry say of it.
#[derive(Debug, Default)]
struct Names {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl Names {
    fn read_pax(&mut self, entry: &mut impl Read, header: &Header) -> io::Result<()> {
        if header.size()? > LONGEST {
            return Err(refused("an extended header is too long"));
        }
        let mut bytes = Vec::new();
        entry.take(LONGEST).read_to_end(&mut bytes)?;
        for record in tar::PaxExtensions::new(&bytes) {
            let record = record?;
            match record.key_bytes() {
                b"path" => self.path = Some(record.value_bytes().to_vec()),
                b"linkpath" => self.link = Some(record.value_bytes().to_vec()),
                // The library has taken the size of the next header by then.
                b"size" => return Err(refused("a size outside of its header")),
                key if key.starts_with(SPARSE) => {
                    return Err(refused("a sparse file of the pax format"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn long_name(entry: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut name = Vec::new();
    entry.take(LONGEST + 1).read_to_end(&mut name)?;
    if name.len() as u64 > LONGEST {
        return Err(refused("a name is too long"));
    }
    while name.last() == Some(&0) {
        name.pop();
    }
    Ok(name)
}

fn refused(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("refused: {why}"))
}

struct Unpacker {
    root: OwnedFd,
    /// Folders with their modes and times: set at the end, since filling them changes the one and
    /// the other could keep us from it.
    folders: Vec<(PathBuf, u32, u64)>,
    /// How many bytes that list takes.
    kept: usize,
    /// The folder that was filled last, most often the next one too.
    last: Option<(PathBuf, OwnedFd)>,
    buffer: Vec<u8>,
}

impl Unpacker {
    fn add(
        &mut self,
        kind: EntryType,
        path: &Path,
        link: Option<Vec<u8>>,
        header: &Header,
        content: &mut impl Read,
    ) -> io::Result<()> {
        let mut names = names_of(path)?;
        let mode = header.mode()? & KEPT_MODE;
        let seconds = header.mtime()?;
        let Some(name) = names.pop() else {
            // `./`, the folder itself: its mode came with its name.
            return match kind {
                EntryType::Directory => Ok(()),
                _ => Err(refused("it has no name")),
            };
        };
        match kind {
            EntryType::Directory => {
                names.push(name);
                self.folder(&names)?;
                let path: PathBuf = names.iter().collect();
                self.kept += path.as_os_str().len() + size_of::<(PathBuf, u32, u64)>();
                if self.kept > MOST_FOLDERS {
                    return Err(refused("there are too many folders"));
                }
                self.folders.push((path, mode, seconds));
                Ok(())
            }
            EntryType::Regular | EntryType::Continuous => {
                let folder = self.folder(&names)?;
                let file = self.file(&folder, name, content)?;
                rustix::fs::futimens(&file, &times(seconds))?;
                file.set_permissions(Permissions::from_mode(mode))
            }
            EntryType::Symlink => {
                let folder = self.folder(&names)?;
                let target = link.ok_or_else(|| refused("a link to nothing"))?;
                rustix::fs::symlinkat(OsStr::from_bytes(&target), &folder, name)?;
                Ok(())
            }
            EntryType::Link => Err(refused("a hard link")),
            _ => Err(refused("neither a file, a folder nor a symbolic link")),
        }
    }

    /// The folder of that path, which is made where it is not there.
    fn folder(&mut self, names: &[&OsStr]) -> io::Result<OwnedFd> {
        let path: PathBuf = names.iter().collect();
        if let Some((last, folder)) = &self.last
            && *last == path
        {
            return folder.as_fd().try_clone_to_owned();
        }
        let folder = self.walk(names)?;
        self.last = Some((path, folder.as_fd().try_clone_to_owned()?));
        Ok(folder)
    }

    fn walk(&self, names: &[&OsStr]) -> io::Result<OwnedFd> {
        let (mut folder, rest) = self.nearest(names)?;
        for name in rest {
            match rustix::fs::mkdirat(&folder, *name, Mode::RWXU) {
                Err(Errno::EXIST) | Ok(()) => {}
                Err(error) => return Err(error.into()),
            }
            folder = match rustix::fs::openat(&folder, *name, FOLDER, Mode::empty()) {
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    return Err(refused("its path leads through what is no folder"));
                }
                opened => opened?,
            };
        }
        Ok(folder)
    }

    /// The deepest folder on the way that is there, and the names below it.
    ///
    /// What is there takes one call, however deep it lies: see openat2(2). It does not say what is in
    /// the way, and fails where a path is too long for one call, or where a kernel or a container
    /// does not have it; then all is walked name by name.
    fn nearest<'n, 'o>(&self, names: &'n [&'o OsStr]) -> io::Result<(OwnedFd, &'n [&'o OsStr])> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let ways = (1..=names.len()).rev();
        for (above, below) in ways.filter_map(|at| names.split_at_checked(at)) {
            let path: PathBuf = above.iter().collect();
            match rustix::fs::openat2(&self.root, path, FOLDER, Mode::empty(), resolve) {
                Ok(folder) => return Ok((folder, below)),
                Err(Errno::NOENT) => {}
                Err(_) => break,
            }
        }
        Ok((self.root.as_fd().try_clone_to_owned()?, names))
    }

    fn file(
        &mut self,
        folder: &OwnedFd,
        name: &OsStr,
        content: &mut impl Read,
    ) -> io::Result<File> {
        // Only where nothing is, not even a link.
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(
            folder,
            name,
            flags | OFlags::CLOEXEC,
            Mode::RUSR | Mode::WUSR,
        )?;
        let file = File::from(file);
        let mut written = Sparse::default();
        loop {
            let count = content.read(&mut self.buffer)?;
            let Some(bytes) = self.buffer.get(..count).filter(|bytes| !bytes.is_empty()) else {
                break;
            };
            written.write(&file, bytes)?;
        }
        written.finish(&file)?;
        Ok(file)
    }

    /// The deepest first: a folder's mode could keep us from its own folders.
    fn finish_folders(mut self) -> io::Result<()> {
        let mut folders = std::mem::take(&mut self.folders);
        folders.sort_by_key(|(path, ..)| std::cmp::Reverse(path.components().count()));
        for (path, mode, seconds) in folders {
            let names: Vec<_> = path.iter().collect();
            let folder = self.walk(&names)?;
            rustix::fs::futimens(&folder, &times(seconds))?;
            rustix::fs::fchmod(&folder, Mode::from_raw_mode(mode))?;
        }
        Ok(())
    }
}

/// When it was last written to, in seconds since 1970, for both of its times.
fn times(seconds: u64) -> Timestamps {
    let time = Timespec {
        tv_sec: i64::try_from(seconds).unwrap_or(i64::MAX),
        tv_nsec: 0,
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// The names that a path is made of, if it leads nowhere but down.
fn names_of(path: &Path) -> io::Result<Vec<&OsStr>> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::CurDir => {}
            Component::ParentDir => return Err(refused("its path leads outside, by `..`")),
            Component::RootDir | Component::Prefix(_) => {
                return Err(refused("its path is absolute"));
            }
        }
    }
    if names.len() > MAX_ARCHIVE_DEPTH {
        return Err(refused(&format!(
            "it lies {} folders deep, and no more than {MAX_ARCHIVE_DEPTH} are unpacked",
            names.len()
        )));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stream of entries: what they are, their paths, and what they link to.
    fn stream(entries: &[(EntryType, &str, &str)]) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for (kind, path, link) in entries {
            let mut header = Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o755);
            header.set_size(0);
            if *kind == EntryType::Symlink {
                archive.append_link(&mut header, path, link).unwrap();
            } else {
                archive.append_data(&mut header, path, io::empty()).unwrap();
            }
        }
        archive.into_inner().unwrap()
    }

    #[test]
    fn what_is_in_the_way_is_refused_and_what_is_missing_is_made() {
        use EntryType::{Directory, Regular, Symlink};
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        std::fs::create_dir_all(outside.join("there")).unwrap();
        let to = outside.to_str().unwrap();
        for (number, way, below) in [
            (0, (Symlink, "way", to), "way/new"),
            (1, (Symlink, "way", to), "way/there/new"),
            (2, (Symlink, "a/b/way", to), "a/b/way/there/new"),
            (3, (Symlink, "way", "."), "way/new"),
            (4, (Regular, "a/way", ""), "a/way/new"),
        ] {
            let into = dir.path().join(format!("into-{number}"));
            std::fs::create_dir(&into).unwrap();
            for kind in [Regular, Directory] {
                let below = format!("{below}{}", if kind == Directory { "/x" } else { "" });
                let error = unpack(&*stream(&[way, (kind, &below, "")]), &into).unwrap_err();
                let message = error.to_string();
                assert!(message.contains("through what is no folder"), "{message}");
                std::fs::remove_dir_all(&into).unwrap();
                std::fs::create_dir(&into).unwrap();
            }
        }
        assert_eq!(std::fs::read_dir(outside.join("there")).unwrap().count(), 0);
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
        // Longer than a path that the kernel takes at once, with a second one beside it.
        let deep = vec!["n".repeat(200); 40].join("/");
        let into = dir.path().join("deep");
        std::fs::create_dir(&into).unwrap();
        let (one, other) = (format!("{deep}/one"), format!("{deep}/new/other"));
        unpack(
            &*stream(&[(Regular, &one, ""), (Regular, &other, "")]),
            &into,
        )
        .unwrap();
        let mut names: Vec<_> = names_within(&into);
        names.sort();
        assert_eq!(names, ["new", "one", "other"]);
    }

    /// The names of what is in a folder's folders, but for those of 200 letters, by descriptor since
    /// the paths are too long.
    fn names_within(folder: &Path) -> Vec<String> {
        let mut names = Vec::new();
        let mut open = vec![OwnedFd::from(File::open(folder).unwrap())];
        while let Some(folder) = open.pop() {
            for entry in rustix::fs::Dir::read_from(&folder).unwrap() {
                let entry = entry.unwrap();
                let name = entry.file_name().to_str().unwrap();
                if name.starts_with('.') {
                    continue;
                }
                if name.len() < 200 {
                    names.push(name.to_owned());
                }
                if entry.file_type().is_dir() {
                    let inside = rustix::fs::openat(&folder, name, FOLDER, Mode::empty());
                    open.push(inside.unwrap());
                }
            }
        }
        names
    }

    #[test]
    fn a_sparse_file_of_the_pax_format_is_refused() {
        let into = tempfile::tempdir().unwrap();
        let mut stream = Vec::new();
        let mut archive = tar::Builder::new(&mut stream);
        let records = [("GNU.sparse.major", b"1".as_slice())];
        archive.append_pax_extensions(records).unwrap();
        let mut header = Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(0);
        let path = "GNUSparseFile.0/disk";
        archive.append_data(&mut header, path, io::empty()).unwrap();
        drop(archive);
        let error = unpack(&*stream, into.path()).unwrap_err().to_string();
        assert!(error.contains("a sparse file"), "{error}");
    }

    /// Folders whose names are as long as they may be.
    #[test]
    fn what_is_kept_of_folders_is_bounded() {
        let into = tempfile::tempdir().unwrap();
        let above = vec!["n".repeat(250); 240].join("/");
        let mut stream = Vec::new();
        let mut archive = tar::Builder::new(&mut stream);
        for number in 0..1200 {
            let mut header = Header::new_gnu();
            header.set_entry_type(EntryType::Directory);
            header.set_mode(0o755);
            header.set_size(0);
            let path = format!("{above}/{number}");
            archive.append_data(&mut header, path, io::empty()).unwrap();
        }
        drop(archive);
        let error = unpack(&*stream, into.path()).unwrap_err().to_string();
        assert!(error.contains("too many folders"), "{error}");
    }
}
