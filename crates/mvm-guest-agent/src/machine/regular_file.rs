//! Files that make the agent do something: read only if they are what they may be.

use super::descriptors::is_shortage;
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// Whether a file's owner and mode count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    /// In a guest: nobody but root and the agent's own user may be able to write it.
    Owner,
    /// On the machine that builds an image, where files belong to whoever builds.
    Anybody,
}

/// What becomes of a link in the file's own place. Links on the way to it are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Link {
    /// The file at its end counts.
    Followed,
    /// It is no file.
    Refused,
}

/// The content of a regular file of at most so many bytes. An error is told in words that follow on
/// its name.
///
/// # Errors
///
/// [`io::ErrorKind::NotFound`] if there is none; the kernel's own if descriptors or memory are lacking; any
/// other kind if it is not what it may be, or cannot be read.
pub(crate) fn read_regular(
    path: &Path,
    link: Link,
    trust: Trust,
    max: usize,
) -> io::Result<Vec<u8>> {
    // Without NONBLOCK a FIFO would hold the agent until somebody writes to it.
    let mut flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    flags.set(OFlags::NOFOLLOW, link == Link::Refused);
    let told = |what: &str, error: io::Error| {
        if is_shortage(&error) {
            return error;
        }
        io::Error::new(error.kind(), format!("cannot be {what}: {error}"))
    };
    let opened = rustix::fs::open(path, flags, Mode::empty());
    let file = File::from(opened.map_err(|error| match error {
        rustix::io::Errno::LOOP if link == Link::Refused => unfit("is a link, not a regular file"),
        error => told("opened", error.into()),
    })?);
    let meta = file.metadata().map_err(|error| told("read", error))?;
    if !meta.is_file() {
        let kind = meta.file_type();
        let kind = match () {
            () if kind.is_dir() => "a folder",
            () if kind.is_fifo() => "a FIFO",
            () if kind.is_socket() => "a socket",
            () => "a device",
        };
        return Err(unfit(format!("is {kind}, not a regular file")));
    }
    if trust == Trust::Owner {
        let own = rustix::process::geteuid().as_raw();
        if meta.uid() != 0 && meta.uid() != own {
            return Err(unfit(format!(
                "belongs to uid {}: it has commands run, so only root or the agent's own user may own it",
                meta.uid()
            )));
        }
        if meta.mode() & 0o022 != 0 {
            return Err(unfit(format!(
                "may be written by others (mode {:04o}): it has commands run; chmod go-w it",
                meta.mode() & 0o7777
            )));
        }
    }
    let mut content = Vec::with_capacity(usize::try_from(meta.len()).unwrap_or(0).min(max) + 1);
    file.take(u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1))
        .read_to_end(&mut content)
        .map_err(|error| told("read", error))?;
    if content.len() > max {
        return Err(unfit(format!("is larger than {max} bytes")));
    }
    Ok(content)
}

fn unfit(why: impl Into<String>) -> io::Error {
    io::Error::other(why.into())
}
