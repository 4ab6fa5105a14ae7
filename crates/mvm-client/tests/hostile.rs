//! The client against what does not behave: every fault has a variant of its own, comes within the
//! deadline, and takes no more memory than a frame.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

use mvm_client::{Deadlines, Endpoint, Error, Session, Stage};
use mvm_fake_agent::{FakeAgent, Peer, old, well};
use mvm_protocol::request::{Check, CheckKind};
use mvm_protocol::{Answer, ErrorCode, Request};
use serde_json::json;
use std::future::poll_fn;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

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

/// An agent that shakes hands, waits for a request and then sends these bytes.
fn answering(bytes: &'static [u8]) -> FakeAgent {
    FakeAgent::start(move |peer: &mut Peer| {
        peer.shake_hands();
        peer.request();
        peer.send(bytes);
        peer.until_closed();
    })
}

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
async fn any_stream_will_do() {
    let (ours, mut agents) = tokio::io::duplex(64);
    let endpoint = Endpoint::unix("in memory");
    let deadlines = Deadlines::all(LONG);
    let agent = async {
        let mut line = [0; 11];
        agents.read_exact(&mut line).await.unwrap();
        agents.write_all(b"OK 52\n").await.unwrap();
        let mut request = [0; 26];
        agents.read_exact(&mut request).await.unwrap();
        let pong = mvm_protocol::frame::encode_json(br#"{"type":"pong","id":1}"#).unwrap();
        agents.write_all(&pong).await.unwrap();
    };
    let client = async {
        let mut session = Session::over(ours, &endpoint, &deadlines).await.unwrap();
        session.ping().await.unwrap();
    };
    tokio::join!(agent, client);

    let (ours, _silent) = tokio::io::duplex(64);
    let error = Session::over(ours, &endpoint, &Deadlines::all(SHORT))
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::TimedOut {
                stage: Stage::Handshake,
                ..
            }
        ),
        "{error:?}"
    );
}

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
    let at = |stage: Stage, agent: FakeAgent| async move {
        let start = Instant::now();
        let error = ping_within(SHORT, &agent).await.unwrap_err();
        assert!(start.elapsed() >= SHORT);
        match error {
            Error::TimedOut {
                stage: seen, after, ..
            } => assert_eq!((seen, after), (stage, SHORT)),
            other => panic!("{other:?}"),
        }
    };
    at(Stage::Handshake, FakeAgent::start(Peer::until_closed)).await;
    let silent = FakeAgent::start(|peer| {
        peer.shake_hands();
        peer.until_closed();
    });
    at(Stage::Answer, silent).await;
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
    assert!(
        matches!(
            error,
            Error::TimedOut {
                stage: Stage::Answer,
                ..
            }
        ),
        "{error:?}"
    );
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
                    stage: Stage::Answer,
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
        peer.send(&mvm_protocol::frame::encode_json(body.as_bytes()).unwrap());
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
    assert!(
        matches!(
            error,
            Error::TimedOut {
                stage: Stage::Answer,
                ..
            }
        ),
        "{error:?}"
    );
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

#[tokio::test]
async fn faults_of_the_socket_itself() {
    let folder = tempfile::tempdir().unwrap();
    let deadlines = Deadlines::all(LONG);
    let dial = |name: &str| {
        let endpoint = Endpoint::unix(folder.path().join(name));
        async move { Session::connect(&endpoint, &deadlines).await.unwrap_err() }
    };
    assert!(matches!(dial("missing").await, Error::NoSocket { .. }));
    assert!(matches!(
        dial("missing/v.sock").await,
        Error::NoSocket { .. }
    ));
    std::fs::write(folder.path().join("plain"), "").unwrap();
    assert!(matches!(dial("plain").await, Error::NotASocket { .. }));
    assert!(matches!(dial("plain/v.sock").await, Error::NoSocket { .. }));
    drop(UnixListener::bind(folder.path().join("stale")).unwrap());
    assert!(matches!(dial("stale").await, Error::StaleSocket { .. }));
}

/// As root too: a thread can give up what lets root open everything.
#[test]
fn a_socket_that_is_closed_to_us() {
    let agent = FakeAgent::start(well);
    std::fs::set_permissions(agent.path(), std::fs::Permissions::from_mode(0o000)).unwrap();
    let endpoint = unix(&agent);
    let dialling = std::thread::spawn(move || {
        let mut own = rustix::thread::capabilities(None).unwrap();
        own.effective = rustix::thread::CapabilitySet::empty();
        rustix::thread::set_capabilities(None, own).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(async {
            Session::connect(&endpoint, &Deadlines::all(LONG))
                .await
                .unwrap_err()
        })
    });
    let error = dialling.join().unwrap();
    assert!(matches!(error, Error::PermissionDenied { .. }), "{error:?}");
}

#[tokio::test]
async fn a_full_backlog_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v.sock");
    let listener = UnixListener::bind(&path).unwrap();
    // Until the kernel says that there is no room: std asks for 128 or more, and a connection that
    // nobody accepts takes a place.
    let mut waiting = Vec::new();
    let socket = || {
        let socket = rustix::net::socket_with(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::STREAM,
            rustix::net::SocketFlags::NONBLOCK | rustix::net::SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let address = rustix::net::SocketAddrUnix::new(&path).unwrap();
        rustix::net::connect(&socket, &address).map(|()| socket)
    };
    while let Ok(socket) = socket() {
        waiting.push(socket);
    }
    let endpoint = Endpoint::unix(path.clone());
    let full = Session::connect(&endpoint, &Deadlines::all(SHORT))
        .await
        .unwrap_err();
    assert!(matches!(&full, Error::Io { .. }), "{full:?}");
    assert!(full.is_retryable());

    // Once there is room, all is well. The first poll finds none.
    let patient = Deadlines::all(LONG);
    let mut dialling = std::pin::pin!(Session::connect(&endpoint, &patient));
    let first = poll_fn(|context| Poll::Ready(dialling.as_mut().poll(context))).await;
    assert!(first.is_pending());
    drop(waiting);
    let accepting = std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut line = [0; 11];
            if std::io::Read::read_exact(&mut stream, &mut line).is_ok() {
                std::io::Write::write_all(&mut stream, b"OK 52\n").unwrap();
                return;
            }
        }
    });
    dialling.await.unwrap();
    accepting.join().unwrap();
}

#[tokio::test]
async fn long_paths_are_dialled_through_their_folder() {
    let folder = tempfile::tempdir().unwrap();
    for deep in [
        folder.path().join("d".repeat(120)).join("v.sock"),
        folder
            .path()
            .join("d".repeat(200))
            .join("d".repeat(200))
            .join("v.sock"),
        folder.path().join("s".repeat(200)),
    ] {
        // Bound where the path is short, then moved: bind knows no longer paths either.
        let _agent = FakeAgent::at(&folder.path().join("short.sock"), well);
        std::fs::create_dir_all(deep.parent().unwrap()).unwrap();
        std::fs::rename(folder.path().join("short.sock"), &deep).unwrap();
        let endpoint = Endpoint::unix(deep.clone());
        let mut session = Session::connect(&endpoint, &Deadlines::all(LONG))
            .await
            .unwrap();
        session.ping().await.unwrap();
    }
    let missing = Endpoint::unix(folder.path().join("x".repeat(120)).join("v.sock"));
    let error = Session::connect(&missing, &Deadlines::all(LONG))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::NoSocket { .. }), "{error:?}");
}
