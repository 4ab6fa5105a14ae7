//! `expose`: TCP ports of the loopback that hosts reach in prod builds, too.

#![allow(clippy::disallowed_methods, reason = "a test has threads")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod common;

use common::{Agent, PATIENCE, Settings, folder, within};
use serde_json::json;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

/// An agent that exposes that listener's port and nothing else. A dev build is told to serve no more.
fn exposing(listener: &TcpListener) -> (Agent, u16) {
    let port = listener.local_addr().unwrap().port();
    let list = port.to_string();
    let settings = Settings::flags(&["--expose", &list, "--exec", "false"]);
    let agent = Agent::launch(folder(&[], &[]), settings);
    (agent, port)
}

fn taken(listener: &TcpListener) -> TcpStream {
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

#[test]
fn an_exposed_port_is_reached_and_each_way_ends_by_itself() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (agent, port) = exposing(&listener);
    let hello = agent.ask(&json!({"type": "hello"}));
    let capabilities = hello["capabilities"].as_array().unwrap();
    assert_eq!(capabilities.last(), Some(&json!("forward")), "{hello}");
    let mut host = agent.connection();
    let started = host.begin(&json!({"type": "forward", "port": port, "id": 7}));
    assert_eq!(
        (&started["type"], &started["id"]),
        (&json!("forward-started"), &json!(7))
    );
    let mut port = taken(&listener);
    host.data(0, b"question");
    host.send(&json!({"type": "forward-end"}));
    let mut question = String::new();
    port.read_to_string(&mut question).unwrap();
    assert_eq!(question, "question", "its end has come through");
    port.write_all(b"an answer").unwrap();
    host.until("an answer");
    drop(port);
    assert_eq!(host.json()["type"], "forward-end");
    let done = host.json();
    assert_eq!((&done["sent"], &done["received"]), (&json!(8), &json!(9)));
    // What comes late for it is no request.
    host.data(0, b"late");
    host.send(&json!({"type": "forward-end"}));
    assert_eq!(host.ask(&json!({"type": "ping"})), json!({"type": "pong"}));
}

#[test]
fn no_other_port_is_and_no_other_request_of_a_dev_build() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (agent, port) = exposing(&listener);
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let asked = json!({"type": "forward", "port": other.local_addr().unwrap().port()});
    let answer = agent.ask(&asked);
    assert_eq!(answer["code"], "not-allowed");
    let message = answer["message"].as_str().unwrap();
    assert!(message.contains("`expose`"), "{message}");
    other.set_nonblocking(true).unwrap();
    assert!(other.accept().is_err(), "nobody has dialled it");
    for kind in ["exec", "put", "get", "jobs", "attach", "job-signal"] {
        let answer = agent.ask(&json!({"type": kind}));
        assert_eq!(answer["code"], "not-allowed", "{answer}");
    }
    let answer = agent.ask(&json!({"type": "forward", "port": 0}));
    assert_eq!(answer["code"], "bad-request", "{answer}");
    let answer = agent.ask(&json!({"type": "forward", "port": port, "host": "10.0.0.1"}));
    assert_eq!(answer["code"], "bad-request", "{answer}");
}

#[test]
fn they_are_bounded_in_number_and_a_sleep_ends_them() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (agent, port) = exposing(&listener);
    let asked = json!({"type": "forward", "port": port});
    let mut open = Vec::new();
    for _ in 0..128 {
        let mut host = agent.connection();
        assert_eq!(host.begin(&asked)["type"], "forward-started");
        open.push((host, taken(&listener)));
    }
    let mut further = agent.connection();
    assert_eq!(further.ask(&asked)["code"], "too-many-connections");
    let (host, port) = open.pop().unwrap();
    drop(host);
    // The agent notices that its host is gone, and the port that the agent is.
    assert_eq!((&port).read(&mut [0; 1]).unwrap(), 0);
    assert_eq!(further.begin(&asked)["type"], "forward-started");
    let ready = agent.ask(&json!({"type": "sleep-prep"}));
    assert_eq!(ready["type"], "ready", "{ready}");
    for (mut host, _) in open {
        assert_eq!(host.json()["type"], "forward-done");
    }
    assert_eq!(further.json()["type"], "forward-done");
    assert_eq!(agent.ask(&asked)["code"], "busy");
}

#[test]
fn one_that_does_not_come_about_holds_up_no_sleep() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let (agent, port) = exposing(&listener);
    let address = listener.local_addr().unwrap();
    // Until there is no room for another one.
    let moment = std::time::Duration::from_millis(300);
    let connect = || TcpStream::connect_timeout(&address, moment).ok();
    let _queued: Vec<_> = std::iter::from_fn(connect).take(20).collect();
    let mut host = agent.connection();
    host.ask(&json!({"type": "ping"}));
    host.send(&json!({"type": "forward", "port": port}));
    // Once it is under way.
    within(|| {
        let status = agent.ask(&json!({"type": "status"}));
        let held_by = status["worker"]["held_by"].to_string();
        held_by.contains("session").then_some(())
    });
    let ready = agent.ask(&json!({"type": "sleep-prep", "deadline_secs": 5}));
    assert_eq!(ready["type"], "ready", "{ready}");
    assert_eq!(host.json()["code"], "busy");
}
