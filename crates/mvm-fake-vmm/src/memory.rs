//! The file of a guest's memory, behind the piece of it that has what the guest remembers.
#![expect(unsafe_code, reason = "mappings, of which nothing is read or written")]

use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use std::ffi::c_void;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::ptr;

/// How many MiB of the guest's memory are in use, in a file in the VM's folder. All of the memory is
/// written then, zeros too, as the real VMM writes it.
const USED: &str = "memory-used";

/// What is used of the memory lies in pieces of that size, in bytes, all over it.
const PIECE: usize = 64 << 10;

/// Whether it matters what is in use.
pub(super) fn is_measured() -> bool {
    Path::new(USED).exists()
}

/// A guest's memory in this process's address space, of which nothing is touched.
pub(super) struct Mapped {
    address: *mut c_void,
    length: usize,
}

impl Mapped {
    /// One that was all zeros.
    pub(super) fn empty(bytes: u64) -> Self {
        let length = usize::try_from(bytes).expect("a guest's memory");
        // SAFETY: a new mapping, of which nobody makes a reference.
        let address = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        };
        let address = address.expect("room for a guest's memory");
        Self { address, length }
    }

    /// One of a file, whose changes are not the file's.
    pub(super) fn of(file: &File) -> Result<Self, String> {
        let bytes = file.metadata().map_err(|e| e.to_string())?.len();
        let length = usize::try_from(bytes).map_err(|e| e.to_string())?;
        // SAFETY: a new mapping, of which nobody makes a reference.
        let address = unsafe {
            mmap(
                ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
                file,
                0,
            )
        };
        let address = address.map_err(|e| format!("Error creating guest memory from file: {e}"))?;
        Ok(Self { address, length })
    }
}

// SAFETY: it is an address that nobody reads or writes.
unsafe impl Send for Mapped {}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: nobody has made a reference to any of it.
        let _ = unsafe { munmap(self.address, self.length) };
    }
}

/// Writes a memory of that size that begins so. Of a diff what is in use is written, into what the file
/// has if it is of that length; else all of it, zeros too, unless it does not matter what is in use.
pub(super) fn write(path: &Path, bytes: u64, begin: &[u8], is_diff: bool) -> io::Result<()> {
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    if file.metadata()?.len() != bytes {
        file.set_len(0)?;
    }
    file.set_len(bytes)?;
    // A page of it.
    let mut first = vec![0; 4096];
    first
        .get_mut(..begin.len())
        .expect("what a guest remembers")
        .copy_from_slice(begin);
    file.write_all_at(&first, 0)?;
    let Ok(used) = fs::read_to_string(USED) else {
        return Ok(());
    };
    let used = used.trim().parse::<u64>().map_err(io::Error::other)? << 20;
    write_pieces(&file, bytes, used, is_diff)
}

/// Writes a memory of that size behind its first piece, of which that much is other than zeros.
fn write_pieces(memory: &File, bytes: u64, used: u64, is_diff: bool) -> io::Result<()> {
    let zeros = vec![0; PIECE];
    let mut piece = zeros.clone();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let (pieces, used) = (bytes / PIECE as u64, used / PIECE as u64);
    for number in 1..pieces {
        let is_used = number * used / pieces != (number - 1) * used / pieces;
        if is_used {
            for word in piece.chunks_exact_mut(8) {
                // xorshift: no two pieces are alike, and no word is 0.
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                word.copy_from_slice(&random.to_ne_bytes());
            }
        }
        if is_used || !is_diff {
            let written = if is_used { &piece } else { &zeros };
            memory.write_all_at(written, number * PIECE as u64)?;
        }
    }
    Ok(())
}
