//! The handshake of hybrid vsock on one connection, and how a try to open one ends.

use crate::error::quoted;
use crate::{Awaited, Endpoint, Error, WIRE};
use mvm_protocol::handshake::{LineReader, connect_line, parse_ok};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// A stream of bytes in both directions: a socket, or an in-memory pair.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A stream after the handshake, and what has come after it already.
pub(crate) struct Opened {
    pub(crate) stream: Box<dyn Stream>,
    pub(crate) early: Vec<u8>,
}

/// Why one try came to nothing.
pub(crate) enum Fault {
    /// Another try would end the same.
    Final(Error),
    /// Closed without OK.
    NoOk,
    /// The backlog of the socket is full, or this program has all descriptors that it may have: some
    /// are closed in a moment.
    Full(io::Error),
}

impl Fault {
    /// The handshake could not be sent or read.
    pub(crate) fn of_handshake(endpoint: &Endpoint, source: io::Error) -> Self {
        if is_reset(&source) {
            return Self::NoOk;
        }
        if is_full(&source) {
            return Self::Full(source);
        }
        Self::Final(Error::Io {
            endpoint: endpoint.clone(),
            awaited: Awaited::Handshake,
            source,
        })
    }
}

/// Whether this program has all descriptors that it may have.
pub(crate) fn is_full(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error())
}

/// Hybrid vsock's line protocol. Nothing but the one line may be written before OK has been read:
/// vhost-device-vsock loses bytes that come with CONNECT, and refuses one that comes in pieces.
pub(crate) async fn shake_hands(
    mut stream: impl Stream + 'static,
    endpoint: &Endpoint,
) -> Result<Opened, Fault> {
    let faulty = |source| Fault::of_handshake(endpoint, source);
    let line = connect_line(endpoint.port());
    tracing::trace!(target: WIRE, "> {}", line.trim_end());
    let written = stream.write(line.as_bytes()).await.map_err(faulty)?;
    if written < line.len() {
        return Err(faulty(io::ErrorKind::WriteZero.into()));
    }
    let early = read_ok(&mut stream, endpoint).await?;
    Ok(Opened {
        stream: Box::new(stream),
        early,
    })
}

/// Reads the line `OK <number>`, and gives what has come after it already.
pub(crate) async fn read_ok(
    stream: &mut (impl AsyncRead + Unpin),
    endpoint: &Endpoint,
) -> Result<Vec<u8>, Fault> {
    let mut reader = LineReader::default();
    let mut come = Vec::new();
    let mut buffer = [0; 256];
    loop {
        let count = stream
            .read(&mut buffer)
            .await
            .map_err(|source| Fault::of_handshake(endpoint, source))?;
        let bytes = buffer.get(..count).unwrap_or_default();
        come.extend_from_slice(bytes);
        let stranger = || {
            Fault::Final(Error::NotAnAgent {
                endpoint: endpoint.clone(),
                got: quoted(&come),
            })
        };
        if bytes.is_empty() {
            return Err(if come.is_empty() {
                Fault::NoOk
            } else {
                stranger()
            });
        }
        // Told at once: a stranger may send a few bytes without a newline and then wait for us.
        if !come
            .iter()
            .zip(b"OK ")
            .all(|(byte, expected)| byte == expected)
        {
            return Err(stranger());
        }
        let (taken, line) = reader.push(bytes).map_err(|_| stranger())?;
        if let Some(line) = line {
            parse_ok(&line).map_err(|_| stranger())?;
            tracing::trace!(target: WIRE, "< {line}");
            return Ok(bytes.get(taken..).unwrap_or_default().to_vec());
        }
    }
}

pub(crate) fn is_reset(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}
