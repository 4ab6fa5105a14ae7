//! Writing a file with holes where it has nothing but zeros, so that a disk image does not become as
//! large as it claims to be.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

/// A filesystem's block, in bytes: what a hole is made of.
const BLOCK: usize = 4096;

/// What has been written to a file: zeros are left out.
#[derive(Debug, Default)]
pub struct Sparse {
    length: u64,
}

impl Sparse {
    /// Writes at the end of what was written.
    pub fn write(&mut self, file: &File, mut bytes: &[u8]) -> io::Result<()> {
        const ZEROS: [u8; BLOCK] = [0; BLOCK];
        // What is not zero and not written yet.
        let mut run: &[u8] = &[];
        let mut all = bytes;
        while !bytes.is_empty() {
            let into_block = usize::try_from(self.length % BLOCK as u64).unwrap_or_default();
            let (block, rest) = bytes.split_at(bytes.len().min(BLOCK - into_block));
            bytes = rest;
            self.length += block.len() as u64;
            if ZEROS.starts_with(block) {
                let before = self.length - block.len() as u64 - run.len() as u64;
                file.write_all_at(run, before)?;
                run = &[];
                all = rest;
            } else {
                run = all.get(..run.len() + block.len()).unwrap_or_default();
            }
        }
        file.write_all_at(run, self.length - run.len() as u64)
    }

    /// Makes the file as long as what was written.
    pub fn finish(&self, file: &File) -> io::Result<()> {
        file.set_len(self.length)
    }
}
