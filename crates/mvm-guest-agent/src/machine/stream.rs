//! A connected stream socket, whichever family it is of: vsock, Unix, or a pair in a test.

use super::descriptors::for_a_host;
use super::polled::Polled;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::io;
use tokio::io::{Interest, Ready};

/// A non-blocking stream socket in the runtime.
#[derive(Debug)]
pub(crate) struct Stream {
    fd: Polled,
    /// Whether there may be bytes that are not announced any more.
    unread: std::cell::Cell<bool>,
}

/// Errors are waited for along with readiness: after a transport reset (a snapshot, an unplugged
/// device) a vsock socket gets `POLLERR` alone, and a reader that waits for `POLLIN` waits for
/// ever and leaks its descriptor.
const READ: Interest = Interest::READABLE.add(Interest::ERROR);
const WRITE: Interest = Interest::WRITABLE.add(Interest::ERROR);

impl Stream {
    /// Takes a socket that is non-blocking already.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            fd: Polled::new(fd, READ)?,
            unread: std::cell::Cell::new(false),
        })
    }

    /// Reads what is there, at least one byte; 0 at the end of the stream.
    pub(crate) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            // What `closed` has seen is not announced again.
            let mut guard = if self.unread.take() {
                None
            } else {
                Some(self.fd.ready(READ).await?)
            };
            match (
                recv(self.fd.get_ref(), &mut *buffer, RecvFlags::empty()),
                &mut guard,
            ) {
                (Ok((read, _)), None) => {
                    self.unread.set(read == buffer.len());
                    return Ok(read);
                }
                (Ok((read, _)), Some(guard)) => {
                    // A short read has drained the socket, so the next one can wait at once. An
                    // error that was announced stays announced.
                    if read < buffer.len() {
                        guard.clear_ready_matching(Ready::READABLE);
                    }
                    return Ok(read);
                }
                (Err(Errno::WOULDBLOCK), Some(guard)) => guard.clear_ready(),
                (Err(Errno::INTR), guard) => self.unread.set(guard.is_none()),
                (Err(Errno::WOULDBLOCK), None) => {}
                (Err(error), _) => return Err(error.into()),
            }
        }
    }

    /// Writes some of the bytes, at least one.
    pub(crate) async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match send(self.fd.get_ref(), bytes, SendFlags::NOSIGNAL) {
                Ok(written) => return Ok(written),
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => self.has_room().await?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Writes what fits at once, without waiting.
    pub(crate) fn try_write(&self, bytes: &[u8]) -> Result<usize, Errno> {
        send(self.fd.get_ref(), bytes, SendFlags::NOSIGNAL)
    }

    /// Moves bytes from a pipe, as many as fit at once and at most so many, without waiting.
    pub(crate) fn try_splice(&self, pipe: &OwnedFd, bytes: usize) -> Result<usize, Errno> {
        use rustix::pipe::{SpliceFlags, splice};
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        splice(pipe, None, self.fd.get_ref(), None, bytes, flags)
    }

    /// The socket once more, to be watched for room at all times: for a stream of bytes that is
    /// worth being woken for.
    pub(crate) fn room(&self) -> io::Result<Polled> {
        Polled::new(for_a_host(self.fd.get_ref().try_clone()?)?, WRITE)
    }

    /// Waits until the peer has closed, and reads nothing.
    pub(crate) async fn closed(&self) {
        while let Ok(mut guard) = self.fd.ready(READ).await {
            if guard.ready().is_read_closed() || guard.ready().is_error() {
                return;
            }
            // What is announced again is news; what is there already is kept for the next read.
            self.unread.set(true);
            guard.clear_ready_matching(Ready::READABLE);
        }
    }

    /// Waits until a connection is made, or fails with what the connect would have failed with.
    pub(crate) async fn connected(&self) -> io::Result<()> {
        self.has_room().await?;
        Ok(rustix::net::sockopt::socket_error(self.fd.get_ref())??)
    }

    /// Waits until the peer has read something, or a connection is made. That is rare, and a socket that is always watched
    /// for it wakes the agent for every answer that is read.
    pub(crate) async fn has_room(&self) -> io::Result<()> {
        let watched = self.room()?;
        watched.ready(WRITE).await?.retain_ready();
        Ok(())
    }
}

#[cfg(test)]
pub(crate) fn pair() -> (Stream, std::os::unix::net::UnixStream) {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    (Stream::new(ours.into()).unwrap(), theirs)
}
