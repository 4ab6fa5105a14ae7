//! Descriptors in the runtime: one place for the one promise that the runtime asks for.

use rustix::fd::OwnedFd;
use rustix::io::Errno;
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

/// Waits until something arrives that is looked for. `next` takes one thing from the descriptor and says
/// whether it is that; by the error `lost` it says that some are gone, which is none.
pub(crate) async fn arrives(
    fd: &AsyncFd<OwnedFd>,
    lost: Errno,
    next: impl Fn(&OwnedFd) -> Result<bool, Errno>,
) -> io::Result<()> {
    loop {
        let mut guard = fd.readable().await?;
        match next(fd.get_ref()) {
            Ok(true) => return Ok(()),
            Ok(false) | Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => guard.clear_ready(),
            Err(error) if error == lost => {}
            Err(error) => return Err(error.into()),
        }
    }
}
