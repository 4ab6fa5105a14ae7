//! Descriptors and memory that are lacking for a while, and descriptors that hosts do not get.
//!
//! Hosts can have more open than the agent may have: connections, commands, files, ports. What the agent
//! does on its own needs descriptors as well: a check, a sample, the journal, the thaw of a guest that
//! wakes. So the last ones are kept back for that, and a host is refused before they are used up.
//!
//! The agent takes more of them than it is given at first (mostly 1024), and what it starts gets as many as
//! that again: a program that uses select(2) may not expect more.

use rustix::fd::{AsFd, AsRawFd};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io;

/// How many are kept back: a few for each of the 32 checks that run at once by default, and some for the
/// rest. Where the agent may have few, a quarter of them.
const KEPT_BACK: u64 = 128;

/// How many the agent takes, if it may: each of 512 connections can have a command, and be waited for until
/// it reads.
const WANTED: u64 = 8192;

/// Takes as many as may be. Gives the limit that was, for what is started.
pub(super) fn raise_limit() -> Option<Rlimit> {
    let before = getrlimit(Resource::Nofile);
    let wanted = before.maximum.map_or(WANTED, |most| most.min(WANTED));
    let raised = Rlimit {
        current: Some(wanted),
        ..before
    };
    let is_more = before.current.is_some_and(|current| current < wanted);
    (is_more && setrlimit(Resource::Nofile, raised).is_ok()).then_some(before)
}

/// Whether a descriptor that was just opened for a host is one of those that are kept back. The kernel
/// gives the lowest number that is free, so all below it are in use.
pub(crate) fn is_kept_back(fd: impl AsFd) -> bool {
    let Some(limit) = getrlimit(Resource::Nofile).current else {
        return false;
    };
    let number = u64::from(fd.as_fd().as_raw_fd().unsigned_abs());
    number >= limit - kept_back(limit)
}

fn kept_back(limit: u64) -> u64 {
    KEPT_BACK.min(limit / 4)
}

/// How many hosts at once may be told that there is no room for them, each of which has one of those that
/// are kept back: a quarter of these, and two in any case.
pub(crate) fn most_refusals() -> usize {
    let kept_back = getrlimit(Resource::Nofile)
        .current
        .map_or(KEPT_BACK, kept_back);
    usize::try_from(kept_back / 4).unwrap_or_default().max(2)
}

/// Refuses a descriptor that is kept back, as the kernel refuses those beyond the limit.
pub(crate) fn for_a_host<F: AsFd>(fd: F) -> io::Result<F> {
    if is_kept_back(&fd) {
        return Err(Errno::MFILE.into());
    }
    Ok(fd)
}

/// Whether something could not be looked at since descriptors or memory are lacking: that says nothing of
/// what is there.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM)
    )
}
