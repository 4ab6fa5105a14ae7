//! Connections: how many there may be, and for how long each.

use super::answers::{Answers, answer};
use super::guarded::Guarded;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};

/// How many connections there may be of one sort. Who comes beyond waits in the kernel's queue.
pub(super) const MAX_CONNECTIONS: usize = 64;

/// How long a request's head may take to come. A connection without a request is closed after it, too.
const HEAD_WITHIN: Duration = Duration::from_secs(15);

/// The most that a request's head may have, in bytes: the least that hyper lets be set.
const MAX_HEAD: usize = 8192;

/// The most headers of a request. Prometheus sends six.
const MAX_HEADERS: usize = 64;

/// A connection, of whichever sort.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Serves one connection until it is closed, or is to be.
pub(super) async fn serve(
    stream: Box<dyn Stream>,
    answers: Arc<Answers>,
    mut ending: watch::Receiver<bool>,
) {
    let service = service_fn(move |request| {
        let answers = Arc::clone(&answers);
        async move { Ok::<_, Infallible>(answer(&answers, &request).await) }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .half_close(false);
    let connection = builder.serve_connection(TokioIo::new(Guarded::new(stream)), service);
    let mut connection = pin!(connection);
    // What a client does wrong is its own affair.
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = ending.wait_for(|ending| *ending) => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// Counts connections, and tells when all are closed.
#[derive(Debug, Clone)]
pub(super) struct Room(Arc<Semaphore>);

impl Room {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(MAX_CONNECTIONS)))
    }

    /// Waits until there is room for one more.
    pub(super) async fn enter(&self) -> Option<tokio::sync::OwnedSemaphorePermit> {
        Arc::clone(&self.0).acquire_owned().await.ok()
    }

    /// Waits until there is none.
    pub(super) async fn empty(&self) {
        let all = u32::try_from(MAX_CONNECTIONS).unwrap_or(u32::MAX);
        let _ = self.0.acquire_many(all).await;
    }
}
