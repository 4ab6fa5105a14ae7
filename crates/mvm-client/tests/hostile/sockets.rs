//! Before anything is said: the socket itself.

use super::{LONG, SHORT, timed_out, unix};
use mvm_client::{Awaited, Deadlines, Endpoint, Error, Session};
use mvm_fake_agent::{FakeAgent, unprivileged, well};
use std::future::poll_fn;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::task::Poll;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

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
    assert_eq!(timed_out(&error), Awaited::Handshake);
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

#[test]
fn a_socket_that_is_closed_to_us() {
    let agent = FakeAgent::start(well);
    std::fs::set_permissions(agent.path(), std::fs::Permissions::from_mode(0o000)).unwrap();
    let endpoint = unix(&agent);
    let error = unprivileged(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let deadlines = Deadlines::all(LONG);
        let session = Session::connect(&endpoint, &deadlines);
        runtime.unwrap().block_on(session).unwrap_err()
    });
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
