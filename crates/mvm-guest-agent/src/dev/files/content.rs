//! What the host sends of a file or an archive, frame by frame.

use mvm_protocol::dev::channel::FILE;
use mvm_protocol::dev::{Control, ParsedControl};
use mvm_protocol::{Decoder, Frame};
use std::io::{self, Read};

/// Reads data up to `put-end`. The end of the stream before that is an error: it was given up.
pub(super) struct Content<R> {
    from: R,
    decoder: Decoder,
    piece: Vec<u8>,
    taken: usize,
    /// How many bytes have come.
    pub(super) bytes: u64,
    complete: bool,
}

impl<R: Read> Content<R> {
    pub(super) fn new(from: R) -> Self {
        Self {
            from,
            decoder: Decoder::default(),
            piece: Vec::new(),
            taken: 0,
            bytes: 0,
            complete: false,
        }
    }

    /// The next frame's bytes; nothing at the end.
    fn next_piece(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut buffer = vec![0; 64 * 1024];
        while !self.complete {
            match self.decoder.next_frame().map_err(io::Error::other)? {
                Some(Frame::Data {
                    channel: FILE,
                    bytes,
                }) => {
                    self.bytes += bytes.len() as u64;
                    return Ok(Some(bytes));
                }
                Some(Frame::Json(body)) => {
                    let end = ParsedControl::read(&body).request == Ok(Control::PutEnd);
                    self.complete = end;
                }
                Some(_) => {}
                None => match self.from.read(&mut buffer)? {
                    0 => return Err(io::Error::other("it was broken off")),
                    read => self.decoder.push(buffer.get(..read).unwrap_or_default()),
                },
            }
        }
        Ok(None)
    }

    /// Takes what is left, which nobody wants, up to the end.
    pub(super) fn finish(mut self) -> io::Result<u64> {
        while self.next_piece()?.is_some() {}
        Ok(self.bytes)
    }
}

impl<R: Read> Read for Content<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.taken >= self.piece.len() {
            match self.next_piece()? {
                Some(piece) => (self.piece, self.taken) = (piece, 0),
                None => return Ok(0),
            }
        }
        let rest = self.piece.get(self.taken..).unwrap_or_default();
        // As a whole: code that is built for size would do a loop of ours byte by byte.
        let read = Read::read(&mut { rest }, buffer)?;
        self.taken += read;
        Ok(read)
    }
}
