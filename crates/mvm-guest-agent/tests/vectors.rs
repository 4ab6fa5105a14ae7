//! The conformance vectors of `docs/vectors`, played against a running agent over its Unix socket.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod common;

use common::{Agent, PATIENCE, Settings, folder};
use mvm_protocol::Frame;
use mvm_protocol::frame::encode_json;
use serde_json::{Value, json};
use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use std::time::Instant;

fn cases(file: &str, key: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../docs/vectors")
        .join(file);
    let file: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let cases = file[key].as_array().unwrap().clone();
    assert!(!cases.is_empty());
    cases
}

fn hex(text: &Value) -> Vec<u8> {
    let text = text.as_str().unwrap();
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

/// Pieces of hex, some of them repeated.
fn bytes(pieces: &Value) -> Vec<u8> {
    let piece = |piece: &Value| match piece.get("repeat") {
        Some(repeated) => {
            let times = usize::try_from(piece["times"].as_u64().unwrap()).unwrap();
            hex(repeated).repeat(times)
        }
        None => hex(piece),
    };
    pieces.as_array().unwrap().iter().flat_map(piece).collect()
}

/// Whether an answer has every field that is expected of it.
fn is_as_expected(answer: &Value, expected: &Value) -> bool {
    let fields = expected.as_object().unwrap().iter();
    let message = answer["message"].as_str().unwrap_or_default();
    let has_all = fields
        .filter(|(name, _)| *name != "names")
        .all(|(name, value)| {
            let got = &answer[name];
            got == value
        });
    let named = expected["names"].as_str().unwrap_or_default();
    has_all
        && answer.get("id") == expected.get("id")
        && message.contains(named)
        && !message.contains(char::is_control)
}

#[test]
fn requests() {
    // What the vectors say is what a prod build answers, and a dev build where it is switched off.
    let flags: &[&str] = if cfg!(feature = "dev") {
        &["--exec", "false"]
    } else {
        &[]
    };
    play("requests.json", flags);
}

#[cfg(feature = "dev")]
#[test]
fn dev_requests() {
    play("dev-requests.json", &[]);
}

/// An answer, or a data frame as the vectors write it.
fn shown(frame: Frame) -> Value {
    match frame {
        Frame::Json(body) => serde_json::from_slice(&body).unwrap(),
        Frame::Data { channel, bytes } => {
            json!({"channel": channel, "data": String::from_utf8_lossy(&bytes)})
        }
        Frame::EmptyData => Value::Null,
    }
}

fn play(file: &str, flags: &[&str]) {
    let agent = Agent::launch(folder(&[], &[]), Settings::flags(flags));
    let (mut waiting, mut closed) = (Vec::new(), Vec::new());
    let until = Instant::now() + PATIENCE;
    for case in cases(file, "cases") {
        let name = case["name"].as_str().unwrap().to_owned();
        let mut connection = agent.connection();
        connection.stream.write_all(&bytes(&case["bytes"])).unwrap();
        for expected in case["answers"].as_array().unwrap() {
            let answer = loop {
                let answer = connection.frame().map(shown);
                let answer = answer.unwrap_or_else(|| panic!("{name}: closed before {expected}"));
                assert!(Instant::now() < until, "{name}: no {expected} in time");
                // While it watches, events may come in between.
                if answer["type"] != "event" || expected["type"] == "event" {
                    break answer;
                }
            };
            assert!(
                is_as_expected(&answer, expected),
                "{name}: expected {expected}, got {answer}"
            );
        }
        match case["after"].as_str().unwrap() {
            "open" => {
                let further = encode_json(br#"{"type":"ping","id":424242}"#).unwrap();
                connection.stream.write_all(&further).unwrap();
                let pong = json!({"type": "pong", "id": 424_242});
                assert_eq!(connection.answer(), Some(pong), "{name}");
            }
            "watches" => {}
            "closed" => closed.push((name, connection)),
            "waits" => waiting.push((name, connection)),
            other => panic!("{name}: {other}"),
        }
    }
    // Looked at last: those that stalled in a frame have delayed nobody meanwhile, and those that
    // are cut off may first be told why in peace.
    for (name, mut connection) in waiting {
        assert!(connection.is_silent(), "{name}");
    }
    for (name, mut connection) in closed {
        assert_eq!(connection.answer(), None, "{name}");
    }
}

#[test]
fn handshake() {
    let agent = Agent::start(&[], &[]);
    for case in cases("handshake.json", "connect") {
        let mut stream = agent.connect();
        stream.write_all(&hex(&case["bytes"])).unwrap();
        let name = &case["name"];
        if case["answer"].is_null() {
            match stream.read(&mut [0; 1]) {
                Ok(0) => {}
                // It closed without reading all that was sent.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
                other => panic!("{name}: {other:?}"),
            }
        } else {
            let expected = hex(&case["answer"]);
            let mut line = vec![0; expected.len()];
            stream.read_exact(&mut line).unwrap();
            assert_eq!(line, expected, "{name}");
        }
    }
}
