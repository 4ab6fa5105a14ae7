//! Unix sockets: dialled, and listened at, at a path of any length.
//!
//! By rustix, since neither std nor tokio goes through a folder's descriptor, or says that a queue is
//! full where it would wait for ever.

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect as connect_to, socket_with,
};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// A socket's path by way of its folder's descriptor, and that, as long as which it is good: a socket's
/// path may have 107 bytes, a folder's any number.
fn short(folder: &Path, name: &str) -> io::Result<(File, PathBuf)> {
    let folder = File::options()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
        .open(folder)?;
    let path = format!("/proc/self/fd/{}/{name}", folder.as_raw_fd());
    Ok((folder, path.into()))
}

/// Tries once to connect. It does not wait: with [`io::ErrorKind::WouldBlock`] somebody listens whose
/// queue is full. What is given does not block either.
///
/// # Errors
///
/// Those of the folder, and of connect(2).
pub fn connect(folder: &Path, name: &str) -> io::Result<OwnedFd> {
    let (_folder, path) = short(folder, name)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect_to(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Listens, in the place of a socket that is there: it is to be a dead one's. What is given does not
/// block.
///
/// # Errors
///
/// Those of the folder, and of bind(2).
pub fn listen(folder: &Path, name: &str) -> io::Result<UnixListener> {
    let (_folder, path) = short(folder, name)?;
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_any_length_will_do() {
        let above = tempfile::tempdir().unwrap();
        let folder = above.path().join("n".repeat(200));
        std::fs::create_dir(&folder).unwrap();
        for _ in 0..2 {
            let listener = listen(&folder, "x.sock").unwrap();
            let connected = connect(&folder, "x.sock").unwrap();
            assert!(listener.accept().is_ok());
            drop(connected);
        }
        let error = connect(&folder, "x.sock").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
