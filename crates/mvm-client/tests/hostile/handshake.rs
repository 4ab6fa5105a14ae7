//! From CONNECT to OK.

use super::{SHORT, not_an_agent, ping, ping_within};
use mvm_client::{Awaited, Error};
use mvm_fake_agent::{FakeAgent, Peer, well};
use mvm_protocol::ErrorCode;
use serde_json::json;
use std::time::{Duration, Instant};

#[tokio::test]
async fn ok_in_pieces_and_ok_with_a_frame() {
    let pieces = FakeAgent::start(|peer| {
        peer.expect_connect();
        for byte in b"OK 52\n" {
            peer.send(&[*byte]);
        }
        let id = peer.request().unwrap()["id"].clone();
        peer.answer(&json!({"type": "pong", "id": id}));
    });
    ping(&pieces).await.unwrap();

    // Firecracker can deliver OK and the first payload in one read: here an error frame that the
    // agent sends unasked, as it does when all connections are taken.
    let together = FakeAgent::start(|peer| {
        peer.expect_connect();
        let error =
            br#"{"type":"error","code":"too-many-connections","message":"full","retryable":true}"#;
        let mut bytes = b"OK 1073741824\n".to_vec();
        bytes.extend(mvm_protocol::frame::encode_json(error).unwrap());
        peer.send(&bytes);
    });
    let refused = ping(&together).await.unwrap_err();
    assert!(
        matches!(&refused, Error::Refused(error) if error.code == ErrorCode::TooManyConnections),
        "{refused:?}"
    );
    assert!(refused.is_retryable());
}

#[tokio::test]
async fn a_deadline_beyond_all_clocks_is_none() {
    let agent = FakeAgent::start(well);
    ping_within(Duration::MAX, &agent).await.unwrap();
}

#[tokio::test]
async fn strangers_are_told_by_what_they_say() {
    for (sent, shown) in [
        (
            b"HTTP/1.1 400 Bad Request\r\n\r\n".as_slice(),
            "HTTP/1.1 400",
        ),
        (b"SSH-2.0-x\r\n", "SSH-2.0-x"),
        (b"OK \n", "OK \\n"),
        (b"OK fifty-two\n", "fifty-two"),
        (b"no newline, and then silence", "no newline"),
        (b"OK 11111111111111111111111111111111111111111", "OK 111"),
        (b"\x1b]0;owned\x07\n", "\\u{1b}]0;owned\\u{7}\\n"),
        (b"\xff\xfe\x00\n", "\u{fffd}"),
    ] {
        let agent = FakeAgent::start(move |peer| {
            peer.expect_connect();
            peer.send(sent);
            peer.until_closed();
        });
        let got = not_an_agent(ping(&agent).await);
        assert!(got.contains(shown), "{got} does not show {shown}");
        assert_eq!(agent.accepted(), 1, "a stranger is not dialled twice");
    }
}

#[tokio::test]
async fn half_an_ok_is_not_nobody() {
    let agent = FakeAgent::start(|peer| {
        peer.expect_connect();
        peer.send(b"OK 5");
    });
    assert!(not_an_agent(ping(&agent).await).contains("OK 5"));
}

#[tokio::test]
async fn nobody_listening_is_asked_a_few_times() {
    let agent = FakeAgent::start(Peer::expect_connect);
    let error = ping(&agent).await.unwrap_err();
    assert!(matches!(error, Error::NobodyListening { .. }), "{error:?}");
    assert_eq!(agent.accepted(), 4);
}

#[tokio::test]
async fn one_collision_after_a_restore_goes_unnoticed() {
    let agent = FakeAgent::start(|peer| {
        if peer.number == 0 {
            peer.expect_connect();
        } else {
            well(peer);
        }
    });
    ping(&agent).await.unwrap();
    assert_eq!(agent.accepted(), 2);
}

#[tokio::test]
async fn further_tries_do_not_outlast_the_deadline() {
    let agent = FakeAgent::start(Peer::expect_connect);
    let error = ping_within(Duration::from_millis(10), &agent)
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::NobodyListening { .. } | Error::TimedOut { .. }
        ),
        "{error:?}"
    );
    assert!(agent.accepted() <= 1);
}

#[tokio::test]
async fn silence_ends_at_the_deadline_and_says_where() {
    let at = |awaited: Awaited, agent: FakeAgent| async move {
        let start = Instant::now();
        let error = ping_within(SHORT, &agent).await.unwrap_err();
        assert!(start.elapsed() >= SHORT);
        match error {
            Error::TimedOut {
                awaited: seen,
                after,
                ..
            } => assert_eq!((seen, after), (awaited, SHORT)),
            other => panic!("{other:?}"),
        }
    };
    at(Awaited::Handshake, FakeAgent::start(Peer::until_closed)).await;
    let silent = FakeAgent::start(|peer| {
        peer.shake_hands();
        peer.until_closed();
    });
    at(Awaited::Answer, silent).await;
}
