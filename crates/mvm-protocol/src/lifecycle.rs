//! Sleep and wake: what a host asks for around a snapshot, and what the agent reports of each step.

use crate::MAX_FIELDS;
use crate::lenient::Lenient;
use crate::object::Object;
use crate::status::is_zero;
use crate::timestamp::Timestamp;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use std::fmt;
use std::time::Duration;

/// The longest token in bytes.
pub const MAX_TOKEN: usize = 256;

/// How many bytes of entropy a host may hand in: enough to seed the generator, and no more than
/// the kernel's pool takes.
pub const ENTROPY_BYTES: std::ops::RangeInclusive<usize> = 32..=512;

/// The longest payload of a wake in bytes of JSON text.
pub const MAX_PAYLOAD: usize = 65_536;

/// Fields of `sleep-prep`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct SleepPrep {
    /// By which the host knows this sleep. The agent makes one up if it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Token>,
    /// Seconds until the guest has to be ready, or is rolled back.
    #[serde(default = "default_deadline")]
    pub deadline_secs: crate::drop_in::Secs,
    /// Seconds of the guest's own time after which it wakes by itself.
    #[serde(default = "default_lease")]
    pub lease_secs: crate::drop_in::Secs,
    /// Whether the sleep fails unless all of the guest's work could be frozen. Asked only of an agent
    /// that has the capability `freeze`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub require_freeze: bool,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_false(flag: &bool) -> bool {
    !flag
}

impl Default for SleepPrep {
    fn default() -> Self {
        Self {
            token: None,
            deadline_secs: default_deadline(),
            lease_secs: default_lease(),
            require_freeze: false,
        }
    }
}

fn default_deadline() -> crate::drop_in::Secs {
    crate::drop_in::secs::<60>()
}

fn default_lease() -> crate::drop_in::Secs {
    crate::drop_in::secs::<600>()
}

/// Fields of `wake`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Wake {
    /// The token of the sleep that this ends. Without one any sleep is ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Token>,
    /// Why the guest runs on.
    #[serde(default)]
    pub cause: WakeCause,
    /// Whether this guest is one of several from one snapshot, and needs an identity of its own.
    #[serde(default)]
    pub clone: bool,
    /// The host's time now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wall_clock: Option<Timestamp>,
    /// Random bytes of the host, other ones for each guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entropy: Option<Entropy>,
    /// What this guest is told of itself, there as `payload.json` before any of its work runs. Sent
    /// only to an agent that has the capability `payload`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<Payload>,
}

/// Why a guest runs on after a sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum WakeCause {
    /// It comes from a snapshot.
    #[default]
    Restored,
    /// The snapshot was not taken after all.
    Aborted,
}

/// A host's name for one sleep: 1 to [`MAX_TOKEN`] bytes. Whoever knows it can end the sleep, so it
/// is never logged.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Token(String);

impl Token {
    /// The token, if it is of the allowed length.
    pub fn new(text: &str) -> Option<Self> {
        (1..=MAX_TOKEN)
            .contains(&text.len())
            .then(|| Self(text.to_owned()))
    }

    /// A token for a host that gave none.
    pub fn made_up(number: u64) -> Self {
        Self(format!("agent-{number:016x}"))
    }

    /// The token's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Serialize for Token {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Token {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The text itself must not get into the message.
        Self::new(&String::deserialize(deserializer)?)
            .ok_or_else(|| D::Error::custom(format!("a token has 1 to {MAX_TOKEN} bytes")))
    }
}

/// Random bytes for the kernel's generator. Never logged.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Entropy(Vec<u8>);

impl Entropy {
    /// The bytes, if they are as many as [`ENTROPY_BYTES`] asks for.
    pub fn new(bytes: Vec<u8>) -> Option<Self> {
        ENTROPY_BYTES.contains(&bytes.len()).then_some(Self(bytes))
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Entropy {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Entropy({} bytes)", self.0.len())
    }
}

impl Serialize for Entropy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Entropy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = STANDARD
            .decode(text)
            .map_err(|_| D::Error::custom("not base64"))?;
        let count = bytes.len();
        Self::new(bytes)
            .ok_or_else(|| D::Error::custom(format!("{count} bytes; 32 to 512 are asked for")))
    }
}

/// A JSON object of at most [`MAX_PAYLOAD`] bytes, kept as the text that it was sent as. It may have
/// secrets in it, and is never logged.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Payload(String);

impl Payload {
    /// The object with that text.
    ///
    /// # Errors
    ///
    /// What is wrong with it: it is no JSON object, or too long. The text itself is not in the message.
    pub fn new(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.len() > MAX_PAYLOAD {
            return Err(format!(
                "a payload of {} bytes; at most {MAX_PAYLOAD} are taken",
                text.len()
            ));
        }
        match Object::parse(text.as_bytes()) {
            Ok(_) => Ok(Self(text.to_owned())),
            Err(problem) => Err(format!(
                "a payload that is no JSON object of at most {MAX_FIELDS} fields: {}",
                problem.message
            )),
        }
    }

    /// The object's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.0.len())
    }
}

impl Serialize for Payload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let raw = RawValue::from_string(self.0.clone()).map_err(serde::ser::Error::custom)?;
        raw.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        Self::new(raw.get()).map_err(D::Error::custom)
    }
}

/// What a step of sleeping or waking does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum StepKind {
    /// Hold new checks, and end those that run.
    Drain,
    /// Run an integration's checkpoint command.
    Checkpoint,
    /// Write a filesystem's dirty pages.
    Sync,
    /// Freeze the guest's work, so that nothing of it runs between the snapshot and the wake.
    Freeze,
    /// Drop the page cache, so that the snapshot is small.
    DropCaches,
    /// Give the kernel's random generator a new seed.
    Reseed,
    /// Set the wall clock.
    Clock,
    /// Give a clone an identity of its own.
    Identity,
    /// Put the wake's payload where programs find it.
    Payload,
    /// Run an integration's personalize command, while the guest's work is frozen still.
    Personalize,
    /// Let the guest's work run again.
    Thaw,
    /// Run an integration's restore command.
    Restore,
    /// Let checks run again.
    Resume,
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It did what it is for.
    Ok,
    /// It did not.
    Failed,
    /// Its time was up.
    TimedOut,
    /// It was not tried, and `detail` says why.
    Skipped,
}

/// One thing that `sleep-prep` or `wake` did.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Step {
    /// What it was.
    pub step: Lenient<StepKind>,
    /// The integration whose command it ran, if it ran one.
    pub integration: Option<String>,
    /// How it ended.
    pub outcome: Lenient<Outcome>,
    /// How long it took.
    pub duration_ms: u64,
    /// What a command printed and how it ended, why a step was skipped, or which filesystem.
    pub detail: Option<String>,
}

/// Answers `sleep-prep`: the guest may be frozen now.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Ready {
    /// The sleep's token: the host's, or the one that the agent made up.
    pub token: Token,
    /// What was done, in order.
    pub steps: Vec<Step>,
    /// How many of them found no room in the frame.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub steps_omitted: usize,
}

/// Answers `wake`: the guest runs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Awake {
    /// Whether the guest was ready when the wake came.
    pub was_ready: bool,
    /// Whether the guest had woken by itself since its lease ran out.
    pub lease_expired: bool,
    /// How many restores this guest has seen.
    pub generation: u64,
    /// What was done, in order.
    pub steps: Vec<Step>,
    /// How many of them found no room in the frame.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub steps_omitted: usize,
}

impl SleepPrep {
    /// The time until the guest is ready or has begun to roll back.
    pub fn deadline(&self) -> Duration {
        self.deadline_secs.duration()
    }
}

#[cfg(feature = "schema")]
mod schema {
    use super::{Entropy, Payload, Token};
    use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
    use std::borrow::Cow;

    impl JsonSchema for Token {
        fn inline_schema() -> bool {
            true
        }

        fn schema_name() -> Cow<'static, str> {
            "Token".into()
        }

        fn json_schema(_: &mut SchemaGenerator) -> Schema {
            json_schema!({ "type": "string", "minLength": 1, "maxLength": 256 })
        }
    }

    impl JsonSchema for Payload {
        fn inline_schema() -> bool {
            true
        }

        fn schema_name() -> Cow<'static, str> {
            "Payload".into()
        }

        fn json_schema(_: &mut SchemaGenerator) -> Schema {
            json_schema!({
                "type": "object",
                "description": "a JSON object of at most 65,536 bytes of text"
            })
        }
    }

    impl JsonSchema for Entropy {
        fn inline_schema() -> bool {
            true
        }

        fn schema_name() -> Cow<'static, str> {
            "Entropy".into()
        }

        fn json_schema(_: &mut SchemaGenerator) -> Schema {
            json_schema!({
                "type": "string",
                "contentEncoding": "base64",
                "minLength": 44,
                "maxLength": 684,
                "description": "32 to 512 random bytes, base64"
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_never_shown() {
        let token = Token::new("s3cret").unwrap();
        let entropy = Entropy::new(vec![0x55; 32]).unwrap();
        let wake = Wake {
            token: Some(token),
            entropy: Some(entropy),
            ..Wake::default()
        };
        let shown = format!("{wake:?}");
        assert!(
            !shown.contains("s3cret") && !shown.contains("85"),
            "{shown}"
        );
        let long = format!("{{\"token\":\"{}\"}}", "x".repeat(300));
        let error = serde_json::from_str::<Wake>(&long).unwrap_err().to_string();
        assert!(!error.contains("xxx"), "{error}");
    }

    #[test]
    fn a_payload_is_an_object_of_bounded_length_and_never_shown() {
        let of = |length: usize| format!(r#"{{"k":"{}"}}"#, "x".repeat(length - 8));
        assert_eq!(
            Payload::new(&of(MAX_PAYLOAD)).unwrap().as_str().len(),
            65_536
        );
        let error = Payload::new(&of(MAX_PAYLOAD + 1)).unwrap_err();
        assert_eq!(error, "a payload of 65537 bytes; at most 65536 are taken");
        for text in ["", "[1]", "\"secret\"", "{\"secret\":}", "{} {}"] {
            let error = Payload::new(text).unwrap_err();
            assert!(
                error.starts_with("a payload that is no JSON object"),
                "{error}"
            );
        }
        let wake: Wake =
            serde_json::from_str(r#"{"payload": {"b": 1.50, "a": "s3cret"}}"#).unwrap();
        assert!(!format!("{wake:?}").contains("s3cret"));
        let again = serde_json::to_string(&wake).unwrap();
        assert!(
            again.contains(r#""payload":{"b": 1.50, "a": "s3cret"}"#),
            "the text as it was sent: {again}"
        );
    }

    #[test]
    fn entropy_is_bounded_both_ways() {
        for (bytes, good) in [(31, false), (32, true), (512, true), (513, false)] {
            let text = STANDARD.encode(vec![7; bytes]);
            let read = serde_json::from_str::<Entropy>(&format!("\"{text}\""));
            assert_eq!(read.is_ok(), good, "{bytes}");
        }
        assert!(serde_json::from_str::<Entropy>("\"***\"").is_err());
    }

    #[test]
    fn defaults_are_those_of_the_protocol() {
        let prep: SleepPrep = serde_json::from_str("{}").unwrap();
        assert_eq!(prep, SleepPrep::default());
        assert_eq!(prep.deadline(), Duration::from_secs(60));
        assert_eq!(prep.lease_secs.duration(), Duration::from_secs(600));
        let wake: Wake = serde_json::from_str("{}").unwrap();
        assert_eq!(wake, Wake::default());
        assert_eq!((wake.cause, wake.clone), (WakeCause::Restored, false));
    }
}
