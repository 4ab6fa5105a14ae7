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

use crate::handshake::{Fault, Opened, Stream, is_full, is_reset, shake_hands};
use crate::{Awaited, Dialer, Endpoint, Error, WIRE};
use mvm_protocol::Request;
use mvm_registry::Address;
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
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

/// Dials until it works, cannot work, or the deadline has passed. The handshake that is under way then,
/// or when the future is dropped, is finished by the dialer.
pub(crate) async fn open(
    dialer: &Dialer,
    endpoint: &Endpoint,
    deadlines: &Deadlines,
) -> Result<Opened, Error> {
    // One beyond what the clock can tell never comes; 30 years are as good.
    let now = Instant::now();
    let deadline = now
        .checked_add(deadlines.connect)
        .unwrap_or_else(|| now + Duration::from_secs(30 * 365 * 86_400));
    let mut awaited = Awaited::Connection;
    let mut pause = FIRST_PAUSE;
    let mut retries = 0;
    let late = |awaited| Error::TimedOut {
        endpoint: endpoint.clone(),
        awaited,
        after: deadlines.connect,
    };
    loop {
        tracing::trace!(target: WIRE, "dialling {endpoint}");
        let error = match timeout_at(deadline, attempt(dialer, endpoint, &mut awaited)).await {
            Err(_) => return Err(late(awaited)),
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
                awaited,
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
            awaited: Awaited::Handshake,
            after,
        }),
    }
}

async fn attempt(
    dialer: &Dialer,
    endpoint: &Endpoint,
    awaited: &mut Awaited,
) -> Result<Opened, Fault> {
    *awaited = Awaited::Connection;
    match endpoint.address() {
        Address::Unix(path) => {
            *awaited = Awaited::Handshake;
            dialer.room(endpoint).await;
            *awaited = Awaited::Connection;
            let stream = connect_unix(path).map_err(|error| unix_fault(endpoint, path, error))?;
            *awaited = Awaited::Handshake;
            dialer.begin(stream, endpoint)?.wait().await
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
                    awaited: *awaited,
                    source,
                })),
            }
        }
    }
}

fn unix_fault(endpoint: &Endpoint, path: &Path, source: io::Error) -> Fault {
    let path = path.to_owned();
    if is_full(&source) {
        return Fault::Full(source);
    }
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
            awaited: Awaited::Connection,
            source,
        },
    })
}

/// The longest path that fits into a socket address, in bytes.
const MAX_SUN_PATH: usize = 107;

/// Connects without waiting: a backlog that is full is [`io::ErrorKind::WouldBlock`].
fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    let connect = |path: &Path| {
        let address = SocketAddrUnix::new(path)?;
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&socket, &address)?;
        Ok(UnixStream::from(socket))
    };
    if path.as_os_str().len() <= MAX_SUN_PATH {
        return connect(path);
    }
    let (_descriptor, short) = shortened(path)?;
    connect(&short)
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
