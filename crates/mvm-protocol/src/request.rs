//! Every request, one line each, and how a body becomes one.

use crate::answer::{ErrorAnswer, ErrorCode};
use crate::lifecycle::{SleepPrep, Wake};
use crate::object::{Object, Problem, printable};
use serde::{Deserialize, Deserializer, Serialize};
use std::time::Duration;

/// What a host asks of the agent.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Request {
    /// Is the agent there? Answered by `pong`.
    Ping,
    /// Who is there: protocol, version, profile, capabilities, boot id.
    Hello,
    /// Lifecycle, worker, health and integrations.
    Status,
    /// All of `status`, and probes, system, agent and snapshot history.
    Inspect,
    /// Run one health check or probe now and answer with its fresh entry.
    Check(Check),
    /// Read the drop-ins anew.
    Reload,
    /// One `status` frame, then `event` frames until the client closes.
    Watch(Watch),
    /// Make the guest ready to be frozen.
    SleepPrep(SleepPrep),
    /// Let the guest run on.
    Wake(Box<Wake>),
}

impl Request {
    /// The request's `type`.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Hello => "hello",
            Self::Status => "status",
            Self::Inspect => "inspect",
            Self::Check(_) => "check",
            Self::Reload => "reload",
            Self::Watch(_) => "watch",
            Self::SleepPrep(_) => "sleep-prep",
            Self::Wake(_) => "wake",
        }
    }
}

/// The request types that this version of the protocol crate can read, in the order in which
/// `hello` reports them.
pub const REQUEST_TYPES: [&str; 9] = [
    "ping",
    "hello",
    "status",
    "inspect",
    "check",
    "reload",
    "watch",
    "sleep-prep",
    "wake",
];

/// What every build can do beyond its requests, in the order in which `hello` reports it after them: a
/// field that belongs to one is sent only to an agent that lists it, since agents refuse unknown fields.
pub const FEATURES: [&str; 3] = [FREEZE, PAYLOAD, "personalize"];

/// The capability that `require_freeze` of `sleep-prep` belongs to.
pub const FREEZE: &str = "freeze";

/// The capability that `payload` of `wake` belongs to.
pub const PAYLOAD: &str = "payload";

/// The one of the [`DEV_REQUEST_TYPES`] that other builds serve as well where their configuration
/// exposes ports; then it is among their capabilities.
pub const FORWARD: &str = "forward";

/// Request types that belong to dev builds of the agent: a prod build answers `not-allowed`, but for
/// [`FORWARD`] to the ports that it exposes.
pub const DEV_REQUEST_TYPES: [&str; 7] = [
    "exec",
    "put",
    "get",
    "jobs",
    "attach",
    "job-signal",
    FORWARD,
];

/// Fields of `check`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// Whether `name` is an integration's or a probe's.
    pub kind: CheckKind,
    /// The integration's or probe's name.
    pub name: String,
}

/// What a check can be of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum CheckKind {
    /// A service's health command.
    Integration,
    /// A read-only probe.
    Probe,
}

/// Fields of `watch`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Watch {
    /// Seconds between heartbeats, 0.05 to 86,400; fractions allowed.
    #[serde(default = "default_heartbeat", deserialize_with = "heartbeat")]
    #[cfg_attr(feature = "schema", schemars(range(min = 0.05, max = 86400)))]
    pub heartbeat_secs: f64,
}

impl Watch {
    /// Time between heartbeats.
    pub fn heartbeat(&self) -> Duration {
        Duration::try_from_secs_f64(self.heartbeat_secs).unwrap_or(Duration::from_secs(15))
    }
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            heartbeat_secs: default_heartbeat(),
        }
    }
}

fn default_heartbeat() -> f64 {
    15.0
}

fn heartbeat<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let secs = f64::deserialize(deserializer)?;
    if (0.05..=86_400.0).contains(&secs) {
        Ok(secs)
    } else {
        Err(serde::de::Error::custom(format!(
            "{secs} is not from 0.05 to 86400 seconds"
        )))
    }
}

/// A request's body: the request, and the number by which its client will know the answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RequestOf<R> {
    /// The request.
    #[serde(flatten)]
    pub request: R,
    /// Carried back by every frame of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
}

/// The body of a request that every build serves.
pub type RequestFrame = RequestOf<Request>;

/// A body that was read: its `id` even if the rest of it is refused, so that a client that
/// pipelines can tell which of its requests was wrong.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed<R> {
    /// The request's `id`, if it had a good one.
    pub id: Option<u64>,
    /// The request's `type` as the client wrote it, if it had one.
    pub kind: Option<String>,
    /// The request, or the error to answer with.
    pub request: Result<R, ErrorAnswer>,
}

/// A body read as a request that every build serves.
pub type ParsedRequest = Parsed<Request>;

/// What a body can be read as.
pub trait FromObject: Sized {
    /// Reads the fields of an object with this `type`; nothing if it is none of these.
    fn from_object(kind: &str, object: Object) -> Option<Result<Self, Problem>>;
}

impl<R: FromObject> Parsed<R> {
    /// Reads a body strictly. Never fails: what cannot be read becomes an error answer.
    pub fn read(body: &[u8]) -> Self {
        let (mut id, mut kind) = (None, None);
        let request = read_fields(body, &mut id, &mut kind).map_err(|refusal| match refusal {
            Refusal::Body(problem) => ErrorAnswer::new(ErrorCode::BadRequest, problem.message),
            Refusal::Type(name) => ErrorAnswer::new(
                ErrorCode::UnknownRequest,
                format!("no request has the type `{}`", printable(&name)),
            ),
        });
        Self { id, kind, request }
    }
}

fn read_fields<R: FromObject>(
    body: &[u8],
    id: &mut Option<u64>,
    kept_kind: &mut Option<String>,
) -> Result<R, Refusal> {
    let mut object = Object::parse(body)?;
    *id = object.take("id")?;
    let kind: String = object.take("type")?.ok_or_else(|| Problem {
        line: 1,
        field: Some("type".into()),
        message: "missing field `type`".into(),
    })?;
    *kept_kind = Some(kind.clone());
    match R::from_object(&kind, object) {
        Some(request) => Ok(request?),
        None => Err(Refusal::Type(kind)),
    }
}

impl FromObject for Request {
    fn from_object(kind: &str, object: Object) -> Option<Result<Self, Problem>> {
        let plain = |object: Object, request| object.into_empty().map(|()| request);
        Some(match kind {
            "ping" => plain(object, Self::Ping),
            "hello" => plain(object, Self::Hello),
            "status" => plain(object, Self::Status),
            "inspect" => plain(object, Self::Inspect),
            "check" => object.into_shape().map(Self::Check),
            "reload" => plain(object, Self::Reload),
            "watch" => object.into_shape().map(Self::Watch),
            "sleep-prep" => object.into_shape().map(Self::SleepPrep),
            "wake" => object.into_shape().map(|wake| Self::Wake(Box::new(wake))),
            _ => return None,
        })
    }
}

enum Refusal {
    Body(Problem),
    Type(String),
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self::Body(problem)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refused(body: &str, code: ErrorCode, message: &str) {
        let error = ParsedRequest::read(body.as_bytes()).request.unwrap_err();
        assert_eq!(error.code, code, "{body}: {error:?}");
        assert!(error.message.contains(message), "{body}: {error:?}");
    }

    #[test]
    fn every_listed_type_is_read() {
        for kind in REQUEST_TYPES {
            let body = match kind {
                "check" => r#"{"type":"check","kind":"probe","name":"x","id":7}"#.to_owned(),
                kind => format!(r#"{{"id":7,"type":"{kind}"}}"#),
            };
            let parsed = ParsedRequest::read(body.as_bytes());
            let request = parsed.request.unwrap();
            assert_eq!(request.type_name(), kind);
            assert_eq!((parsed.id, parsed.kind.as_deref()), (Some(7), Some(kind)));
            let frame = RequestFrame {
                request: request.clone(),
                id: Some(7),
            };
            let again = ParsedRequest::read(&serde_json::to_vec(&frame).unwrap());
            assert_eq!((again.id, again.request), (Some(7), Ok(request)));
        }
    }

    #[test]
    fn refusals_name_the_field() {
        use ErrorCode::{BadRequest, UnknownRequest};
        refused(r#"{"type":"ping","extra":1}"#, BadRequest, "`extra`");
        refused(
            r#"{"type":"check","kind":"integration"}"#,
            BadRequest,
            "`name`",
        );
        refused(
            r#"{"type":"check","kind":"other","name":"a"}"#,
            BadRequest,
            "field `kind`",
        );
        refused(
            r#"{"type":"check","kind":"probe","name":1}"#,
            BadRequest,
            "field `name`",
        );
        refused(
            r#"{"type":"watch","heartbeat_secs":0}"#,
            BadRequest,
            "field `heartbeat_secs`",
        );
        refused(
            r#"{"type":"watch","heartbeat_secs":1e999}"#,
            BadRequest,
            "heartbeat_secs",
        );
        refused(
            r#"{"type":"ping","type":"ping"}"#,
            BadRequest,
            "`type` is given twice",
        );
        refused(
            r#"{"type":"ping","id":18446744073709551616}"#,
            BadRequest,
            "field `id`",
        );
        refused(r#"{"type":"ping","id":-1}"#, BadRequest, "field `id`");
        refused(r#"{"type":"ping","id":1.5}"#, BadRequest, "field `id`");
        refused(r#"{"type":7}"#, BadRequest, "field `type`");
        refused(r#"{"id":7}"#, BadRequest, "missing field `type`");
        refused("[]", BadRequest, "object");
        refused("", BadRequest, "EOF");
        refused(r#"{"type":"exec"}"#, UnknownRequest, "`exec`");
        refused(
            r#"{"type":"sleep-prep","deadline_secs":0}"#,
            BadRequest,
            "field `deadline_secs`",
        );
        refused(
            r#"{"type":"wake","entropy":"AAAA"}"#,
            BadRequest,
            "field `entropy`",
        );
        refused(
            r#"{"type":"wake","wall_clock":"now"}"#,
            BadRequest,
            "field `wall_clock`",
        );
        refused(r#"{"type":"Ping"}"#, UnknownRequest, "`Ping`");
    }

    /// As clients send what they have not, which have no other word for it.
    #[test]
    fn null_is_as_good_as_none_for_what_has_no_default() {
        for (kind, fields) in [
            ("sleep-prep", &["token"][..]),
            ("wake", &["token", "wall_clock", "entropy", "payload"]),
        ] {
            let without = ParsedRequest::read(format!(r#"{{"type":"{kind}"}}"#).as_bytes());
            for field in fields {
                let body = format!(r#"{{"type":"{kind}","{field}":null}}"#);
                let parsed = ParsedRequest::read(body.as_bytes());
                assert_eq!(parsed.request.unwrap(), *without.request.as_ref().unwrap());
            }
        }
    }

    #[test]
    fn a_refusal_keeps_the_id() {
        let parsed = ParsedRequest::read(br#"{"id":18446744073709551615,"type":"nope"}"#);
        assert_eq!(parsed.id, Some(u64::MAX));
        let parsed = ParsedRequest::read(br#"{"type":"ping","extra":1,"id":4}"#);
        assert_eq!(parsed.id, Some(4));
    }

    proptest! {
        #[test]
        fn never_panics(body in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = ParsedRequest::read(&body);
        }

        #[test]
        fn json_of_any_shape_never_panics(body in "[\\{\\}\\[\\]\",:0-9a-z\\\\ ]{0,80}") {
            let _ = ParsedRequest::read(body.as_bytes());
        }
    }
}
