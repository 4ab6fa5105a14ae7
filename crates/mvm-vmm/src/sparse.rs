//! Files with holes, such as a guest's memory.

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use std::fs::File;
use std::io;

/// What becomes a hole if it is all zeros, in bytes, and the unit of digests: small enough that what a guest
/// uses here and there costs little more.
pub(crate) const BLOCK: usize = 16 << 10;

/// The data at `at` or behind it: from, until. None if all the rest is a hole. A file system without holes
/// has data everywhere, without an end.
pub(crate) fn next_extent(file: &File, at: u64) -> io::Result<Option<(u64, u64)>> {
    let Some(from) = seek_to(file, SeekFrom::Data(at))? else {
        return Ok(None);
    };
    let until = seek_to(file, SeekFrom::Hole(from))?.unwrap_or(u64::MAX);
    Ok(Some((from, until)))
}

/// A file system without holes says so, and has data everywhere.
fn seek_to(file: &File, to: SeekFrom) -> io::Result<Option<u64>> {
    match (seek(file, to), to) {
        (Ok(at), _) => Ok(Some(at)),
        (Err(Errno::INVAL | Errno::OPNOTSUPP), SeekFrom::Data(from)) => Ok(Some(from)),
        (Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP), _) => Ok(None),
        (Err(errno), _) => Err(errno.into()),
    }
}

/// Whether a block, of [`BLOCK`] bytes at most, is all zeros.
pub(crate) fn is_zero(block: &[u8]) -> bool {
    const ZEROS: [u8; BLOCK] = [0; BLOCK];
    ZEROS.get(..block.len()) == Some(block)
}
