//! What dev builds serve, against agents that do as a test says.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

use mvm_client::dev::{FromPort, Output};
use mvm_client::{Deadlines, Endpoint, Error, RawStream, Session, Stage};
use mvm_fake_agent::{FakeAgent, Peer, dev, well};
use mvm_protocol::dev::exec::{Argv, Exec, Path, Window};
use mvm_protocol::dev::files::{Archive, Get, Put};
use mvm_protocol::dev::jobs::{Attach, JobSignal};
use mvm_protocol::signal::Signal;
use mvm_protocol::{ErrorCode, Frame};
use serde_json::{Value, json};
use std::num::NonZeroU16;
use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

async fn session(agent: &FakeAgent) -> Session {
    let endpoint = Endpoint::unix(agent.path());
    Session::connect(&endpoint, &Deadlines::default())
        .await
        .unwrap()
}

fn sh(script: &str) -> Exec {
    let words = ["sh", "-c", script].map(str::to_owned);
    Exec::new(Argv::new(words.to_vec()).unwrap())
}

fn put() -> Put {
    Put {
        path: Path::new("/x".into()).unwrap(),
        mode: None,
        name: None,
        archive: None,
    }
}

/// Serves whatever is asked until the client closes: `ping`, or as the test says.
fn serving(serve: impl Fn(&mut Peer, &Value) + Send + Sync + 'static) -> FakeAgent {
    FakeAgent::start(dev(move |peer, asked| {
        if asked["type"] == "ping" {
            peer.reply(asked, json!({"type": "pong"}));
        } else {
            serve(peer, asked);
        }
    }))
}

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
                stage: Stage::Command,
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

#[tokio::test]
async fn a_file_is_put_and_the_session_goes_on() {
    let agent = serving(|peer, asked| {
        peer.reply(asked, json!({"type": "put-ready", "path": "/x/y"}));
        let mut count = 0;
        loop {
            match peer.frame().unwrap() {
                Frame::Data { channel: 3, bytes } => count += bytes.len(),
                Frame::Json(_) => break,
                other => panic!("{other:?}"),
            }
        }
        peer.reply(asked, json!({"type": "put-done", "bytes": count}));
    });
    let mut session = session(&agent).await;
    let mut upload = session.put(put()).await.unwrap();
    assert_eq!(upload.path, "/x/y");
    // Larger than a frame.
    upload.send(&vec![7; 1_000_000]).await.unwrap();
    upload.send(b"").await.unwrap();
    assert_eq!(upload.finish().await.unwrap().bytes, 1_000_000);
    session.ping().await.unwrap();
    drop(session.put(put()).await.unwrap());
    assert!(matches!(session.ping().await, Err(Error::Closed { .. })));
}

#[tokio::test]
async fn a_put_that_fails_in_the_middle_is_told_at_once() {
    let agent = serving(|peer, asked| {
        peer.reply(asked, json!({"type": "put-ready", "path": "/x"}));
        assert!(matches!(peer.frame(), Some(Frame::Data { .. })));
        peer.refuse(asked, "failed", "no space");
        while let Some(Frame::Data { .. }) = peer.frame() {}
    });
    let mut session = session(&agent).await;
    let mut upload = session.put(put()).await.unwrap();
    let piece = vec![7; 262_143];
    let error = loop {
        if let Err(error) = upload.send(&piece).await {
            break error;
        }
    };
    let Error::Refused(refusal) = &error else {
        panic!("{error}")
    };
    assert_eq!(
        (refusal.code, refusal.message.as_str()),
        (ErrorCode::Failed.into(), "no space")
    );
    session.ping().await.unwrap();
    // The same while there is nothing to send.
    let mut upload = session.put(put()).await.unwrap();
    upload.send(b"x").await.unwrap();
    let error = upload.failure().await;
    assert!(matches!(error, Error::Refused(_)), "{error}");
    session.ping().await.unwrap();
}

#[tokio::test]
async fn a_put_whose_agent_stalls_is_given_up() {
    let agent = serving(|peer, asked| {
        peer.reply(asked, json!({"type": "put-ready", "path": "/x"}));
        peer.stall();
    });
    let endpoint = Endpoint::unix(agent.path());
    let deadlines = Deadlines {
        transfer: Duration::from_millis(200),
        ..Deadlines::default()
    };
    let mut session = Session::connect(&endpoint, &deadlines).await.unwrap();
    let mut upload = session.put(put()).await.unwrap();
    let piece = vec![7; 262_143];
    let error = loop {
        if let Err(error) = upload.send(&piece).await {
            break error;
        }
    };
    assert!(
        matches!(
            error,
            Error::TimedOut {
                stage: Stage::Content,
                ..
            }
        ),
        "{error}"
    );
    let mut other = Session::connect(&endpoint, &deadlines).await.unwrap();
    let upload = other.put(put()).await.unwrap();
    let error = upload.finish().await.unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
}

#[tokio::test]
async fn a_get_is_whole_or_an_error() {
    let asked = || Get {
        path: Path::new("/x".into()).unwrap(),
        archive: Some(Archive::Tar),
    };
    let agent = serving(|peer, asked| {
        assert_eq!(asked["archive"], "tar");
        peer.reply(
            asked,
            json!({"type": "get-started", "bytes": 8, "mode": 420}),
        );
        peer.data(3, b"half");
        peer.data(3, b" all");
        let bytes = if peer.number == 0 { 8 } else { 9 };
        peer.reply(asked, json!({"type": "get-done", "bytes": bytes}));
    });
    let mut good = session(&agent).await;
    let mut download = good.get(asked()).await.unwrap();
    assert_eq!(
        (download.bytes, download.mode, download.archive),
        (Some(8), 0o644, None)
    );
    assert_eq!(download.next().await.unwrap().unwrap(), b"half");
    assert_eq!(download.next().await.unwrap().unwrap(), b" all");
    assert!(download.next().await.unwrap().is_none());
    good.ping().await.unwrap();
    let mut lossy = session(&agent).await;
    let mut download = lossy.get(asked()).await.unwrap();
    download.next().await.unwrap();
    download.next().await.unwrap();
    let error = download.next().await.unwrap_err();
    assert!(matches!(error, Error::NotAnAgent { .. }), "{error}");
    assert!(matches!(lossy.ping().await, Err(Error::Closed { .. })));
}

#[tokio::test]
async fn jobs() {
    let agent = serving(|peer, asked| match asked["type"].as_str().unwrap() {
        "exec" => {
            assert_eq!(asked["detach"], true);
            peer.reply(asked, json!({"type": "job-started", "job": 3, "pid": 9}));
        }
        "jobs" => peer.reply(asked, json!({"type": "jobs", "jobs": []})),
        "job-signal" => peer.reply(asked, json!({"type": "job-signaled", "job": 3})),
        "attach" => {
            peer.exec_started(asked);
            peer.data(1, b"kept");
            peer.reply(asked, json!({"type": "job-started", "job": 3, "pid": 9}));
        }
        other => panic!("{other}"),
    });
    let mut session = session(&agent).await;
    assert_eq!(session.start_job(sh("x")).await.unwrap().job, 3);
    assert_eq!(session.jobs().await.unwrap(), []);
    let asked = JobSignal {
        job: 3,
        signal: Signal::TERM,
    };
    session.job_signal(asked).await.unwrap();
    let asked = Attach {
        job: 3,
        follow: false,
    };
    let (_, mut output) = session.attach(asked).await.unwrap().split();
    assert_eq!(output.next().await.unwrap(), Output::Stdout(b"kept".into()));
    assert_eq!(output.next().await.unwrap(), Output::RunsOn);
    session.ping().await.unwrap();
}

#[tokio::test]
async fn a_port_that_ends_in_turn() {
    let agent = serving(|peer, asked| {
        peer.reply(
            asked,
            json!({"type": "forward-started", "address": "[::1]:80"}),
        );
        assert!(matches!(peer.frame(), Some(Frame::Data { channel: 0, bytes }) if bytes == b"q"));
        peer.data(1, b"a");
        peer.reply(asked, json!({"type": "forward-end"}));
        assert_eq!(peer.request().unwrap(), json!({"type": "forward-end"}));
        peer.reply(
            asked,
            json!({"type": "forward-done", "sent": 1, "received": 1}),
        );
    });
    let mut session = session(&agent).await;
    let port = session.forward(NonZeroU16::new(80).unwrap()).await.unwrap();
    assert_eq!(port.address, "[::1]:80");
    let (mut input, mut output) = port.split();
    input.write(b"q").await.unwrap();
    assert_eq!(output.next().await.unwrap(), FromPort::Bytes(b"a".into()));
    assert_eq!(output.next().await.unwrap(), FromPort::End);
    input.end().await.unwrap();
    assert!(matches!(output.next().await.unwrap(), FromPort::Done(_)));
    session.ping().await.unwrap();
}

#[tokio::test]
async fn any_port_without_the_protocol() {
    let agent = FakeAgent::start(|peer| {
        peer.expect_connect_to(22);
        // The first bytes may come along with OK.
        peer.send(b"OK 1073741824\nSSH-2.0");
        let bytes = peer.read();
        peer.send(&bytes);
    });
    let endpoint = Endpoint::unix(agent.path()).with_port(22);
    let mut stream = RawStream::connect(&endpoint, &Deadlines::default())
        .await
        .unwrap();
    let mut first = [0; 3];
    stream.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"SSH");
    stream.write_all(b"\0\xff").await.unwrap();
    // The other half stays open.
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"-2.0\0\xff");
}
