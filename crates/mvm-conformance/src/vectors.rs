//! The conformance vectors of `docs/vectors`, which are part of this crate.

use crate::check::{Agent, CHECK_WITHIN, Need};
use crate::conversation::{Conversation, Fault, frame_of, quoted, shown, word};
use crate::report::Level;
use mvm_protocol::Frame;
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::Path;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::timeout;

const REQUESTS: &str = include_str!("../../../docs/vectors/requests.json");
const DEV_REQUESTS: &str = include_str!("../../../docs/vectors/dev-requests.json");
const HANDSHAKE: &str = include_str!("../../../docs/vectors/handshake.json");

/// What is sent, and what has to come back.
#[derive(Debug, Deserialize)]
pub(crate) struct Case {
    pub(crate) name: String,
    #[serde(rename = "meaning")]
    pub(crate) about: String,
    #[serde(default)]
    level: Option<String>,
    #[serde(default)]
    wording: Option<String>,
    #[serde(default)]
    needs: Vec<String>,
    bytes: Vec<Piece>,
    answers: Vec<Value>,
    after: String,
}

/// A line before the first frame, and what comes back.
#[derive(Debug, Deserialize)]
pub(crate) struct Line {
    pub(crate) name: String,
    #[serde(rename = "meaning")]
    pub(crate) about: String,
    bytes: String,
    answer: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Piece {
    Hex(String),
    Repeated { repeat: String, times: usize },
}

#[derive(Deserialize)]
struct Cases {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Lines {
    connect: Vec<Line>,
}

/// What a prod build answers. A file of this crate that cannot be read has no cases, which a test
/// would notice.
pub(crate) fn requests() -> Vec<Case> {
    serde_json::from_str(REQUESTS).map_or(Vec::new(), |read: Cases| read.cases)
}

/// What a dev build answers.
pub(crate) fn dev_requests() -> Vec<Case> {
    serde_json::from_str(DEV_REQUESTS).map_or(Vec::new(), |read: Cases| read.cases)
}

/// What an agent's own socket answers before the first frame.
pub(crate) fn handshake() -> Vec<Line> {
    serde_json::from_str(HANDSHAKE).map_or(Vec::new(), |read: Lines| read.connect)
}

fn hex(text: &str) -> Vec<u8> {
    let pair = |pair: &[u8]| {
        let text = std::str::from_utf8(pair).ok()?;
        u8::from_str_radix(text, 16).ok()
    };
    text.as_bytes().chunks(2).filter_map(pair).collect()
}

impl Case {
    pub(crate) fn level(&self) -> Level {
        match self.level.as_deref() {
            Some("recommended") => Level::Recommended,
            _ => Level::Required,
        }
    }

    pub(crate) fn needs(&self) -> Vec<Need> {
        let need = |need: &String| match need.as_str() {
            "prod" => Need::Prod,
            "disposable" => Need::Disposable,
            capability => Need::Capability(capability.to_owned()),
        };
        self.needs.iter().map(need).collect()
    }

    fn bytes(&self) -> Vec<u8> {
        let piece = |piece: &Piece| match piece {
            Piece::Hex(text) => hex(text),
            Piece::Repeated { repeat, times } => hex(repeat).repeat(*times),
        };
        self.bytes.iter().flat_map(piece).collect()
    }

    /// Sends it, and compares what comes back.
    pub(crate) async fn play(&self, agent: &Agent) -> Result<(), Fault> {
        let mut conversation = Conversation::open(agent).await?;
        // One that closes in the middle may have said why, unread yet.
        let sent = conversation.send_bytes(&self.bytes()).await;
        for expected in &self.answers {
            let answer = self.next(&mut conversation, expected).await;
            let answer = match (answer, &sent) {
                (Err(_), Err(fault)) => return Err(fault.clone()),
                (answer, _) => answer?,
            };
            if let Some(difference) = self.difference(&answer, expected) {
                return Err(format!(
                    "{difference}: wanted {}, got {}",
                    quoted(expected),
                    quoted(&answer)
                ));
            }
        }
        match self.after.as_str() {
            "open" => {
                let further = json!({"type": "ping", "id": 424_242});
                let pong = conversation.ask(&further).await?;
                if pong != json!({"type": "pong", "id": 424_242}) {
                    return Err(format!("a further ping got {}", quoted(&pong)));
                }
                Ok(())
            }
            "closed" => match conversation.frame().await? {
                None => Ok(()),
                Some(frame) => Err(format!("wanted it to close, got {}", quoted(&shown(frame)))),
            },
            "waits" => {
                // By the time that another was answered, this one could have been.
                Conversation::ping(agent).await?;
                conversation.is_silent().await
            }
            _ => Ok(()),
        }
    }

    /// The next answer. While it watches, events may come in between.
    async fn next(
        &self,
        conversation: &mut Conversation,
        expected: &Value,
    ) -> Result<Value, Fault> {
        let wanted = async {
            loop {
                let frame = conversation.frame().await?;
                let answer = match frame {
                    Some(frame @ (Frame::Json(_) | Frame::Data { .. })) => shown(frame),
                    Some(Frame::EmptyData) => return Err("sent a frame without a channel".into()),
                    None => return Err(format!("closed before {}", quoted(expected))),
                };
                if word(&answer, "type") != "event" || word(expected, "type") == "event" {
                    return Ok(answer);
                }
            }
        };
        match timeout(CHECK_WITHIN, wanted).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no {} among its events", quoted(expected))),
        }
    }

    /// The first field that is not as it has to be.
    fn difference(&self, answer: &Value, expected: &Value) -> Option<String> {
        let message = word(answer, "message");
        if message.contains(char::is_control) {
            return Some("a control character in the message".into());
        }
        if answer.get("id") != expected.get("id") {
            return Some("another `id`".into());
        }
        let names = word(expected, "names");
        if self.wording.as_deref() != Some("free") && !message.contains(names) {
            return Some(format!("a message that does not name `{names}`"));
        }
        let fields = expected.as_object()?.iter();
        let mut fields = fields.filter(|(name, _)| *name != "names");
        let other = fields.find(|(name, value)| answer.get(name.as_str()) != Some(*value));
        other.map(|(name, _)| format!("another `{name}`"))
    }
}

impl Line {
    /// Sends it, and compares what comes back. The agent's own socket alone is sent such lines: a
    /// VMM's may break.
    pub(crate) async fn play(&self, agent: &Agent) -> Result<(), Fault> {
        let talk = async {
            let path = agent.endpoint.path().unwrap_or(Path::new(""));
            let stream = UnixStream::connect(path).await;
            let mut stream = stream.map_err(|error| error.to_string())?;
            // It may close before it has read all.
            let _ = stream.write_all(&hex(&self.bytes)).await;
            let expected = self.answer.as_deref().map(hex).unwrap_or_default();
            let mut got = Vec::new();
            let mut buffer = [0; 64];
            while got.len() <= expected.len() {
                match stream.read(&mut buffer).await {
                    Ok(0) | Err(_) => break,
                    Ok(count) => got.extend_from_slice(buffer.get(..count).unwrap_or_default()),
                }
                if !expected.is_empty() && got == expected {
                    // Frames are taken from here on.
                    stream
                        .write_all(&frame_of(&json!({"type": "ping"})))
                        .await
                        .map_err(|error| error.to_string())?;
                    return Ok(());
                }
            }
            if got == expected {
                return Ok(());
            }
            let got = String::from_utf8_lossy(&got).into_owned();
            Err(match &self.answer {
                None => format!("wanted it to close, got {got:?}"),
                Some(_) => format!(
                    "wanted {:?}, got {got:?}",
                    String::from_utf8_lossy(&expected)
                ),
            })
        };
        match timeout(agent.deadlines.answer, talk).await {
            Ok(told) => told,
            Err(_) => Err(format!(
                "neither answered nor closed within {:?}",
                agent.deadlines.answer
            )),
        }
    }
}
