//! Files that are read whole, and written whole or not at all.

use crate::Error;
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

/// Opens a regular file. Another kind is refused: opening or reading a FIFO would wait for ever.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::other("it is no regular file"))
    }
}

/// The content of a regular file of at most so many bytes.
pub(crate) fn read_bounded(path: &Path, at_most: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    open_regular(path)?
        .take(at_most + 1)
        .read_to_end(&mut content)?;
    if content.len() as u64 > at_most {
        return Err(io::Error::other(format!(
            "it has more than {at_most} bytes"
        )));
    }
    Ok(content)
}

/// The last bytes of a regular file.
pub(crate) fn read_tail(path: &Path, at_most: u64) -> io::Result<Vec<u8>> {
    let mut file = open_regular(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(at_most)))?;
    let mut content = Vec::new();
    file.take(at_most).read_to_end(&mut content)?;
    Ok(content)
}

/// Writes a file so that a reader sees the old content or the new, never a part.
///
/// # Errors
///
/// [`Error::Io`].
pub fn write_whole(path: &Path, content: &[u8]) -> Result<(), Error> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let write = || {
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(content)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    write().map_err(Error::io("write", path))
}

/// Makes a folder, and those above it, for their owner alone. One that is there is left as it is.
///
/// # Errors
///
/// [`Error::Io`].
pub fn make_private(path: &Path) -> Result<(), Error> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(Error::io("make the folder", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, FileType, mknodat};

    #[test]
    fn what_is_endless_or_huge_hangs_and_fills_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0).unwrap();
        let error = read_bounded(&path, 10).unwrap_err();
        assert!(error.to_string().contains("no regular file"), "{error}");
        assert!(read_bounded(Path::new("/dev/zero"), 10).is_err());
        let sparse = folder.path().join("sparse");
        File::create(&sparse).unwrap().set_len(1 << 40).unwrap();
        let error = read_bounded(&sparse, 10).unwrap_err();
        assert!(error.to_string().contains("more than 10 bytes"), "{error}");
        assert_eq!(read_tail(&sparse, 10).unwrap(), [0; 10]);
    }

    #[test]
    fn a_file_of_just_the_size_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, b"0123456789").unwrap();
        assert_eq!(read_bounded(&path, 10).unwrap(), b"0123456789");
        assert_eq!(read_tail(&path, 3).unwrap(), b"789");
    }
}
