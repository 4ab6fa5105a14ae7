//! A connection whose other end is an input: its bytes come in pieces, and then it is closed.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What an agent sends. What it is sent is forgotten.
pub(crate) struct Script {
    bytes: Vec<u8>,
    at: usize,
    /// The sizes of the pieces, over and over; everything at once if there are none, or one is 0.
    sizes: Vec<u8>,
    turn: usize,
    /// Whether the next read waits once.
    waits: bool,
}

impl Script {
    pub(crate) fn new(bytes: &[u8], sizes: &[u8]) -> Self {
        Self {
            bytes: bytes.to_vec(),
            at: 0,
            sizes: sizes.to_vec(),
            turn: 0,
            waits: false,
        }
    }
}

impl AsyncRead for Script {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Between two pieces whoever reads has to wait: what it does then is part of it.
        if std::mem::take(&mut self.waits) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let size = match self.sizes.get(self.turn % self.sizes.len().max(1)) {
            None | Some(0) => usize::MAX,
            Some(size) => usize::from(*size),
        };
        let rest = &self.bytes[self.at..];
        let piece = &rest[..rest.len().min(size).min(buffer.remaining())];
        let count = piece.len();
        buffer.put_slice(piece);
        self.at += count;
        self.turn += 1;
        self.waits = size != usize::MAX;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Script {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The numbers that the answers carry, in order: those of the frames that are JSON objects, up to
/// the first frame that is none. `None` where there is none that is a number.
pub(crate) fn ids(frames: &[u8]) -> Vec<Option<u64>> {
    let mut decoder = mvm_protocol::Decoder::default();
    decoder.push(frames);
    let mut ids = Vec::new();
    while let Ok(Some(frame)) = decoder.next_frame() {
        let mvm_protocol::Frame::Json(body) = frame else {
            continue;
        };
        // What a client leaves out need not even be UTF-8.
        let text = String::from_utf8_lossy(&body);
        let Ok(object) = serde_json::from_str::<serde_json::Value>(&text) else {
            break;
        };
        ids.push(object.get("id").and_then(serde_json::Value::as_u64));
    }
    ids
}

/// A runtime in which nothing waits for anything but the script, so that no deadline passes.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
}

/// An error's text is short, whoever chose its words.
pub(crate) fn check_error(error: &mvm_client::Error) {
    let text = error.to_string();
    assert!(text.len() < 2048, "{} bytes", text.len());
}
