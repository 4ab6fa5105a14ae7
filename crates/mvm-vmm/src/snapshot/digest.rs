//! Digests of files that are mostly holes, such as a guest's memory, and digging those holes.
//!
//! # The sparse digest
//!
//! A file is taken as blocks of [`BLOCK`] bytes, of which the last may be shorter. It is the SHA-256
//! over, for each block that has a byte other than 0, in order: the block's number in 8 bytes,
//! big-endian, and the SHA-256 of its content. So a block of zeros and a hole are the same, wherever
//! the file system has its holes, and what is a hole is never read. The length is not part of it: the
//! manifest has that as well.

use crate::deadline::Deadline;
use crate::sparse::{BLOCK, is_zero, next_extent};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use std::cell::Cell;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

/// What one thread works on at a time: a multiple of [`BLOCK`].
const SEGMENT: u64 = 8 << 20;

/// By so many blocks is guessed what a file has.
const SAMPLES: u64 = 256;

/// More threads do not make memory faster.
const THREADS: usize = 4;

/// The SHA-256 of a file of that length, in hexadecimal. One that grows meanwhile is read no further, and
/// none when the time is up.
pub(super) fn sha256(
    file: &File,
    length: u64,
    deadline: Option<Deadline<'_>>,
) -> io::Result<String> {
    let mut file = file.take(length);
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        check(deadline)?;
        match file.read(&mut buffer)? {
            0 => return Ok(hexadecimal(&hash.finalize())),
            count => hash.update(buffer.get(..count).unwrap_or_default()),
        }
    }
}

/// The sparse digest of a file of that length, in hexadecimal. No further segment is read when the time
/// is up.
pub(super) fn sparse_sha256(
    file: &File,
    length: u64,
    deadline: Option<Deadline<'_>>,
) -> io::Result<String> {
    let mut segments = each_segment(file, length, |blocks| {
        check(deadline)?;
        let mut hashes = Vec::new();
        blocks.each(|number, block| {
            if !is_zero(block) {
                hashes.extend(number.to_be_bytes());
                hashes.extend(Sha256::digest(block));
            }
            Ok(())
        })?;
        Ok(hashes)
    })?;
    segments.sort_unstable_by_key(|(segment, _)| *segment);
    let mut hash = Sha256::new();
    for (_, hashes) in segments {
        hash.update(hashes);
    }
    Ok(hexadecimal(&hash.finalize()))
}

/// An error when the time is up, which the deadline itself says better.
fn check(deadline: Option<Deadline<'_>>) -> io::Result<()> {
    if deadline.is_some_and(|deadline| deadline.is_over()) {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok(())
}

/// Whether a file is mostly zeros that are no holes, going by some of its blocks.
pub(super) fn is_mostly_zeros(file: &File, length: u64) -> io::Result<bool> {
    let mut buffer = vec![0; BLOCK];
    let (mut zeros, mut others) = (0, 0);
    for number in 0..SAMPLES {
        let at = length / SAMPLES * number;
        // A whole block: half of one may be zeros in what was copied without any.
        let at = at - at % BLOCK as u64;
        if next_extent(file, at)?.is_none_or(|(from, _)| from != at) {
            continue;
        }
        let read = file.read_at(&mut buffer, at)?;
        if is_zero(buffer.get(..read).unwrap_or_default()) {
            zeros += 1;
        } else {
            others += 1;
        }
    }
    Ok(zeros > others)
}

/// Copies a file of that length into an empty one, without its zeros.
pub(crate) fn copy(file: &File, length: u64, into: &File) -> io::Result<()> {
    into.set_len(length)?;
    each_segment(file, length, |blocks| {
        blocks.each(|number, block| {
            if is_zero(block) {
                return Ok(());
            }
            into.write_all_at(block, number * BLOCK as u64)
        })
    })?;
    Ok(())
}

/// Makes a hole of each block of zeros, where the file system has holes. The file has to be open for
/// writing; its content and length stay.
pub(super) fn dig(file: &File, length: u64) -> io::Result<()> {
    let dug = each_segment(file, length, |blocks| {
        let mut zeros: Option<(u64, u64)> = None;
        blocks.each(|number, block| {
            let (start, bytes) = (number * BLOCK as u64, block.len() as u64);
            match &mut zeros {
                Some((_, end)) if is_zero(block) && *end == start => *end += bytes,
                _ => {
                    punch(file, zeros.take())?;
                    zeros = is_zero(block).then_some((start, start + bytes));
                }
            }
            Ok(())
        })?;
        punch(file, zeros)
    });
    match dug {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::OPNOTSUPP) => Ok(()),
        dug => dug.map(drop),
    }
}

fn punch(file: &File, zeros: Option<(u64, u64)>) -> io::Result<()> {
    let Some((start, end)) = zeros else {
        return Ok(());
    };
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(fallocate(file, hole, start, end - start)?)
}

/// A part of a file.
struct Blocks<'a> {
    file: &'a File,
    start: u64,
    end: u64,
    /// Data that was found before: from, until. To look for its end anew in each part of a file that has
    /// not been written to the disk yet is to have the kernel look at all of its pages each time.
    known: &'a Cell<(u64, u64)>,
}

impl Blocks<'_> {
    /// Calls with each block's number and content. Blocks in holes are left out.
    fn each(&self, mut with: impl FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut buffer = vec![0; BLOCK];
        let mut at = self.start;
        while at < self.end {
            let Some((data, hole)) = self.next_extent(at)? else {
                return Ok(());
            };
            at = at.max(data - data % BLOCK as u64);
            while at < hole.min(self.end) {
                let bytes = (self.end - at).min(BLOCK as u64);
                let bytes = usize::try_from(bytes).unwrap_or(BLOCK);
                let block = buffer.get_mut(..bytes).unwrap_or_default();
                self.file.read_exact_at(block, at)?;
                with(at / BLOCK as u64, block)?;
                at += bytes as u64;
            }
        }
        Ok(())
    }

    /// The next data, as the file's [`next_extent`] is.
    fn next_extent(&self, at: u64) -> io::Result<Option<(u64, u64)>> {
        let (from, until) = self.known.get();
        if from <= at && at < until {
            return Ok(Some((at, until)));
        }
        let found = next_extent(self.file, at)?;
        if let Some(found) = found {
            self.known.set(found);
        }
        Ok(found)
    }
}

/// Calls with each segment, on several threads, and gives what came of each with its number.
fn each_segment<T: Send>(
    file: &File,
    length: u64,
    work: impl Fn(Blocks<'_>) -> io::Result<T> + Sync,
) -> io::Result<Vec<(u64, T)>> {
    let segments = length.div_ceil(SEGMENT);
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let threads = threads
        .min(THREADS)
        .min(usize::try_from(segments).unwrap_or(THREADS));
    let next = AtomicU64::new(0);
    let results = Mutex::new(Ok(Vec::new()));
    let worker = || {
        let known = Cell::new((0, 0));
        loop {
            let segment = next.fetch_add(1, Ordering::Relaxed);
            if segment >= segments {
                return;
            }
            let start = segment * SEGMENT;
            let end = (start + SEGMENT).min(length);
            let known = &known;
            let result = work(Blocks {
                file,
                start,
                end,
                known,
            });
            let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
            match (&mut *results, result) {
                (Ok(done), Ok(result)) => done.push((segment, result)),
                (Ok(_), Err(error)) => *results = Err(error),
                (Err(_), _) => return,
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(worker);
        }
        worker();
    });
    results.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::MetadataExt as _;

    /// The definition, word by word.
    fn defined(content: &[u8]) -> String {
        let mut hash = Sha256::new();
        for (number, block) in (0u64..).zip(content.chunks(BLOCK)) {
            if block.iter().any(|byte| *byte != 0) {
                hash.update(number.to_be_bytes());
                hash.update(Sha256::digest(block));
            }
        }
        hexadecimal(&hash.finalize())
    }

    fn written(content: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(content, 0).unwrap();
        file
    }

    #[test]
    fn a_digest_can_be_computed_by_other_means() {
        // `(printf '\0\0\0\0\0\0\0\1'; printf 'guest' | openssl sha256 -binary) | sha256sum`
        let mut content = vec![0; BLOCK];
        content.extend(b"guest");
        let file = written(&content);
        assert_eq!(
            sparse_sha256(&file, content.len() as u64, None).unwrap(),
            "f4e6567b503371bc89b92bece454d93a9edf3e445cbfc8b9b1eb90641b643687"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn holes_are_zeros_and_digging_changes_no_byte(
            pieces in prop::collection::vec((0u64..(3 * SEGMENT), 1usize..3 * BLOCK, 0u8..2), 0..12),
            length in 1u64..(3 * SEGMENT + 5),
        ) {
            let mut content = vec![0; usize::try_from(length).unwrap()];
            let sparse = tempfile::tempfile().unwrap();
            sparse.set_len(length).unwrap();
            for (at, bytes, byte) in pieces {
                let at = usize::try_from(at).unwrap().min(content.len());
                let end = (at + bytes).min(content.len());
                content[at..end].fill(byte);
                sparse.write_all_at(&content[at..end], at as u64).unwrap();
            }
            let expected = defined(&content);
            prop_assert_eq!(&sparse_sha256(&sparse, length, None).unwrap(), &expected);
            let full = written(&content);
            prop_assert_eq!(&sparse_sha256(&full, length, None).unwrap(), &expected);
            let copied = tempfile::tempfile().unwrap();
            copy(&full, length, &copied).unwrap();
            prop_assert_eq!(&sparse_sha256(&copied, length, None).unwrap(), &expected);
            prop_assert!(!is_mostly_zeros(&copied, length).unwrap());
            prop_assert_eq!(copied.metadata().unwrap().len(), length);
            dig(&full, length).unwrap();
            prop_assert_eq!(&sparse_sha256(&full, length, None).unwrap(), &expected);
            let mut after = vec![1; content.len()];
            full.read_exact_at(&mut after, 0).unwrap();
            prop_assert!(after == content);
            prop_assert_eq!(full.metadata().unwrap().len(), length);
        }
    }

    #[test]
    fn a_file_of_zeros_is_known_and_its_copy_takes_no_room() {
        let length = 2 * SEGMENT;
        let file = written(&vec![0; usize::try_from(length).unwrap()]);
        file.write_all_at(b"x", SEGMENT + 5).unwrap();
        assert!(is_mostly_zeros(&file, length).unwrap());
        let copied = tempfile::tempfile().unwrap();
        copy(&file, length, &copied).unwrap();
        copied.sync_all().unwrap();
        let room = copied.metadata().unwrap().blocks() * 512;
        assert!(room <= 2 * BLOCK as u64, "{room}");
        assert!(!is_mostly_zeros(&copied, length).unwrap());
        let other = written(&vec![7; usize::try_from(length).unwrap()]);
        assert!(!is_mostly_zeros(&other, length).unwrap());
        // Its last block is zeros but for its first part, where it is not looked at if a part is.
        let length = 20_800_512;
        let sparse = tempfile::tempfile().unwrap();
        sparse.set_len(length).unwrap();
        sparse.write_all_at(&vec![1; 32_978], 7_929_647).unwrap();
        let copied = tempfile::tempfile().unwrap();
        copy(&sparse, length, &copied).unwrap();
        assert!(!is_mostly_zeros(&copied, length).unwrap());
    }

    #[test]
    fn zeros_take_no_room_on_the_disk() {
        let length = 2 * SEGMENT;
        let file = written(&vec![0; usize::try_from(length).unwrap()]);
        file.write_all_at(b"x", SEGMENT + 5).unwrap();
        file.sync_all().unwrap();
        dig(&file, length).unwrap();
        let room = file.metadata().unwrap().blocks() * 512;
        assert!(room <= 2 * BLOCK as u64, "{room}");
    }

    #[test]
    fn any_byte_that_is_altered_or_moved_is_seen() {
        let length = SEGMENT + 3 * BLOCK as u64;
        let digest = |alter: &dyn Fn(&File)| {
            let file = tempfile::tempfile().unwrap();
            file.set_len(length).unwrap();
            file.write_all_at(b"guest", SEGMENT).unwrap();
            alter(&file);
            sparse_sha256(&file, length, None).unwrap()
        };
        let write =
            |bytes: &'static [u8], at| move |file: &File| file.write_all_at(bytes, at).unwrap();
        let sound = digest(&|_| ());
        assert_eq!(digest(&write(b"guest", SEGMENT)), sound);
        for altered in [
            digest(&write(b"G", SEGMENT)),
            digest(&write(&[1], length - 1)),
            digest(&write(&[1], 0)),
            digest(&write(&[0; 5], SEGMENT)),
            // The same content, a block later.
            digest(&|file| {
                file.write_all_at(&[0; 5], SEGMENT).unwrap();
                file.write_all_at(b"guest", SEGMENT + BLOCK as u64).unwrap();
            }),
        ] {
            assert_ne!(altered, sound);
        }
    }
}
