//! Listening sockets: AF_VSOCK in a guest, Unix without a VMM.

use super::connection::{Handshake, Timeouts};
use super::extension::Extension;
use super::handle::Handle;
use super::session;
use crate::machine::console::say;
use crate::machine::descriptors::{is_kept_back, is_shortage, most_refusals};
use crate::machine::polled::Polled;
use crate::machine::stream::Stream;
use crate::machine::turns::between_pieces;
use crate::machine::vsock::VsockKey;
use nix::sys::socket::{Backlog, SockFlag, VsockAddr, accept4, bind, getpeername, listen};
use rustix::fd::{AsRawFd, FromRawFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::net::SocketAddrUnix;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use std::cell::Cell;
use std::fmt;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use tokio::io::Interest;

/// A burst of connections waits here: a shorter queue drops some of a fleet's.
const BACKLOG: i32 = 1024;

/// `VMADDR_CID_ANY` and `VMADDR_CID_HOST` of vsock(7).
const CID_ANY: u32 = u32::MAX;
const CID_HOST: u32 = 2;

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ListenAddress {
    /// A vsock port of this guest.
    Vsock(u32),
    /// A Unix socket, where the agent speaks the handshake itself.
    Unix(PathBuf),
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Vsock(port) => write!(f, "vsock:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl<'de> Deserialize<'de> for ListenAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        // The highest one is vsock(7)'s word for "any", at which no host finds the agent.
        let vsock = text
            .strip_prefix("vsock:")
            .and_then(|port| port.parse().ok())
            .filter(|port| *port != u32::MAX)
            .map(Self::Vsock);
        // What the kernel has no room for is no path either.
        let unix = text
            .strip_prefix("unix:")
            .filter(|path| !path.is_empty() && SocketAddrUnix::new(*path).is_ok());
        vsock
            .or_else(|| unix.map(|path| Self::Unix(path.into())))
            .ok_or_else(|| {
                D::Error::custom(format!(
                    "`{text}` is neither vsock:PORT, up to 4294967294, nor unix:PATH, of 107 bytes"
                ))
            })
    }
}

/// A socket that listens.
#[derive(Debug)]
pub(crate) struct Listener {
    fd: Polled,
    address: ListenAddress,
    /// Its own Unix socket, by device and inode.
    socket: Option<(u64, u64)>,
    reserve: Option<OwnedFd>,
}

impl Listener {
    /// Binds and listens.
    pub(crate) fn bind(address: &ListenAddress, key: VsockKey) -> io::Result<Self> {
        let fd = match address {
            ListenAddress::Vsock(port) => vsock(*port, key)?,
            ListenAddress::Unix(path) => unix(path)?,
        };
        let socket = match address {
            ListenAddress::Vsock(_) => None,
            ListenAddress::Unix(path) => socket_at(path),
        };
        let fd = Polled::new(fd, Interest::READABLE)?;
        Ok(Self {
            fd,
            address: address.clone(),
            socket,
            reserve: spare(),
        })
    }

    /// Accepts connections and serves each, at most `max` at a time over all listeners. Says that
    /// somebody has dialled, once that is so.
    pub(crate) async fn run<E: Extension>(
        mut self,
        handle: Handle,
        extension: E,
        open: Rc<Cell<usize>>,
        max: usize,
        dialled: Rc<Cell<bool>>,
    ) {
        let refusals = Rc::new(Cell::new(0));
        loop {
            match self.accept(&handle).await {
                Ok(Some((stream, has_room))) => {
                    dialled.set(true);
                    let handshake = self.handshake();
                    let handle = handle.clone();
                    let extension = extension.clone();
                    if let Some(slot) = Slot::take(&open, if has_room { max } else { 0 }) {
                        tokio::task::spawn_local(async move {
                            let _slot = slot;
                            let timeouts = Timeouts::default();
                            session::serve(stream, handshake, handle, extension, timeouts).await;
                        });
                    } else if let Some(slot) = Slot::take(&refusals, most_refusals()) {
                        // More than those are closed without a word.
                        tokio::task::spawn_local(async move {
                            let _slot = slot;
                            session::refuse(stream, handshake, handle).await;
                        });
                    }
                }
                // Somebody in the guest may dial as fast as it is turned away.
                Ok(None) => between_pieces().await,
                Err(error) => {
                    say!("{}: accept: {error}", self.address);
                    // Whatever it is, it must not become a loop at full speed.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Whether the host has dialled, and not somebody in the guest, which is said.
    fn is_by_host(&self, fd: &OwnedFd) -> bool {
        let is_vsock = matches!(self.address, ListenAddress::Vsock(_));
        let refused = is_vsock && peer_cid(fd) != Some(CID_HOST);
        if refused {
            say!(
                "{}: refused a connection from within the guest",
                self.address
            );
        }
        !refused
    }

    fn handshake(&self) -> Handshake {
        match self.address {
            ListenAddress::Vsock(_) => Handshake::ByVmm,
            ListenAddress::Unix(_) => Handshake::ByAgent,
        }
    }

    /// The next connection that is the host's, and whether there are descriptors for it; `None` if one came
    /// and was turned away.
    async fn accept(&mut self, handle: &Handle) -> io::Result<Option<(Stream, bool)>> {
        let mut guard = self.fd.readable().await?;
        match accept(self.fd.get_ref()) {
            Ok(fd) => {
                if !self.is_by_host(&fd) {
                    return Ok(None);
                }
                let has_room = !is_kept_back(&fd);
                Ok(Some((Stream::new(fd)?, has_room)))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                guard.clear_ready();
                Ok(None)
            }
            Err(error) if is_shortage(&error) => {
                if self.reserve.take().is_none() {
                    self.reserve = spare();
                    return Err(error);
                }
                // The kernel wants a descriptor before it looks whether somebody is there.
                match accept(self.fd.get_ref()) {
                    Ok(fd) if !self.is_by_host(&fd) => {}
                    Ok(fd) => {
                        let stream = Stream::new(fd)?;
                        session::refuse(stream, self.handshake(), handle.clone()).await;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                    Err(_) => {}
                }
                self.reserve = spare();
                Ok(None)
            }
            // The connection was gone before it was taken (accept(2) lists more of these).
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // What has taken its place in the meantime is somebody else's.
        if let ListenAddress::Unix(path) = &self.address
            && self.socket.is_some()
            && self.socket == socket_at(path)
        {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// One of a bounded number of connections, given back when it is dropped.
struct Slot(Rc<Cell<usize>>);

impl Slot {
    fn take(taken: &Rc<Cell<usize>>, max: usize) -> Option<Self> {
        (taken.get() < max).then(|| {
            taken.set(taken.get() + 1);
            Self(Rc::clone(taken))
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

/// Without a descriptor a connection cannot even be turned away, and would wake the agent again and
/// again: one is held in reserve for that.
fn spare() -> Option<OwnedFd> {
    rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()
}

fn vsock(port: u32, key: VsockKey) -> io::Result<OwnedFd> {
    let fd = key.socket()?;
    bind(fd.as_raw_fd(), &VsockAddr::new(CID_ANY, port))?;
    listen(&fd, Backlog::new(BACKLOG)?)?;
    Ok(fd)
}

/// A Unix socket for its owner alone. A socket that a killed agent left behind is replaced; one
/// that somebody listens on is not, and neither is anything else that has the name.
fn unix(path: &Path) -> io::Result<OwnedFd> {
    let bind = || std::os::unix::net::UnixListener::bind(path);
    let listener = match bind() {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            // Of a file that is no socket a connect says the same as of one that nobody listens on.
            if socket_at(path).is_none() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            match std::os::unix::net::UnixStream::connect(path) {
                Err(refused) if refused.kind() == io::ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(path)?;
                    bind()?
                }
                _ => return Err(error),
            }
        }
        other => other?,
    };
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    rustix::net::listen(&listener, BACKLOG)?;
    Ok(listener.into())
}

/// The socket of that name, by device and inode; nothing if it is none, or a link.
fn socket_at(path: &Path) -> Option<(u64, u64)> {
    let found = std::fs::symlink_metadata(path).ok()?;
    let socket = found.file_type().is_socket();
    socket.then_some((found.dev(), found.ino()))
}

fn accept(listener: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = accept4(listener.as_raw_fd(), flags)?;
    Ok(own(fd))
}

#[expect(unsafe_code, reason = "nix gives accepted sockets as bare numbers")]
fn own(fd: std::os::fd::RawFd) -> OwnedFd {
    // SAFETY: accept4(2) has just made this descriptor, and nobody else knows of it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Who dials. The port does not tell: with vsock_loopback any process in the guest reaches the
/// listener, from any port that it likes, but never with the host's CID.
fn peer_cid(fd: &OwnedFd) -> Option<u32> {
    getpeername::<VsockAddr>(fd.as_raw_fd())
        .ok()
        .map(|address| address.cid())
}

/// Why binding failed, and what to do about it.
pub(crate) fn explain(address: &ListenAddress, error: &io::Error) -> String {
    let remedy = match (address, error.raw_os_error()) {
        (ListenAddress::Vsock(_), Some(nix::libc::EAFNOSUPPORT | nix::libc::ENODEV)) => {
            "the guest's kernel has no vsock: load vmw_vsock_virtio_transport, or give the VM a vsock device"
        }
        (ListenAddress::Unix(_), None) if error.kind() == io::ErrorKind::AlreadyExists => {
            "something that is no socket has that name: remove it, or listen elsewhere"
        }
        (_, Some(nix::libc::EADDRINUSE)) => "another agent, or another program, listens there",
        (ListenAddress::Unix(path), Some(nix::libc::ENOENT))
            if path.parent().is_some_and(|p| !p.exists()) =>
        {
            "the socket's folder does not exist"
        }
        (_, Some(nix::libc::EACCES | nix::libc::EPERM)) => "the agent's user may not listen there",
        _ => "see the listen setting",
    };
    format!("cannot listen on {address}: {error}; {remedy}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    fn key() -> VsockKey {
        VsockKey::new(&std::hash::RandomState::new())
    }

    #[tokio::test]
    async fn what_is_no_socket_is_never_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("file"), "precious").unwrap();
        std::fs::create_dir(path("folder")).unwrap();
        symlink("file", path("link")).unwrap();
        symlink("nowhere", path("dangling")).unwrap();
        drop(UnixListener::bind(path("left")).unwrap());
        symlink("left", path("link-to-a-socket")).unwrap();
        for name in ["file", "folder", "link", "dangling", "link-to-a-socket"] {
            let address = ListenAddress::Unix(path(name));
            let error = Listener::bind(&address, key()).unwrap_err();
            let told = explain(&address, &error);
            assert!(told.contains("no socket has that name"), "{told}");
            assert!(path(name).symlink_metadata().is_ok(), "{name} is gone");
        }
        assert_eq!(std::fs::read(path("file")).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn a_socket_that_was_left_is_replaced_and_one_that_is_in_use_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        drop(UnixListener::bind(&path).unwrap());
        let address = ListenAddress::Unix(path.clone());
        let listener = Listener::bind(&address, key()).unwrap();
        let error = Listener::bind(&address, key()).unwrap_err();
        assert!(explain(&address, &error).contains("listens there"));
        // Its own goes with it, another's does not.
        drop(listener);
        assert!(!path.exists());
        let listener = Listener::bind(&address, key()).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "another's").unwrap();
        drop(listener);
        assert_eq!(std::fs::read(&path).unwrap(), b"another's");
    }
}
