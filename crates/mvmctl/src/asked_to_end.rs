//! Signals that ask this process to end, when there is something to do first.

use std::task::Poll;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// From its making on none of them ends the process by itself.
#[derive(Debug)]
pub(crate) struct AskedToEnd([(i32, Signal); 4]);

impl AskedToEnd {
    /// Listens for INT, TERM, HUP and QUIT.
    pub(crate) fn new() -> std::io::Result<Self> {
        let listen =
            |kind: SignalKind| Ok::<_, std::io::Error>((kind.as_raw_value(), signal(kind)?));
        Ok(Self([
            listen(SignalKind::interrupt())?,
            listen(SignalKind::terminate())?,
            listen(SignalKind::hangup())?,
            listen(SignalKind::quit())?,
        ]))
    }

    /// The number of the next one.
    pub(crate) async fn next(&mut self) -> i32 {
        std::future::poll_fn(|context| {
            for (number, signals) in &mut self.0 {
                if let Poll::Ready(Some(())) = signals.poll_recv(context) {
                    return Poll::Ready(*number);
                }
            }
            Poll::Pending
        })
        .await
    }
}
