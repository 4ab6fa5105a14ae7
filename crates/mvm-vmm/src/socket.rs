//! Unix sockets: dialled at a path of any length.
//!
//! By rustix, since neither std nor tokio dials through a folder's descriptor, or says that a queue
//! is full where it would wait for ever.

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect as connect_to, socket_with,
};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Tries once to connect, by way of the folder's descriptor: a socket's path may have 107 bytes, a
/// folder's any number. It does not wait: with [`io::ErrorKind::WouldBlock`] somebody listens whose
/// queue is full. What is given does not block either.
pub(crate) fn connect(folder: &Path, name: &str) -> io::Result<OwnedFd> {
    let folder = File::options()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
        .open(folder)?;
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()))?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect_to(&socket, &address)?;
    Ok(socket)
}
