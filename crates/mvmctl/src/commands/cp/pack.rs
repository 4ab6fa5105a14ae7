//! A folder of this host as a tar stream.

use crate::stdio::{PIECE, Pieces};
use std::fs::{File, Metadata};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use tar::{Builder, EntryType, Header};
use tokio::sync::mpsc;

/// Packs a folder's entries, sorted by name, with paths relative to it.
pub(super) fn pack(folder: PathBuf) -> io::Result<Pieces> {
    let (pieces, received) = mpsc::channel(2);
    let failed = pieces.clone();
    let packing = move || {
        let stream = BufWriter::with_capacity(PIECE, Channel(pieces));
        if let Err(error) = write(&folder, stream) {
            let _ = failed.blocking_send(Err(error));
        }
    };
    std::thread::Builder::new()
        .name("tar".into())
        .spawn(packing)?;
    Ok(received)
}

/// The writing end of a channel of pieces.
struct Channel(mpsc::Sender<io::Result<Vec<u8>>>);

impl Write for Channel {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bytes = bytes.get(..PIECE).unwrap_or(bytes);
        match self.0.blocking_send(Ok(bytes.to_vec())) {
            Ok(()) => Ok(bytes.len()),
            Err(_) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write(folder: &Path, stream: impl Write) -> io::Result<()> {
    let mut archive = Builder::new(stream);
    add_entries(&mut archive, folder, Path::new(""))?;
    archive.into_inner()?.flush()
}

fn add_entries(archive: &mut Builder<impl Write>, folder: &Path, inside: &Path) -> io::Result<()> {
    let about = |path: &Path| {
        let path = path.display().to_string();
        move |error: io::Error| io::Error::new(error.kind(), format!("{path}: {error}"))
    };
    let here = folder.join(inside);
    let mut entries = std::fs::read_dir(&here)
        .and_then(Iterator::collect::<io::Result<Vec<_>>>)
        .map_err(about(&here))?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let inside = inside.join(entry.file_name());
        let added = entry
            .metadata()
            .and_then(|metadata| add(archive, &path, &inside, &metadata));
        added.map_err(about(&path))?;
        if entry.file_type().map_err(about(&path))?.is_dir() {
            add_entries(archive, folder, &inside)?;
        }
    }
    Ok(())
}

fn add(
    archive: &mut Builder<impl Write>,
    path: &Path,
    inside: &Path,
    metadata: &Metadata,
) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_mode(metadata.permissions().mode() & 0o7777);
    header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
    // Whose it is there is the agent's matter.
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    if metadata.is_dir() {
        header.set_entry_type(EntryType::Directory);
        archive.append_data(&mut header, inside, io::empty())
    } else if metadata.is_symlink() {
        header.set_entry_type(EntryType::Symlink);
        archive.append_link(&mut header, inside, std::fs::read_link(path)?)
    } else if metadata.is_file() {
        let file = File::open(path)?;
        header.set_entry_type(EntryType::Regular);
        header.set_size(metadata.len());
        archive.append_data(
            &mut header,
            inside,
            Exactly {
                left: metadata.len(),
                file,
            },
        )
    } else {
        Err(io::Error::other(
            "neither a file, a folder nor a symbolic link, and nothing of the folder was copied",
        ))
    }
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
