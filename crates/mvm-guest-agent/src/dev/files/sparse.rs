//! Writes a file with holes where it has nothing but zeroes, so that a disk image does not become as
//! large as it claims to be.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

const BLOCK: usize = 4096;

/// How much is looked at together: a multiple of [`BLOCK`].
const PIECE: usize = 64 * BLOCK;

/// Copies all into an empty file, and gives how many bytes that were.
pub(super) fn copy(from: &mut impl Read, to: &File) -> io::Result<u64> {
    let mut buffer = vec![0; PIECE];
    let mut place = 0;
    loop {
        let read = fill(from, &mut buffer)?;
        let piece = buffer.get(..read).unwrap_or_default();
        write(piece, to, place)?;
        place += read as u64;
        if read < PIECE {
            break;
        }
    }
    to.set_len(place)?;
    Ok(place)
}

/// Writes what is not zero, as few times as may be.
fn write(piece: &[u8], to: &File, place: u64) -> io::Result<()> {
    let mut start = 0;
    while start < piece.len() {
        let blocks = || piece.get(start..).unwrap_or_default().chunks(BLOCK);
        let zeroes: usize = blocks().take_while(|it| is_zero(it)).map(<[u8]>::len).sum();
        start += zeroes;
        let blocks = piece.get(start..).unwrap_or_default().chunks(BLOCK);
        let data: usize = blocks.take_while(|it| !is_zero(it)).map(<[u8]>::len).sum();
        let bytes = piece.get(start..start + data).unwrap_or_default();
        to.write_all_at(bytes, place + start as u64)?;
        start += data;
    }
    Ok(())
}

/// By comparison with zeroes, which the C library does a vector at a time.
fn is_zero(block: &[u8]) -> bool {
    const ZEROES: [u8; BLOCK] = [0; BLOCK];
    ZEROES.get(..block.len()) == Some(block)
}

/// Reads until the buffer is full, or there is no more.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest @ [_, ..]) = buffer.get_mut(filled..) {
        match from.read(rest) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(content: &[u8]) -> Vec<u8> {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(copy(&mut &*content, &file).unwrap(), content.len() as u64);
        let mut read = vec![0; content.len() + 1];
        let count = file.read_at(&mut read, 0).unwrap();
        read.truncate(count);
        read
    }

    #[test]
    fn zeroes_are_holes() {
        let file = tempfile::tempfile().unwrap();
        let zeroes = io::repeat(0).take(64 * 1024 * 1024);
        let mut content = zeroes.chain(&b"end"[..]);
        assert_eq!(copy(&mut content, &file).unwrap(), 64 * 1024 * 1024 + 3);
        let blocks = std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap());
        assert!(blocks * 512 < 1024 * 1024, "{blocks} blocks");
        assert_eq!(written(&[]), [0; 0]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn written_files_read_back_the_same(
            runs in prop::collection::vec((0_u8..2, 0_usize..3 * BLOCK), 0..60),
        ) {
            let content: Vec<u8> = runs.iter().flat_map(|(byte, count)| vec![*byte; *count]).collect();
            prop_assert_eq!(written(&content), content);
        }
    }
}
