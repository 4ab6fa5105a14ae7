//! Commands: their streams, signals and ends.

use super::{put, serving, session, sh};
use mvm_client::dev::Output;
use mvm_client::{Awaited, Error};
use mvm_fake_agent::{FakeAgent, well};
use mvm_protocol::Frame;
use mvm_protocol::dev::exec::{Exec, Window};
use mvm_protocol::signal::Signal;
use serde_json::json;
use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::time::Duration;
use tokio::time::timeout;

#[tokio::test]
async fn a_command_and_then_further_requests() {
    let agent = serving(|peer, asked| {
        peer.exec_started(asked);
        peer.data(1, b"out");
        peer.data(2, b"err");
        peer.exec_exited(asked, 3);
    });
    let mut session = session(&agent).await;
    for _ in 0..2 {
        let command = session.exec(sh("x")).await.unwrap();
        assert_eq!(command.pid, 321);
        let (_, mut output) = command.split();
        assert_eq!(output.next().await.unwrap(), Output::Stdout(b"out".into()));
        assert_eq!(output.next().await.unwrap(), Output::Stderr(b"err".into()));
        let Output::Exited(end) = output.next().await.unwrap() else {
            panic!("not its end")
        };
        assert_eq!((end.exit_code, end.signal), (Some(3), None));
        session.ping().await.unwrap();
    }
}

#[tokio::test]
async fn both_halves_at_once() {
    // More than the sockets hold: who only wrote, or only read, would wait for ever.
    const PIECES: usize = 200;
    let agent = serving(|peer, asked| {
        peer.exec_started(asked);
        let mut closed = false;
        while !closed {
            match peer.frame().unwrap() {
                Frame::Data { channel: 0, bytes } => {
                    peer.data(1, &bytes);
                }
                Frame::Json(body) => closed = body == br#"{"type":"stdin-close"}"#,
                other => panic!("{other:?}"),
            }
        }
        peer.exec_exited(asked, 0);
    });
    let mut session = session(&agent).await;
    let asked = Exec {
        stdin: true,
        ..sh("cat")
    };
    let (mut input, mut output) = session.exec(asked).await.unwrap().split();
    let piece = vec![7; 100_000];
    let writing = async {
        for _ in 0..PIECES {
            input.write(&piece).await.unwrap();
        }
        input.close().await.unwrap();
    };
    let reading = async {
        let mut count = 0;
        loop {
            match output.next().await.unwrap() {
                Output::Stdout(bytes) => count += bytes.len(),
                Output::Exited(_) => return count,
                other => panic!("{other:?}"),
            }
        }
    };
    let ((), count) = tokio::join!(writing, reading);
    assert_eq!(count, PIECES * 100_000);
}

#[tokio::test]
async fn signals_and_sizes() {
    let agent = serving(|peer, asked| {
        peer.exec_started(asked);
        let first = peer.request().unwrap();
        assert_eq!(first, json!({"type": "signal", "signal": "TERM"}));
        let second = peer.request().unwrap();
        assert_eq!(second, json!({"type": "resize", "cols": 100, "rows": 40}));
        peer.exec_exited(asked, 0);
    });
    let mut session = session(&agent).await;
    let (mut input, mut output) = session.exec(sh("x")).await.unwrap().split();
    input.signal(Signal::TERM).await.unwrap();
    let window = Window {
        cols: 100,
        rows: 40,
    };
    input.resize(window).await.unwrap();
    assert!(matches!(output.next().await.unwrap(), Output::Exited(_)));
}

#[tokio::test]
async fn a_write_that_is_given_up_keeps_the_stream_in_step() {
    let (go, wait) = channel::<()>();
    let wait = Mutex::new(wait);
    let agent = serving(move |peer, asked| {
        peer.exec_started(asked);
        // Reads no more until the client has given up in the middle of a frame.
        wait.lock().unwrap().recv().unwrap();
        let mut bytes = 0;
        loop {
            match peer.frame().unwrap() {
                Frame::Data {
                    channel: 0,
                    bytes: more,
                } => {
                    assert!(more.iter().all(|byte| *byte == 7));
                    bytes += more.len();
                }
                Frame::Json(body) => {
                    assert_eq!(body, br#"{"type":"signal","signal":"TERM"}"#);
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        peer.data(1, bytes.to_string().as_bytes());
        peer.exec_exited(asked, 0);
    });
    let mut session = session(&agent).await;
    let asked = Exec {
        stdin: true,
        ..sh("x")
    };
    let (mut input, mut output) = session.exec(asked).await.unwrap().split();
    let piece = vec![7; 262_143];
    let mut whole = 0;
    // Until one of them is in the middle: it is larger than what a socket holds.
    while timeout(Duration::from_millis(200), input.write(&piece))
        .await
        .is_ok()
    {
        whole += piece.len();
    }
    go.send(()).unwrap();
    input.signal(Signal::TERM).await.unwrap();
    let Output::Stdout(bytes) = output.next().await.unwrap() else {
        panic!("no count")
    };
    // The frame that was begun was finished, and the signal came after it.
    let expected = (whole + piece.len()).to_string();
    assert_eq!(String::from_utf8(bytes).unwrap(), expected);
    assert!(matches!(output.next().await.unwrap(), Output::Exited(_)));
    session.ping().await.unwrap();
}

#[tokio::test]
async fn what_a_command_left_unread_does_not_disturb_the_next_request() {
    let agent = serving(|peer, asked| {
        peer.exec_started(asked);
        peer.exec_exited(asked, 0);
        // As agents do: what comes late for a command that has ended is dropped.
        if asked["stdin"] == true {
            assert!(matches!(peer.frame(), Some(Frame::Data { channel: 0, .. })));
        }
    });
    let mut session = session(&agent).await;
    let asked = Exec {
        stdin: true,
        ..sh("true")
    };
    let (mut input, mut output) = session.exec(asked).await.unwrap().split();
    assert!(matches!(output.next().await.unwrap(), Output::Exited(_)));
    // Given up before a byte of it was sent, or in its middle: the next request comes after it.
    let piece = vec![7; 262_143];
    let given_up = timeout(Duration::from_millis(1), input.write(&piece)).await;
    drop(given_up);
    session.ping().await.unwrap();
}

#[tokio::test]
async fn a_command_that_is_not_followed_to_its_end_ends_the_session() {
    let agent = serving(|peer, asked| {
        peer.exec_started(asked);
        peer.until_closed();
    });
    let mut session = session(&agent).await;
    drop(session.exec(sh("x")).await.unwrap());
    assert!(matches!(session.ping().await, Err(Error::Closed { .. })));
    assert!(matches!(session.jobs().await, Err(Error::Closed { .. })));
}

#[tokio::test]
async fn an_agent_that_goes_away_in_the_middle() {
    let agent = serving(|peer, asked| {
        peer.exec_started(asked);
        peer.hang_up();
    });
    let mut session = session(&agent).await;
    let (_, mut output) = session.exec(sh("x")).await.unwrap().split();
    let error = output.next().await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::Closed {
                awaited: Awaited::Command,
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn who_does_not_serve_it_is_told_apart() {
    let prod =
        FakeAgent::start(|peer| {
            peer.shake_hands();
            while let Some(asked) = peer.request() {
                if asked["type"] == "hello" {
                    peer.reply(&asked, json!({
                    "type": "hello", "protocol": 1, "agent_version": "0.1.0", "profile": "prod",
                    "capabilities": ["ping"], "boot_id": "", "generation": 0,
                }));
                } else {
                    peer.refuse(&asked, "not-allowed", "no");
                }
            }
        });
    let mut asked = session(&prod).await;
    let error = asked.exec(sh("x")).await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::NotServed {
                request: "exec",
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(error.code(), "not-allowed");
    let error = asked.put(put()).await.unwrap_err();
    assert!(
        matches!(error, Error::NotServed { request: "put", .. }),
        "{error}"
    );
    let error = asked.serves("forward").await.unwrap_err();
    assert!(matches!(error, Error::NotServed { .. }), "{error}");
    let old = FakeAgent::start(well);
    let error = session(&old).await.jobs().await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::TooOld {
                request: "jobs",
                ..
            }
        ),
        "{error}"
    );
    // A dev build that may not run this one program.
    let refusing = serving(|peer, asked| peer.refuse(asked, "not-allowed", "not executable"));
    let error = session(&refusing).await.exec(sh("x")).await.unwrap_err();
    assert!(matches!(error, Error::Refused(_)), "{error}");
    assert_eq!(error.code(), "not-allowed");
}
