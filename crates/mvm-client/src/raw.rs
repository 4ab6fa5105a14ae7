//! A connection to any port of the guest's, without the agent's protocol.

use crate::handshake::{Opened, Stream};
use crate::transport;
use crate::{Deadlines, Dialer, Endpoint, Error};
use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes to and from a port of the guest's, past hybrid vsock's handshake. To close it, drop it:
/// shutting down one half does not exist in hybrid vsock, where it closes both.
pub struct RawStream {
    stream: Box<dyn Stream>,
    /// What came with OK already.
    early: Vec<u8>,
}

impl Dialer {
    /// Dials the endpoint, whose port can be any (see [`Endpoint::with_port`]), for bytes that are no
    /// agent's.
    pub async fn connect_raw(
        &self,
        endpoint: &Endpoint,
        deadlines: &Deadlines,
    ) -> Result<RawStream, Error> {
        let Opened { stream, early } = transport::open(self, endpoint, deadlines).await?;
        Ok(RawStream { stream, early })
    }
}

impl fmt::Debug for RawStream {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("RawStream").finish_non_exhaustive()
    }
}

impl AsyncRead for RawStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.early.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let count = self.early.len().min(buffer.remaining());
        let taken: Vec<u8> = self.early.drain(..count).collect();
        buffer.put_slice(&taken);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for RawStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
