//! Files, both ways.

use super::{put, serving, session};
use mvm_client::{Awaited, Deadlines, Endpoint, Error, Session};
use mvm_protocol::dev::exec::Path;
use mvm_protocol::dev::files::{Archive, Get};
use mvm_protocol::{ErrorCode, Frame};
use serde_json::json;
use std::time::Duration;

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
                awaited: Awaited::Content,
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
