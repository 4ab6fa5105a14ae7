//! Bytes on their way: where the guest's come from, and what waits for the guest to take it.

use crate::machine::polled::Polled;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::collections::VecDeque;
use std::io;
use tokio::io::Interest;

/// How much is read at once: what a pipe holds.
pub(crate) const PIECE: usize = 64 * 1024;

/// Beyond so much that the guest does not take, no more is read from the host.
const WAITING: usize = 256 * 1024;

/// Takes output where it comes from.
pub(crate) trait Sink {
    /// Takes once what is there; 0 at the end.
    fn take_from(&mut self, channel: u8, from: &OwnedFd) -> Result<usize, Errno>;
}

/// Where the end of input is bytes, too.
pub(crate) trait ToldEnd {
    /// What stands for the end, after what has been sent: whether a line has begun in it counts.
    fn end_of_file(&self, line_has_begun: bool) -> Vec<u8>;
}

/// Reads output and discards it.
pub(crate) struct Discard;

impl Sink for Discard {
    fn take_from(&mut self, _: u8, from: &OwnedFd) -> Result<usize, Errno> {
        rustix::io::read(from, &mut [0_u8; 4096])
    }
}

/// What the guest has not taken yet.
#[derive(Default)]
pub(crate) struct InputQueue {
    to: Option<Polled>,
    pieces: VecDeque<Vec<u8>>,
    /// How much of the first piece has been written.
    written: usize,
    waiting: usize,
    ends: bool,
    /// If it is never closed, and its end has to be told it, as a terminal's.
    told_end: Option<Box<dyn ToldEnd>>,
    line_has_begun: bool,
}

impl InputQueue {
    /// Writes into a descriptor that does not block.
    pub(crate) fn new(to: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            to: Some(Polled::new(to, Interest::WRITABLE)?),
            ..Self::default()
        })
    }

    /// Writes into what has to be told that there is no more.
    pub(crate) fn told(to: OwnedFd, end: impl ToldEnd + 'static) -> io::Result<Self> {
        Ok(Self {
            told_end: Some(Box::new(end)),
            ..Self::new(to)?
        })
    }

    /// Whether more may be read from the host.
    pub(crate) fn has_room(&self) -> bool {
        self.waiting <= WAITING
    }

    /// Whether nothing is written any more: all was, or the guest takes no more.
    pub(crate) fn is_closed(&self) -> bool {
        self.to.is_none()
    }

    /// Whether nothing is to be added any more.
    pub(crate) fn is_ending(&self) -> bool {
        self.ends || self.is_closed()
    }

    /// Adds bytes; nowhere, if the guest takes no more.
    pub(crate) fn push(&mut self, bytes: Vec<u8>) {
        if self.to.is_none() || self.ends || bytes.is_empty() {
            return;
        }
        self.line_has_begun = bytes.last() != Some(&b'\n');
        self.waiting += bytes.len();
        self.pieces.push_back(bytes);
        self.write();
    }

    /// There is no more: the descriptor is closed when all has been written.
    pub(crate) fn end(&mut self) {
        if let Some(end) = self.told_end.take() {
            self.push(end.end_of_file(self.line_has_begun));
        }
        self.ends = true;
        self.write();
    }

    /// Forgets what waits, and closes.
    pub(crate) fn close(&mut self) {
        *self = Self::default();
    }

    /// Writes what fits.
    pub(crate) fn write(&mut self) {
        let Some(to) = &self.to else { return };
        while let Some(piece) = self.pieces.front() {
            let rest = piece.get(self.written..).unwrap_or_default();
            match to.try_io(Interest::WRITABLE, |to| Ok(rustix::io::write(to, rest)?)) {
                // Nothing takes nothing at all of something; to try again would be for ever.
                Ok(0) => return self.close(),
                Ok(written) => {
                    self.written += written;
                    self.waiting = self.waiting.saturating_sub(written);
                    if self.written >= piece.len() {
                        self.pieces.pop_front();
                        self.written = 0;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // It has closed its end, which is its right.
                Err(_) => return self.close(),
            }
        }
        if self.ends {
            self.close();
        }
    }

    /// Waits until more can be written; for ever if nothing is to be.
    pub(crate) async fn takes(&self) {
        match &self.to {
            Some(to) if !self.pieces.is_empty() => {
                let _ = to.writable().await;
            }
            _ => std::future::pending().await,
        }
    }
}

/// Where output comes from; nothing once it has been closed.
#[derive(Default)]
pub(crate) struct OutputSource {
    from: Option<Polled>,
    broken: bool,
}

impl OutputSource {
    /// Reads from a descriptor that does not block.
    pub(crate) fn new(from: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            from: Some(Polled::new(from, Interest::READABLE)?),
            broken: false,
        })
    }

    /// Whether it did not end, but broke off.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.from.is_none()
    }

    /// Waits until there is something, or the end; for ever if it has ended.
    pub(crate) async fn readable(&self) {
        match &self.from {
            Some(from) => {
                let _ = from.readable().await;
            }
            None => std::future::pending().await,
        }
    }

    /// Reads once into the sink what was announced, if anything was.
    pub(crate) fn read(&mut self, channel: u8, sink: &mut impl Sink) -> usize {
        let Some(from) = &self.from else { return 0 };
        let read = from.try_io(
            Interest::READABLE,
            |from| Ok(sink.take_from(channel, from)?),
        );
        self.took(read)
    }

    /// Reads once whatever is there, announced or not. 0 if there is nothing.
    pub(crate) fn read_now(&mut self, channel: u8, sink: &mut impl Sink) -> usize {
        let Some(from) = &self.from else { return 0 };
        let read = sink.take_from(channel, from.get_ref());
        self.took(read.map_err(Into::into))
    }

    fn took(&mut self, read: io::Result<usize>) -> usize {
        match read {
            Ok(read @ 1..) => read,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                0
            }
            ended => {
                // EIO is how a terminal says that nobody has it open any more.
                self.broken = ended.is_err();
                self.from = None;
                0
            }
        }
    }

    /// How many bytes wait to be read.
    pub(crate) fn pending(&self) -> u64 {
        let count = |from: &Polled| rustix::io::ioctl_fionread(from.get_ref());
        self.from
            .as_ref()
            .and_then(|from| count(from).ok())
            .unwrap_or(0)
    }
}
