//! Every answer, one line each, and the error codes.

use crate::lenient::Lenient;
use crate::lifecycle::{Awake, Ready, Step};
use crate::object::in_one_line;
pub use crate::status::Profile;
use crate::status::{
    DropInError, DropIns, Health, Inspect, IntegrationStatus, Lifecycle, ProbeStatus, Restored,
    Status, Worker, is_zero,
};
use crate::timestamp::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// What the agent answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Answer {
    /// Answers `ping`.
    Pong,
    /// Answers `hello`.
    Hello(Hello),
    /// Answers `status`, and opens the answer to `watch`.
    Status(Status),
    /// Answers `inspect`.
    Inspect(Box<Inspect>),
    /// Answers `check`.
    Checked(Checked),
    /// Answers `reload`.
    Reloaded(Reloaded),
    /// Answers `sleep-prep`.
    Ready(Ready),
    /// Answers `wake`.
    Awake(Awake),
    /// Follows the `status` frame of a `watch`.
    Event(Event),
    /// Answers any request that was refused or failed.
    Error(ErrorAnswer),
}

/// An answer's body: the answer, and the number that its request carried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AnswerOf<A> {
    /// The answer.
    #[serde(flatten)]
    pub answer: A,
    /// The request's `id`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub id: Option<u64>,
}

/// The body of an answer to a request that every build serves.
pub type AnswerFrame = AnswerOf<Answer>;

/// Who serves the connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Hello {
    /// The protocol's version: 1.
    pub protocol: u32,
    /// The agent's version.
    pub agent_version: String,
    /// Which build it is.
    pub profile: Lenient<Profile>,
    /// The request types that this build serves.
    pub capabilities: Vec<String>,
    /// The kernel's random id of this boot (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// How many restores this guest has seen.
    pub generation: u64,
}

/// The fresh entry of what was checked, in the shape that `status` or `inspect` gives it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Checked {
    /// The integration, if one was checked.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub integration: Option<IntegrationStatus>,
    /// The probe, if one was checked.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub probe: Option<ProbeStatus>,
}

/// What a reload found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Reloaded {
    /// How many integrations are loaded.
    pub integrations: usize,
    /// How many probes are loaded.
    pub probes: usize,
    /// The files that were rejected.
    pub errors: Vec<DropInError>,
    /// How many rejected files found no room in the frame.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub errors_omitted: usize,
}

/// A change, in one of its fields.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Event {
    /// When it came about.
    pub at: Timestamp,
    /// What came about.
    #[serde(flatten)]
    pub change: Change,
}

/// What an event tells. A client takes an event of a kind that it does not know for
/// [`Change::Unknown`] and goes on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case", untagged)]
pub enum Change {
    /// The worker turned idle or busy, or its reasons changed.
    Worker {
        /// The worker as it is now.
        worker: Worker,
    },
    /// An integration's check ended.
    Integration {
        /// The integration as it is now.
        integration: Box<IntegrationStatus>,
    },
    /// The guest's lifecycle went on.
    Lifecycle {
        /// The lifecycle as it is now.
        lifecycle: Lenient<Lifecycle>,
    },
    /// The drop-ins were read anew.
    DropIns {
        /// What was found.
        drop_ins: DropIns,
    },
    /// The agent has noticed a restore.
    Restored {
        /// What it knows of it.
        restored: Restored,
    },
    /// Nothing came about: the guest is there.
    Heartbeat {
        /// Always true.
        heartbeat: bool,
    },
    /// Written by a newer agent.
    #[cfg_attr(feature = "schema", schemars(skip))]
    Unknown {},
}

/// Why a request was refused or failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ErrorAnswer {
    /// For programs: decisions depend on this alone.
    pub code: Lenient<ErrorCode>,
    /// For people: what was wrong, with the field's or thing's name.
    pub message: String,
    /// Whether the same request may succeed later, unchanged.
    pub retryable: bool,
    /// What was done, where work was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<Vec<Step>>,
    /// How many of them found no room in the frame.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub steps_omitted: usize,
}

impl ErrorAnswer {
    /// An error that is retryable if its code is.
    ///
    /// A library's words may quote what somebody has sent, terminal escapes too: no message holds a control
    /// character, whoever made it.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: in_one_line(&message.into()),
            retryable: code.is_retryable(),
            steps: None,
            steps_omitted: 0,
        }
    }
}

/// The error codes of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// A header over the cap; the connection is closed.
    FrameTooLarge,
    /// A body that is not the JSON object that its type asks for.
    BadRequest,
    /// A type that this agent does not know.
    UnknownRequest,
    /// This build, or its configuration, does not serve the request.
    NotAllowed,
    /// Nothing has that name.
    NotFound,
    /// Not now: something else is under way.
    Busy,
    /// The request's deadline passed.
    TimedOut,
    /// The guest could not be made ready for a snapshot.
    SleepPrepFailed,
    /// Another host's token holds the guest.
    WrongToken,
    /// The work was begun and failed.
    Failed,
    /// All connections are taken.
    TooManyConnections,
}

impl ErrorCode {
    /// Whether the same request may succeed later, unchanged.
    pub fn is_retryable(self) -> bool {
        matches!(self, Self::Busy | Self::TimedOut | Self::TooManyConnections)
    }

    /// The code as it stands on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::FrameTooLarge => "frame-too-large",
            Self::BadRequest => "bad-request",
            Self::UnknownRequest => "unknown-request",
            Self::NotAllowed => "not-allowed",
            Self::NotFound => "not-found",
            Self::Busy => "busy",
            Self::TimedOut => "timed-out",
            Self::SleepPrepFailed => "sleep-prep-failed",
            Self::WrongToken => "wrong-token",
            Self::Failed => "failed",
            Self::TooManyConnections => "too-many-connections",
        }
    }
}

impl Lenient<ErrorCode> {
    /// The code as it stands on the wire.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Known(code) => code.as_str(),
            Self::Other(word) => word.as_str(),
        }
    }
}

impl<A: DeserializeOwned> AnswerOf<A> {
    /// Reads a body leniently: unknown fields are ignored, unknown event kinds are kept as unknown,
    /// unknown words in fields that describe as they came ([`Lenient`]).
    pub fn read(body: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(body)
    }
}

/// The `type` of an event. What is read by its fields is given up at any other, which comes first.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum EventType {
    Event,
}

/// The `type` of an answer to `status`, likewise.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum StatusType {
    Status,
}

/// A heartbeat, and nothing else.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Beat {
    #[serde(rename = "type")]
    _type: EventType,
    id: u64,
    at: Timestamp,
    heartbeat: bool,
}

/// The answer to a `status`, field by field.
#[derive(Deserialize)]
struct StatusAnswer {
    #[serde(rename = "type")]
    _type: StatusType,
    id: u64,
    lifecycle: Lenient<Lifecycle>,
    health: Lenient<Health>,
    uptime_secs: f64,
    #[serde(default)]
    now: Option<Timestamp>,
    worker: Worker,
    integrations: Vec<IntegrationStatus>,
    #[serde(default)]
    integrations_omitted: usize,
}

impl AnswerFrame {
    /// The same as [`AnswerOf::read`] of the answer to a `status`; `None` for all else. As just any
    /// answer all of it would be kept as it came first, until its type is known, and then be read once
    /// more: twice the time where ten thousand guests are asked.
    pub fn read_status(body: &[u8]) -> Option<Self> {
        let read: StatusAnswer = serde_json::from_slice(body).ok()?;
        let status = Status {
            lifecycle: read.lifecycle,
            health: read.health,
            uptime_secs: read.uptime_secs,
            now: read.now,
            worker: read.worker,
            integrations: read.integrations,
            integrations_omitted: read.integrations_omitted,
        };
        Some(Self {
            answer: Answer::Status(status),
            id: Some(read.id),
        })
    }

    /// The same as [`AnswerOf::read`] of a heartbeat; `None` for all else, and for one with fields that
    /// are not known. Of a fleet that rests nothing else comes, and as just any answer it would be held
    /// against each kind of event in turn.
    pub fn read_heartbeat(body: &[u8]) -> Option<Self> {
        let beat: Beat = serde_json::from_slice(body).ok()?;
        let event = Event {
            at: beat.at,
            change: Change::Heartbeat {
                heartbeat: beat.heartbeat,
            },
        };
        Some(Self {
            answer: Answer::Event(event),
            id: Some(beat.id),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lenient::Word;
    use proptest::prelude::*;

    fn read(text: &str) -> Answer {
        AnswerFrame::read(text.as_bytes()).unwrap().answer
    }

    #[test]
    fn the_wire_form_is_flat() {
        let frame = AnswerFrame {
            answer: Answer::Pong,
            id: Some(3),
        };
        assert_eq!(
            serde_json::to_string(&frame).unwrap(),
            r#"{"type":"pong","id":3}"#
        );
        let error = ErrorAnswer::new(ErrorCode::Busy, "later");
        let frame = AnswerFrame {
            answer: Answer::Error(error),
            id: None,
        };
        assert_eq!(
            serde_json::to_string(&frame).unwrap(),
            r#"{"type":"error","code":"busy","message":"later","retryable":true}"#
        );
    }

    #[test]
    fn no_message_holds_a_control_character() {
        let error = ErrorAnswer::new(ErrorCode::Failed, "not a number: \x1b[31m\u{9b}2J\n\0, ü");
        let shown = "not a number: \u{fffd}[31m\u{fffd}2J\u{fffd}\u{fffd}, ü";
        assert_eq!(error.message, shown);
    }

    #[test]
    fn a_heartbeat_is_read_the_same_either_way() {
        let beat = r#"{"type":"event","id":7,"at":"2026-11-24T06:02:11.123Z","heartbeat":true}"#;
        let read = AnswerFrame::read(beat.as_bytes()).unwrap();
        assert_eq!(AnswerFrame::read_heartbeat(beat.as_bytes()), Some(read));
        for other in [
            r#"{"type":"event","id":7,"at":"2026-11-24T06:02:11.123Z","lifecycle":"ready"}"#,
            r#"{"type":"event","id":7,"at":"2026-11-24T06:02:11.123Z","heartbeat":true,"x":1}"#,
            r#"{"type":"x","id":7,"at":"2026-11-24T06:02:11.123Z","heartbeat":true}"#,
            r#"{"type":"pong","id":7}"#,
            r#"{"type":"event""#,
        ] {
            assert_eq!(
                AnswerFrame::read_heartbeat(other.as_bytes()),
                None,
                "{other}"
            );
        }
    }

    #[test]
    fn a_status_is_read_the_same_either_way() {
        let status = r#""lifecycle":"running","health":"sleepy","uptime_secs":1.5,"x":[{}],
            "worker":{"state":"idle","since":"2026-11-24T06:02:11.123Z","last_busy_at":null,
            "because":["cpu"],"load1":0.0,"runnable":1},"integrations":[],"integrations_omitted":3"#;
        let answer = format!(r#"{{"type":"status","id":7,{status}}}"#);
        let read = AnswerFrame::read(answer.as_bytes()).unwrap();
        assert_eq!(AnswerFrame::read_status(answer.as_bytes()), Some(read));
        let turned = format!(r#"{{{status},"id":7,"type":"status"}}"#);
        let read = AnswerFrame::read(turned.as_bytes()).unwrap();
        assert_eq!(AnswerFrame::read_status(turned.as_bytes()), Some(read));
        for other in [
            format!(r#"{{"type":"inspect","id":7,{status}}}"#),
            format!(r#"{{"type":"status",{status}}}"#),
            r#"{"type":"status","id":7}"#.to_owned(),
            format!(r#"{{"type":"status","id":7,{status}"#),
        ] {
            assert_eq!(AnswerFrame::read_status(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn events_are_told_by_their_field() {
        let event = r#"{"type":"event","at":"1970-01-01T00:00:00Z","lifecycle":"ready","x":1}"#;
        let Answer::Event(event) = read(event) else {
            panic!()
        };
        assert_eq!(
            event.change,
            Change::Lifecycle {
                lifecycle: Lifecycle::Ready.into()
            }
        );
        let event = r#"{"type":"event","at":"1970-01-01T00:00:00Z","weather":"fine"}"#;
        let Answer::Event(event) = read(event) else {
            panic!()
        };
        assert_eq!(event.change, Change::Unknown {});
    }

    #[test]
    fn newer_agents_are_understood() {
        let Answer::Error(error) = read(
            r#"{"type":"error","code":"on-fire","message":"m","retryable":false,"steps":[],"new":1}"#,
        ) else {
            panic!()
        };
        assert_eq!(error.code, Lenient::Other(Word::new("on-fire")));
        assert_eq!(read(r#"{"type":"pong","mood":"good"}"#), Answer::Pong);
    }

    #[test]
    fn codes_read_as_they_are_written() {
        for code in [
            "frame-too-large",
            "not-found",
            "sleep-prep-failed",
            "too-many-connections",
        ] {
            let read: ErrorCode = serde_json::from_str(&format!("\"{code}\"")).unwrap();
            assert_eq!(read.as_str(), code);
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(body in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = AnswerFrame::read(&body);
        }
    }
}
