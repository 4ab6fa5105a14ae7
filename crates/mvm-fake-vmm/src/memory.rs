//! The file of a guest's memory, behind the piece of it that has what the guest remembers.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// How many MiB of the guest's memory are in use, in a file in the VM's folder. All of the memory is
/// written then, zeros too, as the real VMM writes it.
const USED: &str = "memory-used";

/// What is used of the memory lies in pieces of that size, in bytes, all over it.
const PIECE: usize = 64 << 10;

/// Whether it matters what is in use.
pub(super) fn is_measured() -> bool {
    Path::new(USED).exists()
}

/// Has the file be as long as the memory is large. Where it does not matter what is in use, the rest
/// of it is a hole.
pub(super) fn write(memory: &File, bytes: u64) -> io::Result<()> {
    match fs::read_to_string(USED) {
        Ok(used) => {
            let used = used.trim().parse::<u64>();
            write_all_of_it(memory, bytes, used.map_err(io::Error::other)? << 20)
        }
        Err(_) => memory.set_len(bytes),
    }
}

/// Writes a memory of that size behind its first piece, of which that much is other than zeros.
fn write_all_of_it(memory: &File, bytes: u64, used: u64) -> io::Result<()> {
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
        memory.write_all_at(if is_used { &piece } else { &zeros }, number * PIECE as u64)?;
    }
    memory.set_len(bytes)
}
