//! What waits for the host to take it: at most a frame of data, and the answers beside it.
//!
//! Output in bulk is not copied on its way: the kernel moves it from the command's pipe to a pipe of
//! the outbox's own, and from there, once the frame's header has been sent, to the socket (splice(2)).
//! By the time that a header says how long its body is, nobody else can get at the body: a command
//! may well read from its own standard output.

use super::flow::{PIECE, Sink};
use super::reply::{DATA_HEADER, write_data_header};
use crate::machine::polled::Polled;
use crate::machine::stream::Stream;
use mvm_protocol::MAX_BODY;
use mvm_protocol::frame::data_header;
use rustix::buffer::spare_capacity;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::pipe::{
    PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice,
};
use std::collections::VecDeque;
use std::io;

/// From how many bytes on in a pipe splicing is worth its own system calls.
const BULK: usize = PIECE / 2;

/// Frames that the host has not taken yet. Data is added only while there are none, so that a host
/// that does not read slows the guest down, and holds no memory but one piece.
pub(crate) struct Outbox {
    parts: VecDeque<Part>,
    splices: bool,
    /// A pipe of which nobody else knows, from the first output in bulk on.
    own: Option<Pipe>,
    /// The socket, watched for room, from the first time on that there was none.
    room: Option<Polled>,
}

enum Part {
    /// Bytes, and how many of them have been sent.
    Bytes(Vec<u8>, usize),
    /// So many bytes that are in the own pipe. There is one such part at most.
    InPipe(usize),
}

struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

impl Default for Outbox {
    fn default() -> Self {
        Self {
            parts: VecDeque::new(),
            splices: splice_pays(),
            own: None,
            room: None,
        }
    }
}

impl Outbox {
    pub(crate) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// How many bytes of memory hold what has not been sent.
    pub(crate) fn in_memory(&self) -> usize {
        let held = self.parts.iter().map(|part| match part {
            Part::Bytes(bytes, sent) => bytes.len().saturating_sub(*sent),
            Part::InPipe(_) => 0,
        });
        held.sum()
    }

    /// Adds a frame.
    pub(crate) fn push(&mut self, frame: Vec<u8>) {
        match self.parts.back_mut() {
            Some(Part::Bytes(bytes, _)) => bytes.extend(frame),
            _ => self.parts.push_back(Part::Bytes(frame, 0)),
        }
    }

    /// Sends what fits, and gives how much that was. An error means that the host is gone, or that
    /// a frame cannot be made whole any more: nothing could be sent after it.
    pub(crate) fn send(&mut self, stream: &Stream) -> io::Result<usize> {
        let mut all = 0;
        loop {
            let sent = match (self.parts.front_mut(), &self.own) {
                (None, _) => return Ok(all),
                (Some(Part::Bytes(bytes, sent)), _) => {
                    let rest = bytes.get(*sent..).unwrap_or_default();
                    if rest.is_empty() {
                        self.parts.pop_front();
                        continue;
                    }
                    stream.try_write(rest).inspect(|count| *sent += count)
                }
                (Some(Part::InPipe(0)), _) => {
                    self.parts.pop_front();
                    continue;
                }
                (Some(Part::InPipe(left)), Some(own)) => {
                    match stream.try_splice(&own.read, *left) {
                        Ok(count) => {
                            *left = left.saturating_sub(count);
                            Ok(count)
                        }
                        Err(Errno::INVAL) => {
                            // The socket takes none.
                            self.splices = false;
                            self.read_back()?;
                            continue;
                        }
                        // Either the socket is full, or the pipe is empty.
                        Err(Errno::WOULDBLOCK) if own.holds() < *left => return Err(gone()),
                        Err(error) => Err(error),
                    }
                }
                (Some(Part::InPipe(_)), None) => return Err(gone()),
            };
            match sent {
                // No socket takes nothing at all of something; to try again would be for ever.
                Ok(0) => return Err(gone()),
                Ok(count) => all += count,
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => {
                    if self.room.is_none() {
                        self.room = Some(stream.room()?);
                    }
                    return Ok(all);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits until more can be sent; for ever if nothing is to be.
    pub(crate) async fn has_room(&self) {
        match &self.room {
            Some(room) if !self.is_empty() => {
                if let Ok(mut guard) = room.writable().await {
                    guard.clear_ready();
                }
            }
            _ => std::future::pending().await,
        }
    }

    /// Takes into memory what is in the own pipe.
    fn read_back(&mut self) -> io::Result<()> {
        for part in &mut self.parts {
            if let Part::InPipe(left) = part {
                let mut bytes = Vec::new();
                while bytes.len() < *left {
                    bytes.reserve_exact(*left - bytes.len());
                    let own = self.own.as_ref().ok_or_else(gone)?;
                    match rustix::io::read(&own.read, spare_capacity(&mut bytes)) {
                        Ok(1..) | Err(Errno::INTR) => {}
                        Ok(0) | Err(Errno::WOULDBLOCK) => return Err(gone()),
                        Err(error) => return Err(error.into()),
                    }
                }
                *part = Part::Bytes(bytes, 0);
            }
        }
        Ok(())
    }

    /// Moves what is in a pipe to the own one, as a frame; nothing if that does not pay, or cannot
    /// be done.
    fn move_from(&mut self, channel: u8, from: &OwnedFd) -> Option<Result<usize, Errno>> {
        let taken = self
            .parts
            .iter()
            .any(|part| matches!(part, Part::InPipe(_)));
        if !self.splices || taken {
            return None;
        }
        let there = rustix::io::ioctl_fionread(from).unwrap_or(0);
        let there = usize::try_from(there).unwrap_or(0).min(MAX_BODY - 1);
        if there < BULK {
            return None;
        }
        if self.own.is_none() {
            // Without descriptors, or from what is no pipe, it is copied.
            self.own = Pipe::as_large_as(from);
            self.splices = self.own.is_some();
        }
        let own = self.own.as_ref()?;
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        let moved = splice(from, None, &own.write, None, there, flags);
        if let Ok(moved @ 1..) = moved {
            self.push(data_header(channel, moved).to_vec());
            self.parts.push_back(Part::InPipe(moved));
        }
        Some(moved)
    }
}

impl Pipe {
    fn as_large_as(other: &OwnedFd) -> Option<Self> {
        let size = fcntl_getpipe_size(other).ok()?;
        let flags = PipeFlags::CLOEXEC | PipeFlags::NONBLOCK;
        let (read, write) = pipe_with(flags).ok()?;
        let _ = fcntl_setpipe_size(&write, size);
        Some(Self { read, write })
    }

    fn holds(&self) -> usize {
        let holds = rustix::io::ioctl_fionread(&self.read).unwrap_or(0);
        usize::try_from(holds).unwrap_or(usize::MAX)
    }
}

fn gone() -> io::Error {
    let message = "the rest of a frame that was begun is not to be had";
    io::Error::new(io::ErrorKind::UnexpectedEof, message)
}

impl Sink for Outbox {
    fn take_from(&mut self, channel: u8, from: &OwnedFd) -> Result<usize, Errno> {
        if let Some(moved) = self.move_from(channel, from) {
            return moved;
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
        let (ours, mut theirs) = crate::machine::stream::pair();
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
    async fn spliced_and_copied_output_are_the_same() {
        for splices in [true, false] {
            for bytes in [1, BULK - 1, BULK, PIECE] {
                let (from, _write, content) = pipe(bytes);
                let mut outbox = Outbox {
                    splices,
                    ..Outbox::default()
                };
                let taken = outbox.take_from(1, &from).unwrap();
                assert_eq!(taken, bytes);
                let moved = splices && bytes >= BULK;
                assert_eq!(outbox.in_memory() < bytes, moved);
                assert_eq!(rustix::io::ioctl_fionread(&from), Ok(0));
                outbox.push(mvm_protocol::frame::encode_json(b"{}").unwrap());
                let expected = [data(&content), Frame::Json(b"{}".to_vec())];
                assert_eq!(sent(&mut outbox), expected, "{splices} {bytes}");
            }
        }
    }

    #[tokio::test]
    async fn bytes_queued_after_a_spliced_body_are_sent_after_it() {
        let (from, mut write, content) = pipe(PIECE - 10);
        let mut outbox = Outbox {
            splices: true,
            ..Outbox::default()
        };
        outbox.take_from(1, &from).unwrap();
        // As much as would be moved, if there were none that was.
        let more = vec![b'y'; PIECE];
        write.write_all(&more).unwrap();
        assert_eq!(outbox.take_from(1, &from), Ok(PIECE));
        assert_eq!(sent(&mut outbox), [data(&content), data(&more)]);
    }

    #[tokio::test]
    async fn bytes_moved_to_the_own_pipe_are_sent_whatever_reads_the_commands() {
        let (from, write, content) = pipe(PIECE);
        let mut outbox = Outbox {
            splices: true,
            ..Outbox::default()
        };
        outbox.take_from(1, &from).unwrap();
        rustix::io::ioctl_fionbio(&from, true).unwrap();
        let stolen = rustix::io::read(&from, &mut [0_u8; 100][..]);
        assert_eq!(stolen, Err(Errno::WOULDBLOCK));
        drop(write);
        assert_eq!(sent(&mut outbox), [data(&content)]);
    }

    #[tokio::test]
    async fn a_frame_whose_rest_is_lost_is_an_error() {
        let (from, _write, _) = pipe(PIECE);
        let mut outbox = Outbox {
            splices: true,
            ..Outbox::default()
        };
        outbox.take_from(1, &from).unwrap();
        // A process that may look into the agent's own descriptors could.
        let own = &outbox.own.as_ref().unwrap().read;
        rustix::io::read(own, &mut [0_u8; 100][..]).unwrap();
        let (ours, mut theirs) = crate::machine::stream::pair();
        let error = loop {
            match outbox.send(&ours) {
                Ok(_) => theirs.read(&mut vec![0; 100_000]).unwrap(),
                Err(error) => break error,
            };
        };
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        let mut outbox = Outbox {
            parts: VecDeque::from([Part::InPipe(1)]),
            own: outbox.own,
            ..Outbox::default()
        };
        drop(std::mem::replace(
            &mut outbox.own.as_mut().unwrap().write,
            from,
        ));
        // At its end, too.
        let error = outbox.send(&ours).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn a_source_that_is_no_pipe_is_copied() {
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
