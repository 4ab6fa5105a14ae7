//! From a request to its answer.

use super::{LONG, SHORT, answering, not_an_agent, ping, ping_within, timed_out, unix};
use mvm_client::{Awaited, Deadlines, Error, Session};
use mvm_fake_agent::{FakeAgent, old, well};
use mvm_protocol::frame::encode_json;
use mvm_protocol::request::{Check, CheckKind};
use mvm_protocol::{Answer, ErrorCode, Request};
use serde_json::json;
use std::time::Duration;

#[tokio::test]
async fn a_good_agent_is_understood() {
    let agent = FakeAgent::start(well);
    let mut session = Session::connect(&unix(&agent), &Deadlines::all(LONG))
        .await
        .unwrap();
    session.ping().await.unwrap();
    assert_eq!(session.hello().await.unwrap().protocol, 1);
    assert_eq!(session.status().await.unwrap().integrations.len(), 1);
    assert_eq!(session.inspect().await.unwrap().probes.len(), 1);
    let check = |name: &str| Check {
        kind: CheckKind::Probe,
        name: name.into(),
    };
    let checked = session.check(check("disk-usage")).await.unwrap();
    assert_eq!(checked.probe.unwrap().value, "42%");
    let refused = session.check(check("nothing")).await;
    assert!(matches!(&refused, Err(Error::Refused(error)) if error.code == ErrorCode::NotFound));
    // A refusal ends nothing.
    assert_eq!(session.reload().await.unwrap().probes, 1);
}

#[tokio::test]
async fn what_is_no_answer_is_told_in_a_few_words() {
    let kind = "x".repeat(200_000);
    for body in [
        json!({"type": kind, "id": 1}),
        json!({"type": "reloaded", "integrations": kind, "probes": 0, "errors": [], "id": 1}),
    ] {
        let frame = encode_json(body.to_string().as_bytes()).unwrap();
        let agent = FakeAgent::start(move |peer| {
            peer.shake_hands();
            peer.request();
            peer.send(&frame);
            peer.until_closed();
        });
        let got = not_an_agent(ping(&agent).await);
        assert!(got.len() < 1200, "{} bytes", got.len());
    }
}

#[tokio::test]
async fn a_drip_is_no_answer() {
    // A byte now and then restarts no deadline: it is the whole answer that has to come in time.
    let agent = FakeAgent::start(|peer| {
        peer.shake_hands();
        peer.send(&200_000_u32.to_be_bytes());
        while peer.send(b" ") {
            std::thread::sleep(SHORT / 20);
        }
    });
    let error = ping_within(SHORT, &agent).await.unwrap_err();
    assert_eq!(timed_out(&error), Awaited::Answer);
}

#[tokio::test]
async fn closing_after_ok_or_in_an_answer() {
    for sent in [b"".as_slice(), b"\0\0", b"\0\0\0\x10{\"type\""] {
        let agent = FakeAgent::start(move |peer| {
            peer.shake_hands();
            peer.send(sent);
        });
        let error = ping(&agent).await.unwrap_err();
        assert!(
            matches!(
                error,
                Error::Closed {
                    awaited: Awaited::Answer,
                    ..
                }
            ),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn answers_that_are_none() {
    for (bytes, shown) in [
        (b"\x00\x04\x00\x01".as_slice(), "a frame of 262145 bytes"),
        (b"\x7f\xff\xff\xff", "a frame of 2147483647 bytes"),
        (b"\x80\0\0\x02\x01x", "raw bytes"),
        (b"\x80\0\0\0", "raw bytes"),
        (b"\0\0\0\x03abc", "abc"),
        (b"\0\0\0\x02[]", "[]"),
        (b"\0\0\0\x0f{\"type\":\"pong\"}", "without the number"),
        (b"\0\0\0\x16{\"type\":\"pong\",\"id\":7}", "numbered 7"),
        (b"\0\0\0\x17{\"type\":\"pong\",\"id\":-1}", "-1"),
        (
            b"\0\0\0\x17{\"type\":\"flood\",\"id\":1}",
            "unknown variant",
        ),
    ] {
        let got = not_an_agent(ping(&answering(bytes)).await);
        assert!(got.contains(shown), "{got} does not show {shown}");
    }
}

#[tokio::test]
async fn deep_nesting_is_no_answer() {
    let agent = FakeAgent::start(|peer| {
        peer.shake_hands();
        peer.request();
        let body = format!("{}{}", "{\"a\":".repeat(40_000), "1".repeat(10));
        peer.send(&encode_json(body.as_bytes()).unwrap());
        peer.until_closed();
    });
    not_an_agent(ping(&agent).await);
}

#[tokio::test]
async fn the_answer_to_another_question() {
    let agent = FakeAgent::start(|peer| {
        peer.shake_hands();
        let id = peer.request().unwrap()["id"].clone();
        peer.answer(
            &json!({"type": "reloaded", "integrations": 0, "probes": 0, "errors": [], "id": id}),
        );
        peer.until_closed();
    });
    assert!(not_an_agent(ping(&agent).await).contains("to the request `ping`"));
}

#[tokio::test]
async fn an_agent_that_never_reads() {
    // More requests than a socket's buffer holds: the write cannot end.
    let agent = FakeAgent::start(|peer| {
        peer.shake_hands();
        peer.stall();
    });
    let mut session = Session::connect(&unix(&agent), &Deadlines::all(SHORT))
        .await
        .unwrap();
    let error = session
        .pipeline(&vec![Request::Ping; 100_000])
        .await
        .unwrap_err();
    assert_eq!(timed_out(&error), Awaited::Answer);
}

#[tokio::test]
async fn any_number_of_requests_can_be_pipelined() {
    // Neither side's buffer holds them all: writing and reading have to go on together.
    let agent = FakeAgent::start(well);
    let mut session = Session::connect(&unix(&agent), &Deadlines::all(LONG))
        .await
        .unwrap();
    let answers = session
        .pipeline(&vec![Request::Status; 2000])
        .await
        .unwrap();
    assert_eq!(answers.len(), 2000);
    assert!(
        answers
            .iter()
            .all(|answer| matches!(answer, Ok(Answer::Status(_))))
    );
    session.ping().await.unwrap();
}

#[tokio::test]
async fn a_session_out_of_step_is_not_used_again() {
    let agent = FakeAgent::start(|peer| {
        peer.shake_hands();
        peer.until_closed();
    });
    let mut session = Session::connect(&unix(&agent), &Deadlines::all(LONG))
        .await
        .unwrap();
    let given_up = tokio::time::timeout(Duration::from_millis(20), session.ping()).await;
    assert!(given_up.is_err());
    // A late answer to the first request must not be taken for the second's.
    let error = session.ping().await.unwrap_err();
    assert!(matches!(error, Error::Closed { .. }), "{error:?}");
}

#[tokio::test]
async fn an_older_agent_is_told_by_its_hello() {
    let agent = FakeAgent::start(old);
    let mut session = Session::connect(&unix(&agent), &Deadlines::all(LONG))
        .await
        .unwrap();
    match session.status().await.unwrap_err() {
        Error::TooOld {
            request,
            agent_version,
        } => assert_eq!((request, agent_version.as_str()), ("status", "0.0.9")),
        other => panic!("{other:?}"),
    }
}
