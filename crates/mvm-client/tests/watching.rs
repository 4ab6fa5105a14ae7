//! Watching: the status first, then events, until the guest is lost, closed or about to be frozen.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

use mvm_client::watch::{Applied, MOST_INTEGRATIONS, MOST_TEXT, apply};
use mvm_client::{Awaited, Deadlines, Endpoint, Error, Session, Watcher};
use mvm_fake_agent::{FakeAgent, Peer, ever_new_names, old, status};
use mvm_protocol::answer::Change;
use mvm_protocol::status::{Health, Lifecycle, Status, WorkerState};
use serde_json::{Value, json};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(30);
const HEARTBEAT: Duration = Duration::from_millis(100);

/// An agent that answers `watch` with a healthy status, sends these events and falls silent.
fn telling(events: Vec<Value>) -> FakeAgent {
    FakeAgent::start(move |peer: &mut Peer| {
        peer.shake_hands();
        let request = peer.request().unwrap();
        assert_eq!(request["type"], "watch");
        let id = request["id"].clone();
        let mut first = status("healthy");
        first["id"] = id.clone();
        peer.answer(&first);
        for event in &events {
            let mut event = event.clone();
            event["type"] = "event".into();
            event["at"] = "2026-11-24T06:02:11.123Z".into();
            event["id"] = id.clone();
            peer.answer(&event);
        }
        peer.until_closed();
    })
}

async fn watch(agent: &FakeAgent, heartbeat: Duration) -> (Status, Watcher) {
    let endpoint = Endpoint::unix(agent.path());
    let session = Session::connect(&endpoint, &Deadlines::all(LONG))
        .await
        .unwrap();
    Watcher::start(session, heartbeat).await.unwrap()
}

fn busy() -> Value {
    json!({"worker": {
        "state": "busy", "since": "2026-11-24T06:02:11Z", "last_busy_at": null,
        "because": ["loadavg"], "load1": 1.5, "runnable": 3,
    }})
}

#[tokio::test]
async fn changes_bring_the_status_up_to_date() {
    let sick = status("unhealthy")["integrations"][0].clone();
    let mut other = sick.clone();
    other["name"] = "other".into();
    other["health"] = "healthy".into();
    let agent = telling(vec![
        busy(),
        json!({"integration": sick}),
        json!({"integration": other}),
        json!({"weather": "of a newer agent"}),
        json!({"lifecycle": "preparing"}),
        json!({"drop_ins": {"integrations": 3, "probes": 1, "errors": []}}),
    ]);
    let (mut status, mut watcher) = watch(&agent, LONG).await;
    assert_eq!(status.health, Health::Healthy);
    let mut next = async || {
        let event = watcher.next().await.unwrap().unwrap();
        (apply(&mut status, &event.change), status.clone())
    };
    let (_, status) = next().await;
    assert_eq!(status.worker.state, WorkerState::Busy);
    let (_, status) = next().await;
    assert_eq!(status.health, Health::Unhealthy);
    assert_eq!(status.integrations.len(), 1);
    let (_, status) = next().await;
    assert_eq!(status.integrations.len(), 2);
    let (applied, status) = next().await;
    assert_eq!(
        status.lifecycle,
        Lifecycle::Preparing,
        "an unknown event is passed over"
    );
    assert_eq!(applied, Applied::Shown);
    assert_eq!(next().await.0, Applied::Stale);
}

#[tokio::test]
async fn a_verdict_that_is_not_known_is_not_taken_for_a_better_one() {
    let with = |name: &str, health: &str| {
        let mut one = status("healthy")["integrations"][0].clone();
        one["name"] = name.into();
        one["health"] = health.into();
        json!({"integration": one})
    };
    let agent = telling(vec![
        with("odd", "flapping"),
        with("sick", "unhealthy"),
        with("sick", "healthy"),
        with("odd", "starting"),
    ]);
    let (mut status, mut watcher) = watch(&agent, LONG).await;
    for expected in ["flapping", "unhealthy", "flapping", "starting"] {
        let event = watcher.next().await.unwrap().unwrap();
        apply(&mut status, &event.change);
        assert_eq!(serde_json::to_value(status.health).unwrap(), expected);
    }
}

#[tokio::test]
async fn a_guest_that_falls_silent_is_lost() {
    let agent = telling(vec![json!({"heartbeat": true})]);
    let (_, mut watcher) = watch(&agent, HEARTBEAT).await;
    let event = watcher.next().await.unwrap().unwrap();
    assert_eq!(event.change, Change::Heartbeat { heartbeat: true });
    match watcher.next().await.unwrap_err() {
        Error::TimedOut { awaited, after, .. } => {
            assert_eq!((awaited, after), (Awaited::Event, HEARTBEAT * 3));
        }
        other => panic!("{other:?}"),
    }
    assert!(
        watcher.next().await.unwrap().is_none(),
        "an error ends the watch"
    );
}

#[tokio::test]
async fn a_guest_about_to_be_frozen_is_let_go() {
    let (closed, was_closed) = std::sync::mpsc::channel();
    let agent = FakeAgent::start(move |peer: &mut Peer| {
        peer.shake_hands();
        let id = peer.request().unwrap()["id"].clone();
        let mut first = status("healthy");
        first["id"] = id.clone();
        peer.answer(&first);
        peer.answer(&json!({
            "type": "event", "at": "2026-11-24T06:02:11Z", "lifecycle": "ready", "id": id
        }));
        peer.until_closed();
        closed.send(()).unwrap();
    });
    let (_, mut watcher) = watch(&agent, LONG).await;
    let event = watcher.next().await.unwrap().unwrap();
    let lifecycle = Lifecycle::Ready.into();
    assert_eq!(event.change, Change::Lifecycle { lifecycle });
    // The watcher is still alive, and yet the connection is closed: the host has to close first.
    was_closed.recv_timeout(LONG).unwrap();
    assert!(watcher.next().await.unwrap().is_none());
}

#[tokio::test]
async fn a_guest_that_is_ready_already_is_let_go() {
    let (closed, was_closed) = std::sync::mpsc::channel();
    let agent = FakeAgent::start(move |peer: &mut Peer| {
        peer.shake_hands();
        let mut first = status("healthy");
        first["id"] = peer.request().unwrap()["id"].clone();
        first["lifecycle"] = "ready".into();
        peer.answer(&first);
        peer.until_closed();
        closed.send(()).unwrap();
    });
    let (status, mut watcher) = watch(&agent, LONG).await;
    assert_eq!(status.lifecycle, Lifecycle::Ready);
    // No event of its becoming ready will come any more: it was ready before the watch.
    was_closed.recv_timeout(LONG).unwrap();
    assert!(watcher.next().await.unwrap().is_none());
}

#[tokio::test]
async fn an_agent_without_watch_is_told_by_its_hello() {
    let agent = FakeAgent::start(old);
    let endpoint = Endpoint::unix(agent.path());
    let session = Session::connect(&endpoint, &Deadlines::all(LONG))
        .await
        .unwrap();
    match Watcher::start(session, LONG).await.unwrap_err() {
        Error::TooOld {
            request,
            agent_version,
        } => assert_eq!((request, agent_version.as_str()), ("watch", "0.0.9")),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_ends_a_watch() {
    let closing = FakeAgent::start(|peer| {
        peer.shake_hands();
        let id = peer.request().unwrap()["id"].clone();
        let mut first = status("healthy");
        first["id"] = id;
        peer.answer(&first);
    });
    let (_, mut watcher) = watch(&closing, LONG).await;
    let error = watcher.next().await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::Closed {
                awaited: Awaited::Event,
                ..
            }
        ),
        "{error:?}"
    );

    let refusing = FakeAgent::start(|peer| {
        peer.shake_hands();
        let id = peer.request().unwrap()["id"].clone();
        peer.answer(&json!({
            "type": "error", "code": "busy", "message": "later", "retryable": true, "id": id
        }));
    });
    let endpoint = Endpoint::unix(refusing.path());
    let session = Session::connect(&endpoint, &Deadlines::all(LONG))
        .await
        .unwrap();
    let error = Watcher::start(session, LONG).await.unwrap_err();
    assert!(matches!(error, Error::Refused(_)), "{error:?}");
}

/// Events until the status cannot be kept, of an agent that tells of ever new integrations.
async fn kept_of(text: usize) -> Status {
    let agent = FakeAgent::start(move |peer: &mut Peer| ever_new_names(peer, text));
    let (mut status, mut watcher) = watch(&agent, LONG).await;
    for _ in 0..20_000 {
        let event = watcher.next().await.unwrap().unwrap();
        if apply(&mut status, &event.change) == Applied::Stale {
            return status;
        }
    }
    panic!("{} integrations are kept", status.integrations.len());
}

#[tokio::test]
async fn no_flood_makes_a_status_grow_without_bound() {
    // By their number, and by their text.
    let many = kept_of(8).await;
    assert_eq!(many.integrations.len(), MOST_INTEGRATIONS);
    let large = kept_of(100_000).await;
    let text: usize = large.integrations.iter().map(|one| one.name.len()).sum();
    assert!(text <= MOST_TEXT, "{text}");
    assert!(large.integrations.len() > 5);
}
