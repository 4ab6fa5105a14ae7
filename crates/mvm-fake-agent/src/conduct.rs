//! What a client has to stand: agents that misbehave towards their host, and what it has to make of each.

use crate::{Peer, answer_to, status};
use mvm_conformance::{Entry, Level, Outcome, Report};
use mvm_protocol::MAX_BODY;
use mvm_protocol::frame::{encode_data, encode_json};
use serde_json::{Value, json};
use std::time::Duration;

/// What a client is asked to do. It has a second for each answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// `ping`, once.
    Ping,
    /// `status`, once.
    Status,
    /// `watch` with a heartbeat of 0.2 s, up to the third event.
    Watch,
}

impl Action {
    /// As it stands on a driver's command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Status => "status",
            Self::Watch => "watch",
        }
    }
}

/// Declares the misbehaviours: the level, what the client is asked to do, what it may make of it, what
/// the agent does, and how.
macro_rules! misbehaviours {
    ($($level:ident $name:literal, $action:ident, [$($said:literal),+], $about:literal: $serve:expr;)*) => {
        /// All of them.
        pub fn misbehaviours() -> Vec<Misbehaviour> {
            vec![$(Misbehaviour {
                name: $name,
                level: Level::$level,
                about: $about,
                action: Action::$action,
                said: &[$($said),+],
                serve: $serve,
            }),*]
        }
    };
}

/// One way to misbehave.
#[derive(Debug, Clone, Copy)]
pub struct Misbehaviour {
    /// By which it is asked for.
    pub name: &'static str,
    /// Whether a client has to do as it says here.
    pub level: Level,
    /// What the agent does.
    pub about: &'static str,
    /// What a client asks of it.
    pub action: Action,
    /// What it may say to that. See [`WORDS`].
    pub said: &'static [&'static str],
    /// Serves a connection so.
    pub serve: fn(&mut Peer),
}

/// What a client can say, each with what it means.
pub const WORDS: [(&str, &str); 6] = [
    ("ok", "it was answered; a watch saw three events"),
    ("healthy", "the guest is healthy: `status` alone"),
    ("refused", "the agent answered with an error"),
    ("timed-out", "its own deadline has passed"),
    (
        "unreachable",
        "nobody serves there, or the connection was ended",
    ),
    ("no-agent", "what came is not the protocol"),
];

misbehaviours! {
    Required "none", Ping, ["ok"], "behaves well":
        |peer| well(peer, answer_to);
    Required "none-of-a-status", Status, ["healthy"], "behaves well":
        |peer| well(peer, answer_to);
    Required "closes", Ping, ["unreachable"], "closes in place of OK":
        |peer| drop(peer.read());
    Required "silent-handshake", Ping, ["timed-out"], "does not answer CONNECT":
        |peer| { peer.read(); peer.until_closed() };
    Required "stranger", Ping, ["no-agent"], "is an SSH server":
        |peer| { peer.send(b"SSH-2.0-OpenSSH_9.2\r\n"); peer.until_closed() };
    Required "ok-without-a-number", Ping, ["no-agent"], "answers `OK` and no number":
        |peer| { peer.read(); peer.send(b"OK\n"); peer.until_closed() };
    Required "endless-line", Ping, ["no-agent"], "answers CONNECT with a megabyte without a newline":
        |peer| { peer.read(); peer.send(&vec![b'O'; 1 << 20]); peer.until_closed() };
    Required "ok-in-pieces", Ping, ["ok"], "sends OK byte by byte":
        |peer| {
            peer.expect_connect();
            for byte in b"OK 1073741824\n" {
                peer.send(&[*byte]);
                std::thread::sleep(Duration::from_millis(2));
            }
            answers(peer, answer_to);
        };
    Required "silent", Ping, ["timed-out"], "answers nothing":
        |peer| { peer.shake_hands(); peer.until_closed() };
    Required "closes-in-place-of-an-answer", Ping, ["unreachable"], "closes after the request":
        |peer| { peer.shake_hands(); peer.request(); };
    Required "half-an-answer", Ping, ["unreachable", "no-agent"], "closes within its answer":
        |peer| { once(peer, &pong()[..9]); };
    Required "stalls-in-an-answer", Ping, ["timed-out"], "stops within its answer":
        |peer| { once(peer, &pong()[..9]); peer.until_closed() };
    Required "answer-in-pieces", Ping, ["ok"], "sends its answer byte by byte":
        |peer| {
            if !peer.shake_hands_if_asked() { return }
            let Some(request) = peer.request() else { return };
            let mut answer = answer_to(&request);
            answer["id"] = request["id"].clone();
            for byte in framed(&answer) {
                peer.send(&[byte]);
                std::thread::sleep(Duration::from_millis(2));
            }
            peer.until_closed();
        };
    Required "not-json", Ping, ["no-agent"], "answers with what is no JSON":
        |peer| { once(peer, &encode_json(b"pong").unwrap()); peer.until_closed() };
    Required "not-utf8", Ping, ["no-agent"], "answers with a string that is not UTF-8":
        |peer| { once(peer, &encode_json(b"{\"type\":\"p\xffng\"}").unwrap()); peer.until_closed() };
    Required "no-object", Ping, ["no-agent"], "answers with a list":
        |peer| { once(peer, &encode_json(b"[\"pong\"]").unwrap()); peer.until_closed() };
    Required "no-type", Ping, ["no-agent"], "answers without a type":
        |peer| well(peer, |_| json!({"pong": true}));
    Required "another-answer", Ping, ["no-agent"], "answers `ping` with a status":
        |peer| well(peer, |_| status("healthy"));
    Required "raw-frame", Ping, ["no-agent"], "answers with raw bytes":
        |peer| { once(peer, &encode_data(1, b"pong").unwrap()); peer.until_closed() };
    Required "frame-too-large", Ping, ["no-agent"], "announces an answer of 2 GiB":
        |peer| { once(peer, &[0x7f, 0xff, 0xff, 0xff]); peer.until_closed() };
    Recommended "another-id", Ping, ["no-agent"], "answers with the `id` of another request":
        |peer| well(peer, |_| json!({"type": "pong", "id": 424_242}));
    Required "missing-field", Status, ["no-agent"], "answers `status` without `integrations`":
        |peer| well(peer, |_| without(status("healthy"), "integrations"));
    Required "wrong-type", Status, ["no-agent"], "answers `status` with a text for a number":
        |peer| well(peer, |_| with(status("healthy"), "uptime_secs", json!("long")));
    Required "unknown-fields", Status, ["healthy"], "comes from a newer version: its answer has further fields":
        |peer| well(peer, |_| with(status("healthy"), "mood", json!({"good": [1, 2]})));
    Required "unknown-health", Status, ["ok"], "comes from a newer version: the guest is `convalescent`, which is not healthy":
        |peer| well(peer, |_| status("convalescent"));
    Required "unknown-lifecycle", Status, ["healthy", "ok"], "comes from a newer version: the guest is `hibernating`":
        |peer| well(peer, |_| with(status("healthy"), "lifecycle", json!("hibernating")));
    Required "refuses", Status, ["refused"], "refuses the request":
        |peer| well(peer, |_| refusal("busy"));
    Required "unknown-code", Status, ["refused"], "refuses with a code of a newer version":
        |peer| well(peer, |_| refusal("on-fire"));
    Required "refuses-without-id", Status, ["refused"], "has no room for the connection, and does not read its request":
        |peer| {
            if !peer.shake_hands_if_asked() { return }
            peer.answer(&refusal("too-many-connections"));
            peer.until_closed();
        };
    Required "largest-answer", Status, ["healthy"], "answers with a frame of 262,144 bytes":
        |peer| well(peer, |request| {
            let mut answer = status("healthy");
            answer["id"] = request["id"].clone();
            answer["padding"] = "".into();
            let room = MAX_BODY - answer.to_string().len();
            answer["padding"] = "x".repeat(room).into();
            answer
        });
    Required "nested-deeply", Status, ["healthy", "no-agent"], "answers with 100,000 levels":
        |peer| {
            let deep = format!("{{\"type\":\"status\",\"mood\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
            once(peer, &encode_json(deep.as_bytes()).unwrap());
            peer.until_closed();
        };
    Required "heartbeats", Watch, ["ok"], "is quiet for longer than three heartbeats, which it sends, and then busy":
        |peer| watched(peer, |peer, id| {
            for _ in 0..12 {
                beat(peer, id);
                std::thread::sleep(Duration::from_millis(100));
            }
            busy(peer, id);
        });
    Required "unknown-events", Watch, ["ok"], "comes from a newer version: events of a kind that is not known come between":
        |peer| watched(peer, |peer, id| for _ in 0..3 {
            event(peer, id, json!({"weather": "fine"}));
            busy(peer, id);
        });
    Required "quiet-watch", Watch, ["timed-out"], "watches and says nothing, as a guest that is gone":
        |peer| watched(peer, |_, _| {});
    Required "unknown-events-alone", Watch, ["timed-out", "ok"], "sends nothing but events of a kind that is not known, for 2 s":
        |peer| watched(peer, |peer, id| for _ in 0..20 {
            event(peer, id, json!({"weather": "fine"}));
            std::thread::sleep(Duration::from_millis(100));
        });
    Required "closes-a-watch", Watch, ["unreachable"], "closes within a watch":
        |peer| { if let Some(id) = begun(peer) { beat(peer, &id); } };
    Required "garbage-in-a-watch", Watch, ["no-agent"], "sends what is no event within a watch":
        |peer| watched(peer, |peer, _| { peer.send(&encode_json(b"{]").unwrap()); });
}

/// Answers each request, with its number unless the answer has one.
fn well(peer: &mut Peer, answer: impl Fn(&Value) -> Value) {
    if peer.shake_hands_if_asked() {
        answers(peer, answer);
    }
}

fn answers(peer: &mut Peer, answer: impl Fn(&Value) -> Value) {
    while let Some(request) = peer.request() {
        let mut answer = answer(&request);
        if answer.get("id").is_none() && !request["id"].is_null() {
            answer["id"] = request["id"].clone();
        }
        peer.answer(&answer);
    }
}

/// Answers the first request with these bytes.
fn once(peer: &mut Peer, bytes: &[u8]) {
    if peer.shake_hands_if_asked() && peer.request().is_some() {
        peer.send(bytes);
    }
}

fn framed(answer: &Value) -> Vec<u8> {
    encode_json(answer.to_string().as_bytes()).unwrap()
}

fn pong() -> Vec<u8> {
    framed(&json!({"type": "pong"}))
}

fn refusal(code: &str) -> Value {
    json!({"type": "error", "code": code, "message": "not now", "retryable": true})
}

fn with(mut answer: Value, field: &str, value: Value) -> Value {
    answer[field] = value;
    answer
}

fn without(mut answer: Value, field: &str) -> Value {
    answer.as_object_mut().unwrap().remove(field);
    answer
}

/// Begins a watch, and gives the number of its request.
fn begun(peer: &mut Peer) -> Option<Value> {
    if !peer.shake_hands_if_asked() {
        return None;
    }
    let request = peer.request()?;
    let mut first = status("healthy");
    if !request["id"].is_null() {
        first["id"] = request["id"].clone();
    }
    peer.answer(&first);
    Some(request["id"].clone())
}

fn watched(peer: &mut Peer, then: impl Fn(&mut Peer, &Value)) {
    if let Some(id) = begun(peer) {
        then(peer, &id);
        peer.until_closed();
    }
}

fn beat(peer: &mut Peer, id: &Value) {
    event(peer, id, json!({"heartbeat": true}));
}

/// Tells of three changes.
fn busy(peer: &mut Peer, id: &Value) {
    for _ in 0..3 {
        event(peer, id, json!({"worker": status("healthy")["worker"]}));
    }
}

fn event(peer: &mut Peer, id: &Value, mut event: Value) {
    event["type"] = "event".into();
    event["at"] = "2026-11-24T06:02:11Z".into();
    if !id.is_null() {
        event["id"] = id.clone();
    }
    peer.answer(&event);
}

/// Holds a client against all of them. The client does what it is asked of the agent on that socket,
/// and says a word of [`WORDS`], or why it could not.
pub fn hold(client: impl Fn(Misbehaviour, &std::path::Path) -> Result<String, String>) -> Report {
    let entry = |one: Misbehaviour| {
        let agent = crate::FakeAgent::start(one.serve);
        let said = client(one, agent.path());
        let outcome = match said {
            Ok(word) if one.said.contains(&word.as_str()) => Outcome::Passed,
            Ok(word) => Outcome::Failed {
                why: format!("wanted {}, and it said {word:?}", one.said.join(" or ")),
            },
            Err(why) => Outcome::Failed { why },
        };
        Entry {
            name: one.name.into(),
            level: one.level,
            about: format!("`{}`: the agent {}", one.action.as_str(), one.about),
            outcome,
        }
    };
    Report::of(misbehaviours().into_iter().map(entry).collect(), Vec::new())
}
