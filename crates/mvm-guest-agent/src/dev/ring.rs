//! The end of a job's output: its last [`KEPT_OUTPUT`] bytes, and which channel each came on.

use mvm_protocol::dev::jobs::KEPT_OUTPUT;
use std::collections::VecDeque;

/// How many changes of channel are remembered at most: output that alternates byte by byte would
/// otherwise cost more than the bytes themselves.
const RUNS: usize = 16 * 1024;

/// Bytes by their place in all that was ever printed.
#[derive(Debug, Default)]
pub(super) struct Ring {
    bytes: VecDeque<u8>,
    runs: VecDeque<Run>,
    /// The place of the first byte that is kept.
    start: u64,
}

/// Bytes on one channel up to a place.
#[derive(Debug)]
struct Run {
    channel: u8,
    end: u64,
}

impl Ring {
    /// The place of the first byte that is kept.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// How much was ever printed.
    pub(super) fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    /// Adds bytes, and forgets the oldest beyond what is kept.
    pub(super) fn push(&mut self, channel: u8, bytes: &[u8]) {
        let end = self.end() + bytes.len() as u64;
        let kept = bytes.get(bytes.len().saturating_sub(KEPT_OUTPUT)..);
        let kept = kept.unwrap_or_default();
        let over = (self.bytes.len() + kept.len()).saturating_sub(KEPT_OUTPUT);
        self.bytes.drain(..over);
        self.bytes.extend(kept);
        self.start = end - self.bytes.len() as u64;
        match self.runs.back_mut() {
            Some(run) if run.channel == channel => run.end = end,
            _ => self.runs.push_back(Run { channel, end }),
        }
        while self.runs.front().is_some_and(|run| run.end <= self.start) {
            self.runs.pop_front();
        }
        if self.runs.len() > RUNS
            && let Some(run) = self.runs.pop_front()
        {
            let over = usize::try_from(run.end - self.start).unwrap_or(usize::MAX);
            self.bytes.drain(..over.min(self.bytes.len()));
            self.start = run.end;
        }
    }

    /// At most `limit` bytes from a place on that are on one channel; nothing if there are none yet.
    /// The place has to be kept.
    pub(super) fn at(&self, place: u64, limit: usize) -> Option<(u8, Vec<u8>)> {
        let at = self.runs.partition_point(|run| run.end <= place);
        let run = self.runs.get(at)?;
        let from = usize::try_from(place.checked_sub(self.start)?).ok()?;
        let to = usize::try_from(run.end - self.start).ok()?;
        let bytes = self.bytes.range(from..to.min(from + limit));
        Some((run.channel, bytes.copied().collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All that is kept, with the place of its first byte.
    fn read(ring: &Ring, limit: usize) -> (u64, Vec<(u8, u8)>) {
        let mut place = ring.start();
        let mut all = Vec::new();
        while let Some((channel, bytes)) = ring.at(place, limit) {
            assert!(!bytes.is_empty() && bytes.len() <= limit);
            place += bytes.len() as u64;
            all.extend(bytes.into_iter().map(|byte| (channel, byte)));
        }
        assert_eq!(place, ring.end());
        (ring.start(), all)
    }

    #[test]
    fn the_tail_is_kept_and_the_rest_counted() {
        let mut ring = Ring::default();
        assert_eq!(ring.at(0, 10), None);
        ring.push(1, &vec![b'a'; KEPT_OUTPUT]);
        ring.push(2, b"bb");
        assert_eq!((ring.start(), ring.end()), (2, KEPT_OUTPUT as u64 + 2));
        let (_, all) = read(&ring, 1000);
        assert_eq!(all.len(), KEPT_OUTPUT);
        assert_eq!(all.last(), Some(&(2, b'b')));
        ring.push(1, &vec![b'c'; 3 * KEPT_OUTPUT]);
        assert_eq!(ring.end(), 4 * KEPT_OUTPUT as u64 + 2);
        assert!(read(&ring, 100_000).1.iter().all(|it| *it == (1, b'c')));
    }

    #[test]
    fn alternating_single_bytes_stay_bounded() {
        let mut ring = Ring::default();
        for n in 0..100_000_u32 {
            ring.push(1 + u8::try_from(n % 2).unwrap(), b"x");
        }
        assert!(ring.runs.len() <= RUNS);
        assert_eq!(read(&ring, 10).1.len(), RUNS);
        assert_eq!(ring.end(), 100_000);
    }

    proptest! {
        #[test]
        fn the_ring_keeps_the_end_of_what_was_pushed(
            pushed in prop::collection::vec((1_u8..3, prop::collection::vec(any::<u8>(), 0..9)), 0..40),
            limit in 1_usize..20,
        ) {
            let mut ring = Ring::default();
            let mut all = Vec::new();
            for (channel, bytes) in pushed {
                ring.push(channel, &bytes);
                all.extend(bytes.into_iter().map(|byte| (channel, byte)));
            }
            prop_assert_eq!(read(&ring, limit), (0, all));
        }
    }
}
