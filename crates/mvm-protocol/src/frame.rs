//! Frames: a 4-byte big-endian header and a body.
//!
//! Header bit 31 clear: the body is one JSON object. Bit 31 set: the body is raw, its first byte a
//! channel. The lower 31 bits give the body's length, channel byte included.

use crate::MAX_BODY;
use thiserror::Error;

/// Length of a frame's header in bytes.
pub const HEADER: usize = 4;

const RAW: u32 = 1 << 31;

/// What a connection on which nothing is pending keeps for the next frame, in bytes: more than a
/// heartbeat takes. Ten thousand connections are kept by whoever watches as many guests.
const SPARE: usize = 512;

/// One frame as it came off the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// The bytes of a JSON object, not yet looked at.
    Json(Vec<u8>),
    /// Raw bytes on a channel (0 stdin, 1 stdout, 2 stderr, 3 file content).
    Data {
        /// Which stream the bytes belong to.
        channel: u8,
        /// The bytes, possibly none.
        bytes: Vec<u8>,
    },
    /// A raw frame without even a channel byte. Its sender is wrong, the stream is still in step.
    EmptyData,
}

/// What puts a stream of frames out of step for good: the connection has to be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FrameError {
    /// The header announces more than [`MAX_BODY`] bytes.
    #[error("a frame of {announced} bytes; at most {MAX_BODY} are allowed")]
    TooLarge {
        /// The body's length that the header gives.
        announced: u32,
    },
}

/// Takes bytes in pieces of any size and gives whole frames. Holds at most one frame's bytes more
/// than the largest piece pushed, and never allocates for bytes that were only announced.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    start: usize,
}

impl Decoder {
    /// Adds bytes that were read.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame, or `None` if it takes more bytes.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let pending = self.bytes.get(self.start..).unwrap_or_default();
        let Some((header, rest)) = pending.split_first_chunk::<HEADER>() else {
            self.release();
            return Ok(None);
        };
        let header = u32::from_be_bytes(*header);
        let announced = header & !RAW;
        let length = announced as usize;
        if length > MAX_BODY {
            return Err(FrameError::TooLarge { announced });
        }
        let Some(body) = rest.get(..length) else {
            return Ok(None);
        };
        let frame = if header & RAW == 0 {
            Frame::Json(body.to_vec())
        } else {
            match body.split_first() {
                Some((channel, bytes)) => Frame::Data {
                    channel: *channel,
                    bytes: bytes.to_vec(),
                },
                None => Frame::EmptyData,
            }
        };
        self.start += HEADER + length;
        self.release();
        Ok(Some(frame))
    }

    /// Whether a frame has begun and is not whole: the peer owes the rest of it.
    pub fn is_mid_frame(&self) -> bool {
        self.bytes.len() > self.start
    }

    /// Gives memory back when nothing is pending, so that one large frame is not paid for by a
    /// connection that stays open.
    fn release(&mut self) {
        if self.start == self.bytes.len() {
            self.start = 0;
            self.bytes.clear();
            self.bytes.shrink_to(SPARE);
        }
    }
}

/// A JSON body with its header.
///
/// A body over [`MAX_BODY`] is a fault of the caller and gives `TooLarge`.
pub fn encode_json(body: &[u8]) -> Result<Vec<u8>, FrameError> {
    encode(0, &[], body)
}

/// Raw bytes for a channel with their header: at most [`MAX_BODY`]` - 1` of them.
pub fn encode_data(channel: u8, bytes: &[u8]) -> Result<Vec<u8>, FrameError> {
    encode(RAW, &[channel], bytes)
}

/// The header and channel of a data frame, for who has its bytes elsewhere: at most
/// [`MAX_BODY`]` - 1` of them.
pub fn data_header(channel: u8, bytes: usize) -> [u8; HEADER + 1] {
    let announced = u32::try_from(bytes.saturating_add(1)).unwrap_or(!RAW);
    let [a, b, c, d] = (RAW | announced).to_be_bytes();
    [a, b, c, d, channel]
}

fn encode(flag: u32, prefix: &[u8], bytes: &[u8]) -> Result<Vec<u8>, FrameError> {
    let length = prefix.len() + bytes.len();
    let announced = u32::try_from(length).unwrap_or(u32::MAX);
    if length > MAX_BODY {
        return Err(FrameError::TooLarge { announced });
    }
    let mut frame = Vec::with_capacity(HEADER + length);
    frame.extend_from_slice(&(flag | announced).to_be_bytes());
    frame.extend_from_slice(prefix);
    frame.extend_from_slice(bytes);
    Ok(frame)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frames(decoder: &mut Decoder) -> Vec<Frame> {
        std::iter::from_fn(|| decoder.next_frame().unwrap()).collect()
    }

    #[test]
    fn too_large_is_told_before_its_bytes_come() {
        let mut decoder = Decoder::default();
        decoder.push(&[0x00, 0x04, 0x00, 0x01]);
        assert_eq!(
            decoder.next_frame(),
            Err(FrameError::TooLarge { announced: 262_145 })
        );
        let mut decoder = Decoder::default();
        decoder.push(&[0xff; 4]);
        assert_eq!(
            decoder.next_frame(),
            Err(FrameError::TooLarge {
                announced: u32::MAX >> 1
            })
        );
    }

    #[test]
    fn the_largest_body_passes() {
        let body = vec![b' '; MAX_BODY];
        let mut decoder = Decoder::default();
        decoder.push(&encode_json(&body).unwrap());
        assert_eq!(frames(&mut decoder), [Frame::Json(body)]);
        assert!(encode_json(&vec![b' '; MAX_BODY + 1]).is_err());
        assert!(encode_data(1, &vec![0; MAX_BODY]).is_err());
    }

    #[test]
    fn a_header_alone_is_that_of_the_whole_frame() {
        for bytes in [&b""[..], b"x", &vec![7; 70_000]] {
            let whole = encode_data(1, bytes).unwrap();
            assert_eq!(whole[..=HEADER], data_header(1, bytes.len()));
        }
    }

    #[test]
    fn a_raw_frame_without_a_channel_keeps_the_stream_in_step() {
        let mut decoder = Decoder::default();
        decoder.push(&[0x80, 0, 0, 0, 0, 0, 0, 2, b'{', b'}']);
        assert_eq!(
            frames(&mut decoder),
            [Frame::EmptyData, Frame::Json(b"{}".to_vec())]
        );
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_same_frames(
            bodies in prop::collection::vec((any::<Option<u8>>(), prop::collection::vec(any::<u8>(), 0..300)), 0..8),
            cuts in prop::collection::vec(1_usize..64, 1..64),
        ) {
            let mut wire = Vec::new();
            let mut expected = Vec::new();
            for (channel, bytes) in bodies {
                if let Some(channel) = channel {
                    wire.extend(encode_data(channel, &bytes).unwrap());
                    expected.push(Frame::Data { channel, bytes });
                } else {
                    wire.extend(encode_json(&bytes).unwrap());
                    expected.push(Frame::Json(bytes));
                }
            }
            let mut decoder = Decoder::default();
            let mut got = Vec::new();
            let mut rest = wire.as_slice();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break; }
                let (piece, after) = rest.split_at((*cut).min(rest.len()));
                decoder.push(piece);
                got.extend(frames(&mut decoder));
                rest = after;
            }
            prop_assert_eq!(got, expected);
            prop_assert!(!decoder.is_mid_frame());
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.next_frame() {}
        }
    }
}
