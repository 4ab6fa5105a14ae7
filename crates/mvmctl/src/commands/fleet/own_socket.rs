//! The socket in `$MVM_HOME` at which `mvmctl fleet status` and its like ask the server, for its user
//! alone.
//!
//! It is reached by way of the folder's descriptor: a socket's path has 107 bytes at most, a folder's
//! any number.

use rustix::fd::{AsRawFd as _, OwnedFd};
use rustix::fs::{Mode, OFlags};
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use tokio::net::{UnixListener, UnixStream};

/// Its name.
pub(super) const SOCKET: &str = "fleet.sock";

/// Its path, good as long as the descriptor is open.
fn short(folder: &Path) -> io::Result<(OwnedFd, PathBuf)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(folder, flags, Mode::empty())?;
    let path = format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd());
    Ok((folder, path.into()))
}

/// Listens. Whoever serves this fleet holds its lock, so a socket that is there is a dead one's.
pub(super) fn bind(folder: &Path) -> io::Result<UnixListener> {
    let (_folder, path) = short(folder)?;
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Connects to the server.
pub(super) async fn connect(folder: &Path) -> io::Result<UnixStream> {
    let (_folder, path) = short(folder)?;
    UnixStream::connect(path).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_folder_of_any_length_will_do() {
        let above = tempfile::tempdir().unwrap();
        let folder = above.path().join("n".repeat(200));
        std::fs::create_dir(&folder).unwrap();
        for _ in 0..2 {
            let listener = bind(&folder).unwrap();
            let (connected, accepted) = tokio::join!(connect(&folder), listener.accept());
            assert!(connected.is_ok() && accepted.is_ok());
            let mode = std::fs::metadata(folder.join(SOCKET)).unwrap();
            assert_eq!(mode.permissions().mode() & 0o777, 0o600);
        }
        let error = connect(&folder).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
