//! Dialling: from an endpoint to a stream on which frames flow.
//!
//! ```text
//! connect ──► write "CONNECT 52\n", once ──► read "OK <number>\n" ──► frames
//!    ▲             │                              │
//!    └── pause ◄───┴── end of file, EPIPE, ECONNRESET: three times; a full backlog: any number
//! ```
//!
//! What these turns are for was seen with real VMMs: the first CONNECT after a restore is closed
//! when its host port collides with a connection that was held at the snapshot; a VMM without a
//! guest yet resets at once; a busy VMM's backlog is full for a moment. Everything, pauses
//! included, happens within one deadline of our own, since a VMM may never answer: a paused VM
//! takes a CONNECT and stays silent.
//!
//! Neither here nor anywhere else in this crate is a connection half-closed: VMMs turn that into a
//! full close, or hide it.

use crate::error::quoted;
use crate::{Endpoint, Error, Stage, WIRE};
use mvm_protocol::Request;
use mvm_protocol::handshake::{LineReader, connect_line, parse_ok};
use mvm_registry::Address;
use rustix::fs::{Mode, OFlags};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_vsock::{VsockAddr, VsockStream};

/// How long to wait for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// For a connection and its handshake together, with every further try.
    pub connect: Duration,
    /// For a whole answer, and for writing its request.
    pub answer: Duration,
    /// For the answer to `check`, which comes when the check has ended: it may take as long as the
    /// check's own timeout allows, after waiting for its turn.
    pub check: Duration,
    /// For restore commands: they are in the answer to `wake`, and in that to a `sleep-prep` that
    /// has failed, which comes when all was rolled back.
    pub restore: Duration,
    /// For the next piece of a file, and for the end of writing one in the guest.
    pub transfer: Duration,
}

impl Default for Deadlines {
    /// 2 s, 10 s, 60 s for a check, and 120 s for restore commands and for a piece of a file.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            answer: Duration::from_secs(10),
            check: Duration::from_secs(60),
            restore: Duration::from_secs(120),
            transfer: Duration::from_secs(120),
        }
    }
}

impl Deadlines {
    /// The same for everything.
    pub fn all(duration: Duration) -> Self {
        Self {
            connect: duration,
            answer: duration,
            check: duration,
            restore: duration,
            transfer: duration,
        }
    }

    pub(crate) fn of(&self, request: &Request) -> Duration {
        match request {
            Request::Check(_) => self.check,
            Request::SleepPrep(asked) => asked.deadline().saturating_add(self.restore),
            Request::Wake(_) => self.restore,
            _ => self.answer,
        }
    }
}

/// How often a connection that ends without OK is tried again.
const RETRIES: u32 = 3;

/// The pause before the first further try; it doubles with each.
const FIRST_PAUSE: Duration = Duration::from_millis(20);

/// The longest pause between tries of a full backlog.
const LONGEST_PAUSE: Duration = Duration::from_millis(160);

/// A stream of bytes in both directions: a socket, or an in-memory pair.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A stream after the handshake, and what has come after it already.
pub(crate) struct Opened {
    pub(crate) stream: Box<dyn Stream>,
    pub(crate) early: Vec<u8>,
}

/// Why one try came to nothing.
enum Fault {
    /// Another try would end the same.
    Final(Error),
    /// Closed without OK.
    NoOk,
    /// The backlog of the socket is full.
    Full(io::Error),
}

/// Dials until it works, cannot work, or the deadline has passed.
pub(crate) async fn open(endpoint: &Endpoint, deadlines: &Deadlines) -> Result<Opened, Error> {
    // One beyond what the clock can tell never comes; 30 years are as good.
    let now = Instant::now();
    let deadline = now
        .checked_add(deadlines.connect)
        .unwrap_or_else(|| now + Duration::from_secs(30 * 365 * 86_400));
    let mut stage = Stage::Connection;
    let mut pause = FIRST_PAUSE;
    let mut retries = 0;
    let late = |stage| Error::TimedOut {
        endpoint: endpoint.clone(),
        stage,
        after: deadlines.connect,
    };
    loop {
        tracing::trace!(target: WIRE, "dialling {endpoint}");
        let error = match timeout_at(deadline, attempt(endpoint, &mut stage)).await {
            Err(_) => return Err(late(stage)),
            Ok(Ok(opened)) => return Ok(opened),
            Ok(Err(Fault::Final(error))) => return Err(error),
            Ok(Err(Fault::NoOk)) => {
                let error = Error::NobodyListening {
                    endpoint: endpoint.clone(),
                };
                if retries == RETRIES {
                    return Err(error);
                }
                retries += 1;
                error
            }
            Ok(Err(Fault::Full(source))) => Error::Io {
                endpoint: endpoint.clone(),
                stage,
                source,
            },
        };
        if Instant::now() + pause >= deadline {
            return Err(error);
        }
        tracing::trace!(target: WIRE, "{error}; again in {pause:?}");
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Shakes hands, once, on a stream that is connected already.
pub(crate) async fn over(
    stream: impl Stream + 'static,
    endpoint: &Endpoint,
    deadlines: &Deadlines,
) -> Result<Opened, Error> {
    let after = deadlines.connect;
    match timeout(after, shake_hands(stream, endpoint)).await {
        Ok(Ok(opened)) => Ok(opened),
        Ok(Err(Fault::Final(error))) => Err(error),
        Ok(Err(Fault::NoOk | Fault::Full(_))) => Err(Error::NobodyListening {
            endpoint: endpoint.clone(),
        }),
        Err(_) => Err(Error::TimedOut {
            endpoint: endpoint.clone(),
            stage: Stage::Handshake,
            after,
        }),
    }
}

async fn attempt(endpoint: &Endpoint, stage: &mut Stage) -> Result<Opened, Fault> {
    *stage = Stage::Connection;
    match endpoint.address() {
        Address::Unix(path) => {
            let stream = connect_unix(path)
                .await
                .map_err(|error| unix_fault(endpoint, path, error))?;
            *stage = Stage::Handshake;
            shake_hands(stream, endpoint).await
        }
        Address::Vsock(cid) => {
            match VsockStream::connect(VsockAddr::new(*cid, endpoint.port())).await {
                // The kernel's vsock has ports of its own and no handshake.
                Ok(stream) => Ok(Opened {
                    stream: Box::new(stream),
                    early: Vec::new(),
                }),
                Err(error) if is_reset(&error) => Err(Fault::NoOk),
                Err(source) => Err(Fault::Final(Error::Io {
                    endpoint: endpoint.clone(),
                    stage: *stage,
                    source,
                })),
            }
        }
    }
}

/// Hybrid vsock's line protocol. Nothing but the one line may be written before OK has been read:
/// vhost-device-vsock loses bytes that come with CONNECT, and refuses one that comes in pieces.
async fn shake_hands(
    mut stream: impl Stream + 'static,
    endpoint: &Endpoint,
) -> Result<Opened, Fault> {
    let io = |source: io::Error| {
        if is_reset(&source) {
            return Fault::NoOk;
        }
        Fault::Final(Error::Io {
            endpoint: endpoint.clone(),
            stage: Stage::Handshake,
            source,
        })
    };
    let line = connect_line(endpoint.port());
    tracing::trace!(target: WIRE, "> {}", line.trim_end());
    let written = stream.write(line.as_bytes()).await.map_err(io)?;
    if written < line.len() {
        return Err(io(io::ErrorKind::WriteZero.into()));
    }
    let mut reader = LineReader::default();
    let mut come = Vec::new();
    let mut buffer = [0; 256];
    loop {
        let count = stream.read(&mut buffer).await.map_err(io)?;
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
            return Ok(Opened {
                stream: Box::new(stream),
                early: bytes.get(taken..).unwrap_or_default().to_vec(),
            });
        }
    }
}

fn is_reset(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

fn unix_fault(endpoint: &Endpoint, path: &Path, source: io::Error) -> Fault {
    let path = path.to_owned();
    Fault::Final(match source.kind() {
        io::ErrorKind::WouldBlock => return Fault::Full(source),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Error::NoSocket { path },
        io::ErrorKind::PermissionDenied => Error::PermissionDenied { path },
        io::ErrorKind::ConnectionRefused => {
            // Also what connecting to a plain file gives.
            let is_socket = std::fs::metadata(&path).map(|file| file.file_type().is_socket());
            match is_socket {
                Ok(false) => Error::NotASocket { path },
                _ => Error::StaleSocket { path },
            }
        }
        _ => Error::Io {
            endpoint: endpoint.clone(),
            stage: Stage::Connection,
            source,
        },
    })
}

/// The longest path that fits into a socket address, in bytes.
const MAX_SUN_PATH: usize = 107;

async fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    if path.as_os_str().len() <= MAX_SUN_PATH {
        return UnixStream::connect(path).await;
    }
    let (_descriptor, short) = shortened(path)?;
    UnixStream::connect(short).await
}

/// A short path to the same socket, good as long as the descriptor is open: the folder's entry
/// under `/proc/self/fd` and the file's name, or, if that name is too long as well, the entry of
/// the socket file itself.
fn shortened(path: &Path) -> io::Result<(OwnedFd, PathBuf)> {
    let open = |path: &Path, flags: OFlags| {
        rustix::fs::open(path, flags | OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
    };
    let entry =
        |descriptor: &OwnedFd| PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_raw_fd()));
    if let (Some(folder), Some(name)) = (path.parent(), path.file_name()) {
        let folder = open(folder, OFlags::DIRECTORY)?;
        let short = entry(&folder).join(name);
        if short.as_os_str().len() <= MAX_SUN_PATH {
            return Ok((folder, short));
        }
    }
    let socket = open(path, OFlags::empty())?;
    let short = entry(&socket);
    Ok((socket, short))
}
