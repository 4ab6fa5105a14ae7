//! One connection to the agent that is looked at: everything that comes from it is bounded, and every
//! wait has a deadline.

use crate::check::Agent;
pub(crate) use crate::check::Fault;
use mvm_client::RawStream;
use mvm_protocol::frame::encode_json;
use mvm_protocol::{AnswerFrame, Decoder, Frame};
use serde_json::Value;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

/// How much of what an agent sent is repeated, in characters.
const QUOTED: usize = 300;

/// A connection, past the handshake.
pub(crate) struct Conversation {
    stream: RawStream,
    decoder: Decoder,
    patience: Duration,
}

impl Conversation {
    pub(crate) async fn open(agent: &Agent) -> Result<Self, Fault> {
        let stream = agent
            .dialer
            .connect_raw(&agent.endpoint, &agent.deadlines)
            .await;
        Ok(Self {
            stream: stream.map_err(|error| error.to_string())?,
            decoder: Decoder::default(),
            patience: agent.deadlines.answer,
        })
    }

    /// Asks on a connection of its own whether the agent serves.
    pub(crate) async fn ping(agent: &Agent) -> Result<(), Fault> {
        let ping = serde_json::json!({"type": "ping"});
        let mut conversation = Self::open(agent).await?;
        conversation.ask_for("pong", &ping).await.map(drop)
    }

    pub(crate) async fn send_bytes(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        match timeout(self.patience, self.stream.write_all(bytes)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(format!("could not be written to: {error}")),
            Err(_) => Err(format!("read nothing for {:?}", self.patience)),
        }
    }

    pub(crate) async fn send(&mut self, request: &Value) -> Result<(), Fault> {
        self.send_bytes(&frame_of(request)).await
    }

    /// The next frame; `None` where the agent has closed.
    pub(crate) async fn frame(&mut self) -> Result<Option<Frame>, Fault> {
        let patience = self.patience;
        self.frame_within(patience).await
    }

    pub(crate) async fn frame_within(
        &mut self,
        patience: Duration,
    ) -> Result<Option<Frame>, Fault> {
        let next = async {
            let mut buffer = [0; 4096];
            loop {
                let frame = self.decoder.next_frame();
                if let Some(frame) = frame.map_err(|error| format!("sent a frame: {error}"))? {
                    return Ok(Some(frame));
                }
                match self.stream.read(&mut buffer).await {
                    Ok(0) | Err(_) => return Ok(None),
                    Ok(count) => self.decoder.push(buffer.get(..count).unwrap_or_default()),
                }
            }
        };
        match timeout(patience, next).await {
            Ok(read) => read,
            Err(_) => Err(format!("nothing came within {patience:?}")),
        }
    }

    /// The next frame, which has to be JSON.
    pub(crate) async fn answer(&mut self) -> Result<Value, Fault> {
        match self.frame().await? {
            Some(Frame::Json(body)) => serde_json::from_slice(&body)
                .map_err(|error| format!("sent what is no JSON: {error}")),
            Some(other) => Err(format!("sent {}", quoted(&shown(other)))),
            None => Err("closed the connection in place of an answer".into()),
        }
    }

    pub(crate) async fn ask(&mut self, request: &Value) -> Result<Value, Fault> {
        self.send(request).await?;
        let answer = self.answer().await;
        answer.map_err(|fault| format!("{} to `{}`", fault, word(request, "type")))
    }

    /// Asks, and wants an answer of that type.
    pub(crate) async fn ask_for(&mut self, kind: &str, request: &Value) -> Result<Value, Fault> {
        let answer = self.ask(request).await?;
        is_of_type(&answer, kind)?;
        Ok(answer)
    }

    /// Asks, and wants to be refused with that code.
    pub(crate) async fn ask_refused(
        &mut self,
        code: &str,
        request: &Value,
    ) -> Result<Value, Fault> {
        let answer = self.ask(request).await?;
        if word(&answer, "type") == "error" && word(&answer, "code") == code {
            Ok(answer)
        } else {
            let kind = word(request, "type");
            Err(format!("`{kind}` wants `{code}`, got {}", quoted(&answer)))
        }
    }

    /// The next event of a watch that has this field, however many others come before it in time.
    pub(crate) async fn event(&mut self, field: &str) -> Result<Value, Fault> {
        let patience = self.patience;
        let found = async {
            loop {
                let event = self.answer().await?;
                is_of_type(&event, "event")?;
                if event.get(field).is_some() {
                    return Ok(event);
                }
            }
        };
        match timeout(patience, found).await {
            Ok(found) => found,
            Err(_) => Err(format!("no event `{field}` within {patience:?}")),
        }
    }

    /// Whether nothing has come by now, and the connection is open.
    pub(crate) async fn is_silent(&mut self) -> Result<(), Fault> {
        match self.frame_within(Duration::from_millis(50)).await {
            Ok(Some(frame)) => Err(format!("sent {} unasked", quoted(&shown(frame)))),
            Ok(None) => Err("closed the connection".into()),
            Err(_) => Ok(()),
        }
    }
}

/// A request's frame. It always fits: requests here are short.
pub(crate) fn frame_of(request: &Value) -> Vec<u8> {
    encode_json(request.to_string().as_bytes()).unwrap_or_default()
}

/// A text field, or nothing.
pub(crate) fn word<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

pub(crate) fn is_of_type(answer: &Value, kind: &str) -> Result<(), Fault> {
    if word(answer, "type") == kind {
        Ok(())
    } else {
        Err(format!("wanted `{kind}`, got {}", quoted(answer)))
    }
}

/// Reads an answer as a client does.
pub(crate) fn read(answer: &Value) -> Result<mvm_protocol::Answer, Fault> {
    match AnswerFrame::read(answer.to_string().as_bytes()) {
        Ok(frame) => Ok(frame.answer),
        Err(error) => Err(format!("cannot be read ({error}): {}", quoted(answer))),
    }
}

/// A frame as the vectors write it.
pub(crate) fn shown(frame: Frame) -> Value {
    match frame {
        Frame::Json(body) => serde_json::from_slice(&body).unwrap_or(Value::Null),
        Frame::Data { channel, bytes } => {
            serde_json::json!({"channel": channel, "data": String::from_utf8_lossy(&bytes)})
        }
        Frame::EmptyData => Value::Null,
    }
}

/// What came, cut short.
pub(crate) fn quoted(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(QUOTED) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}
