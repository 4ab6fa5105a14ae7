//! Every handshake that was begun is finished, whoever waits for it.

#![allow(clippy::unwrap_used, reason = "tests")]

use mvm_client::{Awaited, Deadlines, Dialer, Endpoint, Error};
use mvm_fake_agent::{FakeAgent, Peer, well};
use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(50);

fn late() -> (FakeAgent, Endpoint) {
    let agent = FakeAgent::start(|peer: &mut Peer| {
        peer.shake_hands_late();
    });
    let endpoint = Endpoint::unix(agent.path());
    (agent, endpoint)
}

/// What is waited for on another thread, while this one runs what finishes handshakes.
async fn elsewhere<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

#[tokio::test]
async fn a_handshake_outlives_the_deadline_of_its_caller() {
    let (agent, endpoint) = late();
    let dialer = Dialer::new();
    let error = dialer
        .connect(&endpoint, &Deadlines::all(SHORT))
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::TimedOut {
                awaited: Awaited::Handshake,
                ..
            }
        ),
        "{error:?}"
    );
    agent.release();
    assert_eq!(elsewhere(move || agent.given_up_of(1)).await, 0);
    dialer.finish(LONG).await;
    assert!(dialer.close().is_empty());
}

#[tokio::test]
async fn a_handshake_outlives_the_future_that_began_it() {
    let (agent, endpoint) = late();
    let dialer = Dialer::new();
    for _ in 0..10 {
        let deadlines = Deadlines::all(LONG);
        let mut dialling = Box::pin(dialer.connect(&endpoint, &deadlines));
        let first = poll_fn(|context| Poll::Ready(dialling.as_mut().poll(context))).await;
        assert!(first.is_pending());
    }
    agent.release();
    assert_eq!(elsewhere(move || agent.given_up_of(10)).await, 0);
}

#[tokio::test]
async fn a_handshake_is_handed_over_whole_when_the_program_ends() {
    let (agent, endpoint) = late();
    let dialer = Dialer::new();
    let runtime = std::thread::spawn({
        let (dialer, endpoint) = (dialer.clone(), endpoint.clone());
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let deadlines = Deadlines::all(SHORT);
            let connected = runtime.block_on(dialer.connect(&endpoint, &deadlines));
            connected.unwrap_err();
            // The runtime ends here, and the task with it.
        }
    });
    runtime.join().unwrap();
    let sockets = dialer.close();
    assert_eq!(sockets.len(), 1);
    agent.release();
    assert_eq!(elsewhere(move || agent.given_up_of(1)).await, 0);
    let mut line = [0; 32];
    let count = rustix::io::read(&sockets[0], &mut line).unwrap();
    assert!(line[..count].starts_with(b"OK "));

    // Nothing is begun that nobody would finish.
    let agent = FakeAgent::start(well);
    let endpoint = Endpoint::unix(agent.path());
    let error = dialer.connect(&endpoint, &Deadlines::all(LONG)).await;
    assert!(error.unwrap_err().to_string().contains("is ending"));
}

#[tokio::test]
async fn a_guest_that_stands_still_is_not_buried_in_connections() {
    let (agent, endpoint) = late();
    let dialer = Dialer::new();
    let short = Deadlines::all(Duration::from_millis(5));
    for _ in 0..40 {
        let connected = dialer.connect(&endpoint, &short);
        assert!(matches!(
            connected.await.unwrap_err(),
            Error::TimedOut { .. }
        ));
    }
    agent.until_begun(16);
    assert_eq!(agent.accepted(), 16);
    // Another guest is none of their business.
    let other = FakeAgent::start(well);
    let deadlines = Deadlines::all(LONG);
    let mut session = dialer
        .connect(&Endpoint::unix(other.path()), &deadlines)
        .await
        .unwrap();
    session.ping().await.unwrap();
    // One that is waited for is let in as soon as those before it are finished.
    let connecting = dialer.connect(&endpoint, &deadlines);
    agent.release();
    connecting.await.unwrap();
    assert_eq!(elsewhere(move || agent.given_up_of(17)).await, 0);
}
