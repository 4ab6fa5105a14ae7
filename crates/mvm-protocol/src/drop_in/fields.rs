//! What fields of drop-in files can be, each with its bounds.

use crate::object::{printable, printable_number};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::time::Duration;

/// The longest interval and timeout in seconds: a day.
pub const MAX_SECS: f64 = 86_400.0;

/// `[A-Za-z0-9._-]{1,64}`
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

impl Name {
    /// The name, if it is of the allowed form.
    pub fn new(name: &str) -> Option<Self> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        ((1..=64).contains(&name.len()) && name.bytes().all(allowed)).then(|| Self(name.to_owned()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::new(&name).ok_or_else(|| {
            D::Error::custom(format!(
                "`{}` is not of the form [A-Za-z0-9._-]{{1,64}}",
                printable(&name)
            ))
        })
    }
}

/// A shell command. Never blank: `sh -c ''` succeeds, and a check of nothing must not be healthy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command(String);

impl Command {
    /// The command's text for `sh -c`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Command {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.trim().is_empty() {
            return Err(D::Error::custom(
                "a blank command, which would always succeed",
            ));
        }
        if text.contains('\0') {
            return Err(D::Error::custom(
                "a NUL byte, which no command line can hold",
            ));
        }
        Ok(Self(text))
    }
}

/// A program and its arguments, run without a shell. The program is an absolute path: nothing looks
/// it up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Argv(Vec<String>);

impl Argv {
    /// The program, and its arguments.
    pub fn words(&self) -> &[String] {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Argv {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let words = Vec::<String>::deserialize(deserializer)?;
        let wrong = match words.first() {
            None => "an empty list; the program's path is its first word",
            Some(program) if !program.starts_with('/') => {
                "the first word is the program, by its absolute path: nothing looks it up"
            }
            _ if words.iter().any(|word| word.contains('\0')) => {
                "a NUL byte, which no command line can hold"
            }
            _ => return Ok(Self(words)),
        };
        Err(D::Error::custom(wrong))
    }
}

/// A user by name, or by number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User(String);

impl User {
    /// The name or number as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for User {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let user = String::deserialize(deserializer)?;
        let allowed = |c: char| !c.is_control() && !c.is_whitespace() && c != ':';
        if user.is_empty() || user.len() > 64 || !user.chars().all(allowed) {
            let shown = printable(&user);
            return Err(D::Error::custom(format!("`{shown}` is no user name")));
        }
        Ok(Self(user))
    }
}

/// An interval or timeout: over 0 and at most [`MAX_SECS`] seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Secs(Duration);

impl Secs {
    /// As a duration.
    pub fn duration(self) -> Duration {
        self.0
    }
}

impl Secs {
    /// The duration, if it is over 0 and at most [`MAX_SECS`] seconds.
    pub fn new(duration: Duration) -> Option<Self> {
        (!duration.is_zero() && duration.as_secs_f64() <= MAX_SECS).then_some(Self(duration))
    }
}

impl Serialize for Secs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.0.as_secs_f64())
    }
}

impl<'de> Deserialize<'de> for Secs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let secs = f64::deserialize(deserializer)?;
        let shown = printable_number(secs);
        match Duration::try_from_secs_f64(secs) {
            Ok(duration) if duration.is_zero() && secs > 0.0 => Err(D::Error::custom(format!(
                "{shown} is not over 0 once it is rounded to nanoseconds"
            ))),
            Ok(duration) if secs <= MAX_SECS && !duration.is_zero() => Ok(Self(duration)),
            _ => Err(D::Error::custom(format!(
                "{shown} is not over 0 and at most {MAX_SECS} seconds"
            ))),
        }
    }
}

/// The longest grace period in seconds: more than any guest runs.
pub const MAX_GRACE_SECS: f64 = 1e18;

/// A grace period: 0 or more, and at most [`MAX_GRACE_SECS`] seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord)]
pub struct Grace(Duration);

impl Grace {
    /// As a duration.
    pub fn duration(self) -> Duration {
        self.0
    }
}

impl<'de> Deserialize<'de> for Grace {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let secs = f64::deserialize(deserializer)?;
        match Duration::try_from_secs_f64(secs) {
            Ok(duration) if secs <= MAX_GRACE_SECS => Ok(Self(duration)),
            _ => Err(D::Error::custom(format!(
                "{} is not 0 or more and at most {} seconds",
                printable_number(secs),
                printable_number(MAX_GRACE_SECS)
            ))),
        }
    }
}

/// How many in a row: 1 or more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Threshold(u32);

impl Threshold {
    /// As a count.
    pub fn count(self) -> u64 {
        u64::from(self.0)
    }
}

impl Default for Threshold {
    fn default() -> Self {
        Self(1)
    }
}

impl<'de> Deserialize<'de> for Threshold {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u32::deserialize(deserializer)? {
            0 => Err(D::Error::custom("0 is not 1 or more")),
            count => Ok(Self(count)),
        }
    }
}

/// A default that is so many seconds.
pub(crate) fn secs<const N: u64>() -> Secs {
    Secs(Duration::from_secs(N))
}

#[cfg(feature = "schema")]
mod schema {
    use super::{Argv, Command, Grace, Name, Secs, Threshold, User};
    use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
    use std::borrow::Cow;

    macro_rules! inline_schema {
        ($type:ident, $($json:tt)+) => {
            impl JsonSchema for $type {
                fn inline_schema() -> bool {
                    true
                }

                fn schema_name() -> Cow<'static, str> {
                    stringify!($type).into()
                }

                fn json_schema(_: &mut SchemaGenerator) -> Schema {
                    json_schema!($($json)+)
                }
            }
        };
    }

    inline_schema!(Name, { "type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$" });
    inline_schema!(Command, { "type": "string", "pattern": "\\S" });
    inline_schema!(Argv, {
        "type": "array", "items": { "type": "string" }, "minItems": 1,
        "prefixItems": [{ "type": "string", "pattern": "^/" }],
    });
    inline_schema!(User, { "type": "string", "pattern": "^[^\\s:]{1,64}$" });
    inline_schema!(Secs, { "type": "number", "exclusiveMinimum": 0, "maximum": 86400 });
    inline_schema!(Grace, { "type": "number", "minimum": 0, "maximum": 1e18 });
    inline_schema!(Threshold, { "type": "integer", "minimum": 1, "maximum": 4_294_967_295_u32 });
}
