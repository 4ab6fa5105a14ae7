//! What waits for the host to take it: at most a frame of data, and the answers beside it.
//!
//! Output in bulk is not copied on its way: once a frame's header has been sent, the kernel moves its
//! body from the command's pipe to the socket (splice(2)).

use super::flow::{PIECE, Sink};
use super::{DATA_HEADER, write_data_header};
use crate::edge::stream::Stream;
use mvm_protocol::MAX_BODY;
use mvm_protocol::frame::data_header;
use rustix::buffer::spare_capacity;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::collections::VecDeque;
use std::io;
use tokio::io::unix::AsyncFd;

/// From how many bytes on in a pipe splicing is worth its own system calls.
const BULK: usize = PIECE / 2;

/// Frames that the host has not taken yet. Data is added only while there are none, so that a host
/// that does not read slows the guest down, and holds no memory but one piece.
pub(super) struct Outbox {
    parts: VecDeque<Part>,
    splices: bool,
    /// The socket, watched for room, from the first time on that there was none.
    room: Option<AsyncFd<OwnedFd>>,
}

enum Part {
    /// Bytes, and how many of them have been sent.
    Bytes(Vec<u8>, usize),
    /// So many bytes that are in a pipe, of which nobody else reads.
    InPipe(OwnedFd, usize),
}

impl Default for Outbox {
    fn default() -> Self {
        Self {
            parts: VecDeque::new(),
            splices: splice_pays(),
            room: None,
        }
    }
}

impl Outbox {
    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// How many bytes have not been sent.
    pub(super) fn len(&self) -> usize {
        let left = self.parts.iter().map(|part| match part {
            Part::Bytes(bytes, sent) => bytes.len().saturating_sub(*sent),
            Part::InPipe(_, left) => *left,
        });
        left.sum()
    }

    /// Adds a frame.
    pub(super) fn push(&mut self, frame: Vec<u8>) {
        match self.parts.back_mut() {
            Some(Part::Bytes(bytes, _)) => bytes.extend(frame),
            _ => self.parts.push_back(Part::Bytes(frame, 0)),
        }
    }

    /// Sends what fits. An error means that the host is gone.
    pub(super) fn send(&mut self, stream: &Stream) -> io::Result<()> {
        loop {
            let sent = match self.parts.front_mut() {
                None => return Ok(()),
                Some(Part::Bytes(bytes, sent)) => {
                    let rest = bytes.get(*sent..).unwrap_or_default();
                    if rest.is_empty() {
                        self.parts.pop_front();
                        continue;
                    }
                    stream.try_write(rest).map(|count| *sent += count)
                }
                Some(Part::InPipe(_, 0)) => {
                    self.parts.pop_front();
                    continue;
                }
                Some(Part::InPipe(pipe, left)) => match stream.try_splice(pipe, *left) {
                    Ok(count) => {
                        *left = left.saturating_sub(count);
                        Ok(())
                    }
                    Err(Errno::INVAL) => {
                        // It is no pipe, or the socket takes none.
                        self.splices = false;
                        self.read_back()
                    }
                    Err(error) => Err(error),
                },
            };
            match sent {
                Ok(()) | Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => {
                    if self.room.is_none() {
                        self.room = Some(stream.room()?);
                    }
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits until more can be sent; for ever if nothing is to be.
    pub(super) async fn has_room(&self) {
        match &self.room {
            Some(room) if !self.is_empty() => {
                if let Ok(mut guard) = room.writable().await {
                    guard.clear_ready();
                }
            }
            _ => std::future::pending().await,
        }
    }

    /// Takes into memory what is still in a pipe.
    fn read_back(&mut self) -> Result<(), Errno> {
        for part in &mut self.parts {
            if let Part::InPipe(pipe, left) = part {
                let mut bytes = Vec::new();
                while bytes.len() < *left {
                    bytes.reserve_exact(*left - bytes.len());
                    if rustix::io::read(&*pipe, spare_capacity(&mut bytes))? == 0 {
                        break;
                    }
                }
                *part = Part::Bytes(bytes, 0);
            }
        }
        Ok(())
    }
}

impl Sink for Outbox {
    fn take_from(&mut self, channel: u8, from: &OwnedFd) -> Result<usize, Errno> {
        // What is read next stands behind what was left in the pipe.
        self.read_back()?;
        if self.splices {
            let there = rustix::io::ioctl_fionread(from).unwrap_or(0);
            let there = usize::try_from(there).unwrap_or(0).min(MAX_BODY - 1);
            if there >= BULK {
                let pipe = rustix::io::fcntl_dupfd_cloexec(from, 0)?;
                self.push(data_header(channel, there).to_vec());
                self.parts.push_back(Part::InPipe(pipe, there));
                return Ok(there);
            }
        }
        let mut frame = Vec::new();
        frame.reserve_exact(DATA_HEADER + PIECE);
        frame.extend([0; DATA_HEADER]);
        let read = rustix::io::read(from, spare_capacity(&mut frame))?;
        if read > 0 {
            write_data_header(&mut frame, channel, read);
            self.push(frame);
        }
        Ok(read)
    }

    fn claimed(&self) -> u64 {
        let claimed = self.parts.iter().map(|part| match part {
            Part::Bytes(..) => 0,
            Part::InPipe(_, left) => *left as u64,
        });
        claimed.sum()
    }
}

/// Whether the kernel moves pages to a socket many at a time, as it does since 6.5. Before that it
/// sends each by itself, which over vsock is a packet for each.
fn splice_pays() -> bool {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|part| part.parse().ok());
    let version: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    version >= (6, 5)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mvm_protocol::{Decoder, Frame};
    use std::io::{Read, Write};

    /// Sends all to a reader that is behind, and gives the frames that come.
    fn sent(outbox: &mut Outbox) -> Vec<Frame> {
        let (ours, mut theirs) = crate::edge::stream::pair();
        let mut decoder = Decoder::default();
        let mut buffer = vec![0; 1000];
        loop {
            outbox.send(&ours).unwrap();
            if outbox.is_empty() {
                break;
            }
            let read = theirs.read(&mut buffer).unwrap();
            decoder.push(&buffer[..read]);
        }
        drop(ours);
        let mut rest = Vec::new();
        theirs.read_to_end(&mut rest).unwrap();
        decoder.push(&rest);
        std::iter::from_fn(|| decoder.next_frame().unwrap()).collect()
    }

    fn pipe(bytes: usize) -> (OwnedFd, std::fs::File, Vec<u8>) {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let content: Vec<u8> = (0..=250).cycle().take(bytes).collect();
        let mut write = std::fs::File::from(write);
        write.write_all(&content).unwrap();
        (read, write, content)
    }

    fn data(bytes: &[u8]) -> Frame {
        let (channel, bytes) = (1, bytes.to_vec());
        Frame::Data { channel, bytes }
    }

    #[tokio::test]
    async fn what_is_moved_and_what_is_copied_come_out_alike() {
        for splices in [true, false] {
            for bytes in [1, BULK - 1, BULK, PIECE] {
                let (from, _write, content) = pipe(bytes);
                let mut outbox = Outbox {
                    splices,
                    ..Outbox::default()
                };
                let taken = outbox.take_from(1, &from).unwrap();
                assert_eq!(taken, bytes);
                assert_eq!(outbox.claimed() > 0, splices && bytes >= BULK);
                outbox.push(mvm_protocol::frame::encode_json(b"{}").unwrap());
                let expected = [data(&content), Frame::Json(b"{}".to_vec())];
                assert_eq!(sent(&mut outbox), expected, "{splices} {bytes}");
            }
        }
    }

    #[tokio::test]
    async fn what_is_read_behind_a_body_in_the_pipe_stays_behind_it() {
        let (from, mut write, content) = pipe(PIECE - 10);
        let mut outbox = Outbox {
            splices: true,
            ..Outbox::default()
        };
        outbox.take_from(1, &from).unwrap();
        write.write_all(b"more").unwrap();
        assert_eq!(outbox.take_from(1, &from), Ok(4));
        assert_eq!((outbox.claimed(), outbox.len()), (0, PIECE - 10 + 4 + 10));
        assert_eq!(sent(&mut outbox), [data(&content), data(b"more")]);
    }

    #[tokio::test]
    async fn what_is_no_pipe_is_copied() {
        let (from, to) = std::os::unix::net::UnixStream::pair().unwrap();
        let content = vec![b'x'; BULK];
        (&to).write_all(&content).unwrap();
        let mut outbox = Outbox {
            splices: true,
            ..Outbox::default()
        };
        outbox.take_from(1, &from.into()).unwrap();
        assert_eq!(sent(&mut outbox), [data(&content)]);
        assert!(!outbox.splices);
    }
}
