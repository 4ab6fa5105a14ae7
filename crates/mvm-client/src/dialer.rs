//! Who dials, and the handshakes that are under way.
//!
//! A handshake of hybrid vsock that is given up, which is a connection that is closed between CONNECT
//! and OK, can cost the guest its vsock for good: vhost-device-vsock 0.3.0 ends its only worker over
//! one. So none is: a handshake belongs to the [`Dialer`] and not to who waits for it. If nobody waits
//! any more, it is read to its end all the same, and the connection closed then.

use crate::handshake::{Fault, Opened, read_ok};
use mvm_protocol::handshake::connect_line;
use mvm_registry::Endpoint;
use rustix::net::SendFlags;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;
use tracing::Instrument as _;

/// How long a handshake that nobody waits for is kept open: longer than a guest takes to boot.
pub const FINISH_WITHIN: Duration = Duration::from_secs(120);

/// How many of them there may be of one endpoint. A further dial waits until there are fewer, so that
/// whoever dials a guest again and again that stands still does not fill its VMM with connections.
const MAX_ABANDONED: usize = 16;

/// Opens connections, and finishes each handshake that it begins: also one that took too long for who
/// asked for it, or whose future was dropped. Clones share the handshakes.
///
/// While the runtime runs they are finished by tasks on it. A program that ends calls
/// [`Dialer::finish`] for those that are finished in a moment, and [`Dialer::close`] for the rest,
/// which it can leave to another process.
#[derive(Debug, Clone, Default)]
pub struct Dialer {
    handshakes: Arc<Handshakes>,
}

#[derive(Debug, Default)]
struct Handshakes {
    state: Mutex<State>,
    /// One has been finished.
    fewer: Notify,
}

#[derive(Debug, Default)]
struct State {
    begun: u64,
    open: BTreeMap<u64, Handshake>,
    /// How many of them nobody waits for, of each endpoint that has any: whoever watches thousands of
    /// guests asks at each dial.
    abandoned: HashMap<Endpoint, usize>,
    is_closed: bool,
}

/// One that is under way.
#[derive(Debug)]
struct Handshake {
    endpoint: Endpoint,
    /// The task's that reads from it: it stays open with this one if the runtime is gone, and the task
    /// with it.
    socket: Arc<UnixStream>,
    is_abandoned: bool,
}

/// A socket on which a handshake is under way that its dialer does not finish any more.
#[derive(Debug)]
pub struct UnfinishedHandshake(Arc<UnixStream>);

impl AsFd for UnfinishedHandshake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Reads from a socket that is not its own alone.
struct Shared(Arc<UnixStream>);

impl AsyncRead for Shared {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match self.0.try_read(buffer.initialize_unfilled()) {
                Ok(count) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl State {
    fn remove(&mut self, number: u64) {
        let Some(handshake) = self.open.remove(&number) else {
            return;
        };
        if handshake.is_abandoned
            && let Some(count) = self.abandoned.get_mut(&handshake.endpoint)
        {
            *count -= 1;
            if *count == 0 {
                self.abandoned.remove(&handshake.endpoint);
            }
        }
    }
}

impl Handshakes {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_room(&self, endpoint: &Endpoint) -> bool {
        let abandoned = self.lock().abandoned.get(endpoint).copied();
        abandoned.unwrap_or_default() < MAX_ABANDONED
    }

    fn abandon(&self, number: u64) {
        let mut state = self.lock();
        let State {
            open, abandoned, ..
        } = &mut *state;
        if let Some(handshake) = open.get_mut(&number).filter(|one| !one.is_abandoned) {
            handshake.is_abandoned = true;
            *abandoned.entry(handshake.endpoint.clone()).or_default() += 1;
        }
    }

    fn remove(&self, number: u64) {
        self.lock().remove(number);
        self.fewer.notify_waiters();
    }

    /// Waits until it is so, looking each time that there is one fewer.
    async fn until(&self, is_so: impl Fn(&Self) -> bool) {
        loop {
            let fewer = self.fewer.notified();
            tokio::pin!(fewer);
            // From here on none is missed.
            fewer.as_mut().enable();
            if is_so(self) {
                return;
            }
            fewer.await;
        }
    }
}

impl Dialer {
    /// One without any handshake yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Waits until no handshake is under way, but no longer than that.
    pub async fn finish(&self, at_most: Duration) {
        let none = self
            .handshakes
            .until(|handshakes| handshakes.lock().open.is_empty());
        let _ = timeout(at_most, none).await;
    }

    /// Begins no handshake from now on, and gives the sockets of those that are under way: each has
    /// sent CONNECT and is to be kept open until a line, or the end, has come from it.
    pub fn close(&self) -> Vec<UnfinishedHandshake> {
        let mut state = self.handshakes.lock();
        state.is_closed = true;
        state.abandoned.clear();
        let open = std::mem::take(&mut state.open);
        open.into_values()
            .map(|handshake| UnfinishedHandshake(handshake.socket))
            .collect()
    }

    /// Waits until a handshake with that endpoint may be begun.
    pub(crate) async fn room(&self, endpoint: &Endpoint) {
        self.handshakes
            .until(|handshakes| handshakes.has_room(endpoint))
            .await;
    }

    /// Sends CONNECT on a socket that was just connected and does not block, and has the answer read.
    /// Nothing here waits: there is no moment at which a caller that gives up leaves the socket with
    /// half a handshake.
    pub(crate) fn begin(
        &self,
        stream: std::os::unix::net::UnixStream,
        endpoint: &Endpoint,
    ) -> Result<Answered, Fault> {
        let faulty = |source| Fault::of_handshake(endpoint, source);
        // Registered first: a handshake that has begun has to be readable.
        let stream = Arc::new(UnixStream::from_std(stream).map_err(faulty)?);
        let number = {
            let mut state = self.handshakes.lock();
            if state.is_closed {
                return Err(faulty(io::Error::other("this program is ending")));
            }
            state.begun += 1;
            let number = state.begun;
            let handshake = Handshake {
                endpoint: endpoint.clone(),
                socket: Arc::clone(&stream),
                is_abandoned: false,
            };
            state.open.insert(number, handshake);
            number
        };
        if let Err(error) = send_connect(&stream, endpoint.port()) {
            self.handshakes.remove(number);
            return Err(faulty(error));
        }
        let (mut answer, answered) = oneshot::channel();
        let handshakes = Arc::clone(&self.handshakes);
        let endpoint = endpoint.clone();
        let finishing = async move {
            let mut shared = Shared(stream);
            let read = {
                let reading = read_ok(&mut shared, &endpoint);
                tokio::pin!(reading);
                tokio::select! {
                    biased;
                    read = &mut reading => Some(read),
                    () = answer.closed() => timeout(FINISH_WITHIN, reading).await.ok(),
                }
            };
            handshakes.remove(number);
            // One that this program's end has taken is no longer this task's.
            if let (Some(read), Some(stream)) = (read, Arc::into_inner(shared.0)) {
                let opened = read.map(|early| Opened {
                    stream: Box::new(stream),
                    early,
                });
                let _ = answer.send(opened);
            }
        };
        tokio::spawn(finishing.in_current_span());
        Ok(Answered {
            answer: answered,
            number,
            handshakes: Arc::clone(&self.handshakes),
        })
    }
}

/// What waits for a handshake. It is abandoned if this is dropped before.
pub(crate) struct Answered {
    answer: oneshot::Receiver<Result<Opened, Fault>>,
    number: u64,
    handshakes: Arc<Handshakes>,
}

impl Answered {
    /// Waits for it to be finished.
    pub(crate) async fn wait(mut self) -> Result<Opened, Fault> {
        // Its sender goes without a word only if the runtime goes.
        (&mut self.answer).await.unwrap_or(Err(Fault::NoOk))
    }
}

impl Drop for Answered {
    fn drop(&mut self) {
        self.handshakes.abandon(self.number);
    }
}

/// Hybrid vsock wants it in one piece, and with nothing behind it. A socket that was just connected
/// has room for it.
fn send_connect(stream: &UnixStream, port: u32) -> io::Result<()> {
    let line = connect_line(port);
    tracing::trace!(target: crate::WIRE, "> {}", line.trim_end());
    match rustix::net::send(stream, line.as_bytes(), SendFlags::NOSIGNAL)? {
        count if count == line.len() => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}
