//! Descriptors in the runtime: one place for the one promise that the runtime asks for.

use rustix::fd::OwnedFd;
use std::io;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor whose readiness can be waited for.
#[expect(
    unsafe_code,
    reason = "the runtime cannot see that an OwnedFd keeps its descriptor"
)]
pub(crate) fn polled(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` owns its descriptor, gives the same one each time, and is dropped after
    // the `AsyncFd` has deregistered it.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}
