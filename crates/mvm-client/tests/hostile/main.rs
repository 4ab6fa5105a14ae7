//! The client against what does not behave: every fault has a variant of its own, comes within the
//! deadline, and takes no more memory than a frame.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod answers;
mod handshake;
mod sockets;

use mvm_client::{Awaited, Deadlines, Endpoint, Error, Session};
use mvm_fake_agent::{FakeAgent, Peer};
use std::time::Duration;

/// Short enough to wait for, long enough for a loaded machine.
const SHORT: Duration = Duration::from_millis(300);

/// So long that a test which runs into it has hung.
const LONG: Duration = Duration::from_secs(30);

fn unix(agent: &FakeAgent) -> Endpoint {
    Endpoint::unix(agent.path())
}

/// A ping with the same deadline for everything.
async fn ping_within(deadline: Duration, agent: &FakeAgent) -> Result<Duration, Error> {
    let mut session = Session::connect(&unix(agent), &Deadlines::all(deadline)).await?;
    session.ping().await
}

async fn ping(agent: &FakeAgent) -> Result<Duration, Error> {
    ping_within(LONG, agent).await
}

fn not_an_agent(result: Result<Duration, Error>) -> String {
    match result {
        Err(Error::NotAnAgent { got, .. }) => got,
        other => panic!("{other:?}"),
    }
}

/// At what the time was up.
fn timed_out(error: &Error) -> Awaited {
    match error {
        Error::TimedOut { awaited, .. } => *awaited,
        other => panic!("{other:?}"),
    }
}

/// An agent that shakes hands, waits for a request and then sends these bytes.
fn answering(bytes: &'static [u8]) -> FakeAgent {
    FakeAgent::start(move |peer: &mut Peer| {
        peer.shake_hands();
        peer.request();
        peer.send(bytes);
        peer.until_closed();
    })
}
