//! Sockets in folders of any depth: a socket's path may have 107 bytes (unix(7)), a target folder's
//! more.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

/// A path of this process that leads to the same socket by way of its folder's descriptor.
#[derive(Debug)]
pub(crate) struct ShortPath {
    path: PathBuf,
    // The path is good as long as this is open.
    _folder: File,
}

impl ShortPath {
    pub(crate) fn of(socket: &Path) -> Self {
        let folder = socket.parent().expect("a folder");
        let folder = File::open(folder).expect("open a folder");
        let name = socket.file_name().expect("a name");
        let path = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name);
        Self {
            path,
            _folder: folder,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}
