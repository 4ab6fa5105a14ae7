//! Descriptors in the runtime: one place for the promise that the runtime asks for, and for the turns of
//! those who wait for them.

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::io;
use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};
use tokio::task::coop::consume_budget;

/// A descriptor whose readiness can be waited for.
///
/// The runtime's own sockets end a task's turn after so many reads, and `AsyncFd::ready` does not (tokio
/// 1.54): whoever finds bytes each time that it looks is never made to wait, and keeps the one thread
/// there is. With one CPU that is so for as long as the other end writes whenever it is read from.
#[derive(Debug)]
pub(crate) struct Polled(AsyncFd<OwnedFd>);

impl Polled {
    /// Has it watched for that.
    #[expect(
        unsafe_code,
        reason = "the runtime cannot see that an OwnedFd keeps its descriptor"
    )]
    pub(crate) fn new(fd: OwnedFd, interest: Interest) -> io::Result<Self> {
        // SAFETY: an `OwnedFd` owns its descriptor, gives the same one each time, and is dropped after
        // the `AsyncFd` has deregistered it.
        Ok(Self(unsafe {
            AsyncFd::register_with_interest(fd, interest)
        }?))
    }

    /// The descriptor itself.
    pub(crate) fn get_ref(&self) -> &OwnedFd {
        self.0.get_ref()
    }

    /// Waits until it is ready for any of that. To be dropped at any time.
    pub(crate) async fn ready(
        &self,
        interest: Interest,
    ) -> io::Result<AsyncFdReadyGuard<'_, OwnedFd>> {
        let guard = self.0.ready(interest).await?;
        consume_budget().await;
        Ok(guard)
    }

    /// Waits until it can be read from.
    pub(crate) async fn readable(&self) -> io::Result<AsyncFdReadyGuard<'_, OwnedFd>> {
        self.ready(Interest::READABLE).await
    }

    /// Waits until it can be written to.
    pub(crate) async fn writable(&self) -> io::Result<AsyncFdReadyGuard<'_, OwnedFd>> {
        self.ready(Interest::WRITABLE).await
    }

    /// Does it at once, and remembers that it is not ready if that would block.
    pub(crate) fn try_io<T>(
        &self,
        interest: Interest,
        io: impl FnOnce(&OwnedFd) -> io::Result<T>,
    ) -> io::Result<T> {
        self.0.try_io(interest, io)
    }
}

/// Waits until something arrives that is looked for. `next` takes one thing from the descriptor and says
/// whether it is that; by the error `lost` it says that some are gone, which is none.
pub(crate) async fn arrives(
    fd: &Polled,
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

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use std::cell::Cell;
    use std::rc::Rc;
    use tokio::task::{LocalSet, spawn_local};

    /// Something that never has to be waited for.
    fn always_readable() -> Polled {
        let fd = eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        Polled::new(fd, Interest::READABLE).unwrap()
    }

    /// Whether somebody else had a turn before that many things had been found.
    async fn others_have_a_turn_within(things: usize, find: impl AsyncFn(&Polled)) -> bool {
        let story = async {
            let fd = always_readable();
            let had = Rc::new(Cell::new(false));
            let other = Rc::clone(&had);
            // What is ready is known from here on.
            drop(fd.readable().await.unwrap());
            spawn_local(async move { other.set(true) });
            for _ in 0..things {
                find(&fd).await;
            }
            had.get()
        };
        LocalSet::new().run_until(story).await
    }

    #[tokio::test]
    async fn whoever_always_finds_something_lets_others_have_their_turn() {
        let find = async |fd: &Polled| drop(fd.readable().await.unwrap());
        assert!(others_have_a_turn_within(1000, find).await);
    }

    #[tokio::test]
    async fn whoever_looks_for_one_among_many_lets_others_have_their_turn() {
        let find = async |fd: &Polled| {
            let left = Cell::new(1000);
            let next = |_: &OwnedFd| Ok(left.replace(left.get() - 1) == 0);
            arrives(fd, Errno::NOBUFS, next).await.unwrap();
        };
        assert!(others_have_a_turn_within(1, find).await);
    }
}
