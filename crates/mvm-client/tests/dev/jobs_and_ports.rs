//! Jobs, and ports of the guest's.

use super::{serving, session, sh};
use mvm_client::dev::{FromPort, Output};
use mvm_client::{Deadlines, Dialer, Endpoint};
use mvm_fake_agent::FakeAgent;
use mvm_protocol::Frame;
use mvm_protocol::dev::jobs::{Attach, JobSignal};
use mvm_protocol::signal::Signal;
use serde_json::json;
use std::num::NonZeroU16;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

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
    let mut stream = Dialer::new()
        .connect_raw(&endpoint, &Deadlines::default())
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
