//! Sockets that a service manager has opened, and passed (`LISTEN_FDS`).

use super::listener::Listener;
use crate::report::Failure;
use rustix::net::AddressFamily;
use rustix::net::sockopt::{socket_acceptconn, socket_domain};
use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};
use tokio::net::{TcpListener, UnixListener};

/// Those that were passed; none if this program was started otherwise.
///
/// # Errors
///
/// One that nobody can connect to.
pub(super) fn listeners() -> Result<Vec<Listener>, Failure> {
    let refused = |error: io::Error| {
        Failure::failed(format!("a socket that was passed cannot be used: {error}"))
            .hint("the unit of the socket has to have ListenStream=, and Accept=no")
    };
    let passed = sd_notify::listen_fds().map_err(refused)?;
    let mut listeners = Vec::new();
    for number in passed {
        #[expect(unsafe_code, reason = "what was passed is known by its number alone")]
        // SAFETY: it was passed to this process (LISTEN_PID says so), and nobody else here takes it.
        let fd = unsafe { OwnedFd::from_raw_fd(number) };
        listeners.push(listener(fd).map_err(refused)?);
    }
    Ok(listeners)
}

fn listener(fd: OwnedFd) -> io::Result<Listener> {
    if !socket_acceptconn(&fd)? {
        return Err(io::Error::other("it does not listen"));
    }
    match socket_domain(&fd)? {
        AddressFamily::UNIX => {
            let listener = std::os::unix::net::UnixListener::from(fd);
            listener.set_nonblocking(true)?;
            Ok(Listener::Unix(UnixListener::from_std(listener)?))
        }
        AddressFamily::INET | AddressFamily::INET6 => {
            let listener = std::net::TcpListener::from(fd);
            listener.set_nonblocking(true)?;
            Ok(Listener::Tcp(TcpListener::from_std(listener)?))
        }
        other => Err(io::Error::other(format!("it is of the family {other:?}"))),
    }
}
