//! `forward`: a TCP port of the loopback.

#![cfg(feature = "dev")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod common;

use common::{Agent, Connection, PATIENCE, descriptors, within};
use mvm_protocol::Frame;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

fn joined(agent: &Agent, address: &str) -> (Connection, TcpStream, Value) {
    let listener = TcpListener::bind(address).unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut host = agent.connection();
    let started = host.begin(&json!({"type": "forward", "port": port}));
    assert_eq!(started["type"], "forward-started", "{started}");
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    (host, stream, started)
}

#[test]
fn bytes_go_both_ways_and_each_way_ends_by_itself() {
    let agent = Agent::start(&[], &[]);
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let (mut host, mut port, started) = joined(&agent, address);
        let expected = address.trim_end_matches(":0");
        assert!(started["address"].as_str().unwrap().starts_with(expected));
        host.data(0, b"question");
        host.send(&json!({"type": "forward-end"}));
        let mut question = String::new();
        port.read_to_string(&mut question).unwrap();
        assert_eq!(question, "question", "its end has come through");
        port.write_all(b"an answer").unwrap();
        host.until("an answer");
        drop(port);
        assert_eq!(host.json(), json!({"type": "forward-end"}));
        let done = json!({"type": "forward-done", "sent": 8, "received": 9});
        assert_eq!(host.json(), done);
        assert_eq!(host.ask(&json!({"type": "ping"})), json!({"type": "pong"}));
    }
}

#[test]
fn the_port_may_end_first() {
    let agent = Agent::start(&[], &[]);
    let (mut host, mut port, _) = joined(&agent, "127.0.0.1:0");
    port.write_all(b"bye").unwrap();
    port.shutdown(Shutdown::Write).unwrap();
    host.until("bye");
    assert_eq!(host.json(), json!({"type": "forward-end"}));
    host.data(0, b"still here");
    host.send(&json!({"type": "forward-end"}));
    let mut rest = String::new();
    port.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "still here");
    assert_eq!(host.json()["type"], "forward-done");
}

#[test]
fn a_reset_connection_ends_the_forward() {
    let agent = Agent::start(&[], &[]);
    let (mut host, port, _) = joined(&agent, "127.0.0.1:0");
    // With bytes that nobody has read a close is a reset.
    host.data(0, b"unread");
    within(|| (port.peek(&mut [0; 6]).unwrap() == 6).then_some(()));
    drop(port);
    assert_eq!(host.json()["type"], "forward-done");
    assert_eq!(host.ask(&json!({"type": "ping"})), json!({"type": "pong"}));
}

#[test]
fn a_port_without_listener_is_not_found() {
    let agent = Agent::start(&[], &[]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let answer = agent.ask(&json!({"type": "forward", "port": port}));
    assert_eq!(answer["code"], "not-found", "{answer}");
    assert_eq!(
        agent.ask(&json!({"type": "forward", "port": 0}))["code"],
        "bad-request"
    );
}

#[test]
fn a_slow_reader_slows_the_sender_and_nothing_is_lost() {
    let agent = Agent::start(&[], &[]);
    let (mut host, mut port, _) = joined(&agent, "127.0.0.1:0");
    let bytes: Vec<u8> = (0..8_000_000_u32)
        .map(|n| u8::try_from(n % 251).unwrap())
        .collect();
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || {
        port.write_all(&sent).unwrap();
        port.shutdown(Shutdown::Write).unwrap();
        let mut back = Vec::new();
        port.read_to_end(&mut back).unwrap();
        back
    });
    let mut received = Vec::new();
    loop {
        match host.frame().unwrap() {
            Frame::Data { channel: 1, bytes } => received.extend(bytes),
            Frame::Json(body) => {
                assert_eq!(body, br#"{"type":"forward-end"}"#);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(received == bytes);
    for piece in bytes.chunks(200_000) {
        host.data(0, piece);
    }
    host.send(&json!({"type": "forward-end"}));
    assert!(writer.join().unwrap() == bytes);
    assert_eq!(host.json()["sent"], 8_000_000);
}

#[test]
fn a_closed_connection_closes_the_port_and_leaks_nothing() {
    let agent = Agent::start(&[], &[]);
    agent.ask(&json!({"type": "ping"}));
    let before = within(|| Some(descriptors(agent.pid())).filter(|count| *count < 20));
    let (host, mut port, _) = joined(&agent, "127.0.0.1:0");
    drop(host);
    assert_eq!(port.read(&mut [0; 1]).unwrap(), 0);
    within(|| (descriptors(agent.pid()) <= before).then_some(()));
}
