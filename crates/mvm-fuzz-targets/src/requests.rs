//! What the agent reads: a stream of frames, cut anywhere, and a request in each.
//!
//! The input's first byte says how large the pieces are in which the rest arrives. However it is
//! cut, the frames are the same; what is refused has a message fit for a terminal; what is read
//! reads the same when it is written again.

use mvm_protocol::dev::{Control, DevRequest};
use mvm_protocol::frame::{Decoder, Frame};
use mvm_protocol::request::{FromObject, Parsed, Request, RequestOf};
use serde::Serialize;

/// The size of the pieces, and a stream of frames.
pub fn requests() -> impl FnMut(&[u8]) {
    |input| {
        let Some((size, stream)) = input.split_first() else {
            return;
        };
        let whole = frames(std::iter::once(stream));
        assert_eq!(frames(stream.chunks(usize::from(*size).max(1))), whole);
        for frame in whole.0 {
            let Frame::Json(body) = frame else { continue };
            check::<Request>(&body);
            check::<DevRequest>(&body);
            check::<Control>(&body);
        }
    }
}

/// All frames of a stream, and whether it was cut for a frame too large.
fn frames<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Frame>, bool) {
    let mut decoder = Decoder::default();
    let mut frames = Vec::new();
    for piece in pieces {
        decoder.push(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return (frames, true),
            }
        }
    }
    (frames, false)
}

/// A body as one kind of request.
fn check<R: FromObject + Serialize>(body: &[u8]) {
    let parsed = Parsed::<R>::read(body);
    match parsed.request {
        Ok(request) => {
            let again = RequestOf {
                request,
                id: parsed.id,
            };
            let again = Parsed::<R>::read(&serde_json::to_vec(&again).unwrap());
            assert_eq!((again.id, again.kind), (parsed.id, parsed.kind));
            assert!(again.request.is_ok());
        }
        Err(error) => {
            assert!(!error.message.is_empty() && error.message.len() < 2048);
            assert!(!error.message.contains(char::is_control));
        }
    }
}
