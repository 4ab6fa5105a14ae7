//! The conformance vectors of `docs/vectors`, played against the parser alone.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use mvm_protocol::answer::{Answer, AnswerFrame};
use mvm_protocol::drop_in::{self, DropIn, Integration, OutputFormat, Probe};
use mvm_protocol::frame::{Decoder, Frame};
use mvm_protocol::handshake::{HandshakeError, LineReader, connect_line, parse_connect, parse_ok};
use mvm_protocol::request::{DEV_REQUEST_TYPES, ParsedRequest};
use mvm_protocol::{ErrorCode, FrameError, PORT};
use serde_json::{Value, json};
use std::path::Path;

/// The cases under `key` in a file of `docs/vectors`.
fn cases(file: &str, key: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../docs/vectors")
        .join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    let mut file: Value = serde_json::from_str(&text).unwrap();
    let Value::Array(cases) = file[key].take() else {
        panic!("{} has no list `{key}`", path.display())
    };
    assert!(!cases.is_empty());
    cases
}

fn hex(text: &Value) -> Vec<u8> {
    let text = text.as_str().unwrap();
    assert!(text.len().is_multiple_of(2), "{text}");
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

/// Pieces of hex, some of them repeated.
fn bytes(pieces: &Value) -> Vec<u8> {
    let pieces = pieces.as_array().unwrap();
    let piece = |piece: &Value| match piece.get("repeat") {
        Some(repeated) => {
            let times = usize::try_from(piece["times"].as_u64().unwrap()).unwrap();
            hex(repeated).repeat(times)
        }
        None => hex(piece),
    };
    pieces.iter().flat_map(piece).collect()
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap()
}

/// The type of the answer that a request of this type gets when all is well.
fn answer_of(request: &str) -> &str {
    match request {
        "ping" => "pong",
        "reload" => "reloaded",
        "check" => "checked",
        "watch" => "status",
        "sleep-prep" => "ready",
        "wake" => "awake",
        same => same,
    }
}

/// Codes of requests that are well-formed.
const SERVED: [&str; 3] = ["not-found", "busy", "wrong-token"];

/// Whether the parser does with one body what has to be answered.
fn read_as_expected(body: &[u8], expected: &Value) -> Result<(), String> {
    let parsed = ParsedRequest::read(body);
    if parsed.id != expected["id"].as_u64() {
        return Err(format!("id {:?}", parsed.id));
    }
    let kind = parsed.kind.unwrap_or_default();
    let expected_type = text(expected, "type");
    match (parsed.request, expected_type) {
        // Refused by whoever serves it, not by the parser.
        (Ok(_), "error") if SERVED.contains(&text(expected, "code")) => Ok(()),
        (Ok(_), answer) if answer == answer_of(&kind) => Ok(()),
        (Err(error), "error") => {
            let dev = DEV_REQUEST_TYPES.contains(&kind.as_str());
            let code = if dev && error.code == ErrorCode::UnknownRequest {
                ErrorCode::NotAllowed.into()
            } else {
                error.code
            };
            let shown = error.message.chars().all(|c| !c.is_control());
            let as_expected = code.as_str() == text(expected, "code")
                && error.message.contains(text(expected, "names"))
                && error.retryable == expected["retryable"].as_bool().unwrap()
                && shown;
            as_expected.then_some(()).ok_or(format!("{error:?}"))
        }
        (other, _) => Err(format!("{other:?}")),
    }
}

#[test]
fn requests() {
    for case in cases("requests.json", "cases") {
        let name = text(&case, "name");
        let mut decoder = Decoder::default();
        decoder.push(&bytes(&case["bytes"]));
        let mut closed = false;
        let mut expected = case["answers"].as_array().unwrap().iter();
        let watches = text(&case, "after") == "watches";
        while !closed {
            let frame = match decoder.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(FrameError::TooLarge { .. }) => {
                    let answer = expected.next().unwrap();
                    assert_eq!(text(answer, "code"), "frame-too-large", "{name}");
                    closed = true;
                    continue;
                }
            };
            let answer = expected.next();
            let answer = answer.unwrap_or_else(|| panic!("{name}: more frames than answers"));
            // Refused by the session, whatever it is.
            if watches && text(answer, "type") == "error" {
                continue;
            }
            match frame {
                Frame::Json(body) => {
                    if let Err(got) = read_as_expected(&body, answer) {
                        panic!("{name}: expected {answer}, got {got}");
                    }
                }
                Frame::Data { .. } | Frame::EmptyData => {
                    assert_eq!(text(answer, "code"), "bad-request", "{name}");
                }
            }
        }
        // Events answer no frame.
        let unasked = expected.find(|answer| text(answer, "type") != "event");
        assert_eq!(unasked, None, "{name}: an answer without a frame");
        let after = match (closed, decoder.is_mid_frame()) {
            _ if watches => "watches",
            (true, _) => "closed",
            (false, true) => "waits",
            (false, false) => "open",
        };
        assert_eq!(text(&case, "after"), after, "{name}");
    }
}

/// Every byte comes alone, as it may from a socket.
fn line(bytes: &[u8]) -> Result<Option<String>, HandshakeError> {
    let mut reader = LineReader::default();
    for byte in bytes {
        if let (_, Some(line)) = reader.push(&[*byte])? {
            return Ok(Some(line));
        }
    }
    Ok(None)
}

#[test]
fn handshake() {
    for case in cases("handshake.json", "connect") {
        let read = line(&hex(&case["bytes"]));
        let served = read.and_then(|line| parse_connect(&line.unwrap())) == Ok(PORT);
        assert_eq!(served, !case["answer"].is_null(), "{}", text(&case, "name"));
    }
    for case in cases("handshake.json", "ok") {
        let accepted = match line(&hex(&case["bytes"])) {
            Ok(Some(line)) => parse_ok(&line).is_ok(),
            Ok(None) | Err(_) => false,
        };
        assert_eq!(accepted, case["accepted"], "{}", text(&case, "name"));
    }
    let first = &cases("handshake.json", "connect")[0];
    assert_eq!(connect_line(PORT).into_bytes(), hex(&first["bytes"]));
}

#[test]
fn answers() {
    for case in cases("answers.json", "cases") {
        let name = text(&case, "name");
        let mut decoder = Decoder::default();
        decoder.push(&hex(&case["bytes"]));
        let Ok(Some(Frame::Json(body))) = decoder.next_frame() else {
            panic!("{name}: no frame")
        };
        let read = AnswerFrame::read(&body)
            .ok()
            .map(|frame| match frame.answer {
                Answer::Pong => "pong",
                Answer::Hello(_) => "hello",
                Answer::Status(_) => "status",
                Answer::Inspect(_) => "inspect",
                Answer::Checked(_) => "checked",
                Answer::Reloaded(_) => "reloaded",
                Answer::Ready(_) => "ready",
                Answer::Awake(_) => "awake",
                Answer::Event(_) => "event",
                Answer::Error(_) => "error",
            });
        assert_eq!(read, case["reads"].as_str(), "{name}");
    }
}

fn secs(value: &Value) -> std::time::Duration {
    std::time::Duration::from_secs_f64(value.as_f64().unwrap())
}

/// Compares a rejection with what the case says of it, or gives what was read.
fn drop_in<T: DropIn>(case: &Value) -> Option<T> {
    let name = text(case, "name");
    match (
        drop_in::read::<T>(&bytes(&case["bytes"])),
        case.get("refused"),
    ) {
        (Ok(read), None) => {
            assert_eq!(read.name(), text(&case["reads"], "name"), "{name}");
            Some(read)
        }
        (Err(problem), Some(refused)) => {
            let line = problem.line as u64;
            assert_eq!(
                line,
                refused["line"].as_u64().unwrap(),
                "{name}: {problem:?}"
            );
            let field = problem.field.as_deref();
            assert_eq!(field, refused["field"].as_str(), "{name}: {problem:?}");
            let said = problem.message.contains(text(refused, "names"));
            assert!(said, "{name}: {problem:?}");
            None
        }
        (Ok(_), Some(_)) => panic!("{name}: accepted"),
        (Err(problem), None) => panic!("{name}: {problem:?}"),
    }
}

#[test]
fn drop_ins() {
    for case in cases("drop-ins.json", "cases") {
        let reads = &case["reads"];
        match text(&case, "kind") {
            "integration" => {
                if let Some(it) = drop_in::<Integration>(&case) {
                    let interval = it.health_interval_secs.duration();
                    assert_eq!(interval, secs(&reads["health_interval_secs"]));
                    let timeout = it.health_timeout_secs.duration();
                    assert_eq!(timeout, secs(&reads["health_timeout_secs"]));
                    assert_eq!(it.critical, reads["critical"]);
                    if let Some(argv) = reads.get("health") {
                        assert_eq!(json!(it.health()), *argv);
                    }
                }
            }
            "probe" => {
                if let Some(it) = drop_in::<Probe>(&case) {
                    match reads.get("run") {
                        Some(argv) => assert_eq!(json!(it.run()), *argv),
                        None => {
                            assert_eq!(json!(it.run()), json!(["/bin/sh", "-c", reads["command"]]));
                        }
                    }
                    assert_eq!(it.interval_secs.duration(), secs(&reads["interval_secs"]));
                    assert_eq!(it.timeout_secs.duration(), secs(&reads["timeout_secs"]));
                    let json = it.output == OutputFormat::Json;
                    assert_eq!(json, reads["output"] == "json");
                }
            }
            other => panic!("no drop-in is of kind {other}"),
        }
    }
}
