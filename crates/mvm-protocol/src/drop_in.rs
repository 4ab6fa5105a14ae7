//! Drop-in files: one integration or probe each, written by whoever builds the image.

use crate::object::{Object, Problem, printable, printable_number};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::time::Duration;

/// The largest drop-in file in bytes.
pub const MAX_FILE: usize = 65_536;

/// The longest interval and timeout in seconds: a day.
pub const MAX_SECS: f64 = 86_400.0;

/// `/etc/mvm/integrations.d/*.json`: a service, its health command and its lifecycle commands.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Integration {
    /// By which the host knows it.
    pub name: Name,
    /// Run by `/bin/sh -c`; exit 0 is healthy.
    #[serde(default)]
    pub health_cmd: Option<Command>,
    /// In place of `health_cmd`: a program and its arguments, run without a shell.
    #[serde(default)]
    pub health_argv: Option<Argv>,
    /// From start to start.
    #[serde(default = "secs::<30>")]
    pub health_interval_secs: Secs,
    /// Then the whole process tree is killed, and the check has failed.
    #[serde(default = "secs::<10>")]
    pub health_timeout_secs: Secs,
    /// Failures until then leave the integration starting; the first success ends it.
    #[serde(default)]
    pub startup_grace_secs: Grace,
    /// How many failures in a row make it unhealthy.
    #[serde(default)]
    pub failure_threshold: Threshold,
    /// How many successes in a row make it healthy.
    #[serde(default)]
    pub success_threshold: Threshold,
    /// Run before a snapshot.
    #[serde(default)]
    pub checkpoint_cmd: Option<Command>,
    /// In place of `checkpoint_cmd`: a program and its arguments, run without a shell.
    #[serde(default)]
    pub checkpoint_argv: Option<Argv>,
    /// Run after a restore.
    #[serde(default)]
    pub restore_cmd: Option<Command>,
    /// In place of `restore_cmd`: a program and its arguments, run without a shell.
    #[serde(default)]
    pub restore_argv: Option<Argv>,
    /// How long the checkpoint command may take.
    #[serde(default = "secs::<30>")]
    pub checkpoint_timeout_secs: Secs,
    /// How long the restore command may take.
    #[serde(default = "secs::<30>")]
    pub restore_timeout_secs: Secs,
    /// Run in a restored guest while its work is frozen still: what has to be done before it goes on.
    #[serde(default)]
    pub personalize_cmd: Option<Command>,
    /// In place of `personalize_cmd`: a program and its arguments, run without a shell.
    #[serde(default)]
    pub personalize_argv: Option<Argv>,
    /// How long the personalize command may take.
    #[serde(default = "secs::<30>")]
    pub personalize_timeout_secs: Secs,
    /// Whether a failed checkpoint fails the sleep, and a failed personalize command keeps the guest
    /// frozen.
    #[serde(default = "yes")]
    pub critical: bool,
    /// Whom the commands run as; the agent's own user if not given.
    #[serde(default)]
    pub user: Option<User>,
}

/// `/etc/mvm/probes.d/*.json`: a read-only command whose output the host wants to see.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// By which the host knows it.
    pub name: Name,
    /// Run by `/bin/sh -c`. The old spelling `cmd` is read too.
    #[serde(default, alias = "cmd")]
    pub command: Option<Command>,
    /// In place of `command`: a program and its arguments, run without a shell.
    #[serde(default)]
    pub command_argv: Option<Argv>,
    /// From start to start.
    #[serde(default = "secs::<30>")]
    pub interval_secs: Secs,
    /// Then the whole process tree is killed, and the probe has failed.
    #[serde(default = "secs::<10>")]
    pub timeout_secs: Secs,
    /// How its standard output is read.
    #[serde(default)]
    pub output: OutputFormat,
    /// Whom the command runs as; the agent's own user if not given.
    #[serde(default)]
    pub user: Option<User>,
}

/// How a probe's standard output is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum OutputFormat {
    /// As it is, trimmed.
    #[default]
    Text,
    /// As one JSON value.
    Json,
}

/// A drop-in that can be read from a file: [`Integration`] or [`Probe`].
pub trait DropIn: DeserializeOwned {
    /// The commands that can be given as text for a shell or as a list, by the names of both fields.
    const COMMANDS: &[(&str, &str)];

    /// The fields of which one has to be there, by the name that is asked for.
    const NEEDS: Option<&str>;

    /// By which it is known; unique in its folder.
    fn name(&self) -> &str;
}

/// What runs the text of a command.
const SHELL: [&str; 2] = ["/bin/sh", "-c"];

/// The words of a command that is given in one of the two ways.
fn words(text: Option<&Command>, argv: Option<&Argv>) -> Option<Vec<String>> {
    let shell = |text: &Command| {
        let words = SHELL.into_iter().chain([text.as_str()]);
        words.map(str::to_owned).collect()
    };
    argv.map(|argv| argv.0.clone()).or_else(|| text.map(shell))
}

impl Integration {
    /// The program of its health check and its arguments: of a shell, or its own.
    pub fn health(&self) -> Option<Vec<String>> {
        words(self.health_cmd.as_ref(), self.health_argv.as_ref())
    }

    /// Whether it has a health check.
    pub fn is_checked(&self) -> bool {
        self.health_cmd.is_some() || self.health_argv.is_some()
    }

    /// Likewise what is run before a snapshot.
    pub fn checkpoint(&self) -> Option<Vec<String>> {
        words(self.checkpoint_cmd.as_ref(), self.checkpoint_argv.as_ref())
    }

    /// Likewise what is run after a restore.
    pub fn restore(&self) -> Option<Vec<String>> {
        words(self.restore_cmd.as_ref(), self.restore_argv.as_ref())
    }

    /// Likewise what is run before its work goes on.
    pub fn personalize(&self) -> Option<Vec<String>> {
        words(
            self.personalize_cmd.as_ref(),
            self.personalize_argv.as_ref(),
        )
    }
}

impl Probe {
    /// The program that it runs and its arguments: of a shell, or its own.
    pub fn run(&self) -> Option<Vec<String>> {
        words(self.command.as_ref(), self.command_argv.as_ref())
    }
}

impl DropIn for Integration {
    const COMMANDS: &[(&str, &str)] = &[
        ("health_cmd", "health_argv"),
        ("checkpoint_cmd", "checkpoint_argv"),
        ("restore_cmd", "restore_argv"),
        ("personalize_cmd", "personalize_argv"),
    ];
    const NEEDS: Option<&str> = None;

    fn name(&self) -> &str {
        &self.name.0
    }
}

impl DropIn for Probe {
    const COMMANDS: &[(&str, &str)] = &[("command", "command_argv"), ("cmd", "command_argv")];
    const NEEDS: Option<&str> = Some("command");

    fn name(&self) -> &str {
        &self.name.0
    }
}

/// Reads a drop-in file's content strictly.
pub fn read<T: DropIn>(content: &[u8]) -> Result<T, Problem> {
    if content.len() > MAX_FILE {
        return Err(Problem {
            line: 1,
            field: None,
            message: format!("larger than {MAX_FILE} bytes"),
        });
    }
    let object = Object::parse(content)?;
    for (text, argv) in T::COMMANDS {
        if object.has(text) && object.has(argv) {
            return Err(object.wrong(
                argv,
                &format!("`{text}` is given as well: give one of the two"),
            ));
        }
    }
    if let Some(needed) = T::NEEDS
        && !T::COMMANDS
            .iter()
            .any(|(text, argv)| object.has(text) || object.has(argv))
    {
        return Err(Problem {
            line: 1,
            field: Some(needed.to_owned()),
            message: format!("missing field `{needed}`, or `{needed}_argv`"),
        });
    }
    object.into_shape()
}

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

pub(crate) fn secs<const N: u64>() -> Secs {
    Secs(Duration::from_secs(N))
}

fn yes() -> bool {
    true
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

#[cfg(test)]
mod tests {
    use super::*;

    fn integration(content: &str) -> Result<Integration, Problem> {
        read(content.as_bytes())
    }

    #[test]
    fn defaults_are_those_of_the_documentation() {
        let it = integration(r#"{"name":"db"}"#).unwrap();
        let secs = |n| Secs(Duration::from_secs(n));
        assert_eq!(it.health_cmd, None);
        assert_eq!(
            (it.health_interval_secs, it.health_timeout_secs),
            (secs(30), secs(10))
        );
        assert_eq!(
            (it.checkpoint_timeout_secs, it.restore_timeout_secs),
            (secs(30), secs(30))
        );
        assert_eq!(
            (it.failure_threshold.count(), it.success_threshold.count()),
            (1, 1)
        );
        assert_eq!(
            (it.startup_grace_secs.duration(), it.critical),
            (Duration::ZERO, true)
        );
        let it: Probe = read(br#"{"name":"disk","cmd":"df"}"#).unwrap();
        assert_eq!((it.interval_secs, it.timeout_secs), (secs(30), secs(10)));
        assert_eq!(it.run().unwrap(), ["/bin/sh", "-c", "df"]);
        assert_eq!(it.output, OutputFormat::Text);
    }

    #[test]
    fn any_text_survives() {
        let text = "a'b\"c $HOME `id` \\ \n ü";
        let content = serde_json::json!({ "name": "x", "health_cmd": text }).to_string();
        assert_eq!(
            integration(&content).unwrap().health_cmd.unwrap().as_str(),
            text
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (content, field, message) in [
            ("{}", "name", "missing field `name`"),
            (r#"{"name":"a/b"}"#, "name", "not of the form"),
            (r#"{"name":""}"#, "name", "not of the form"),
            (r#"{"name":"a","health_cmd":"  "}"#, "health_cmd", "blank"),
            (
                r#"{"name":"a","health_cmd":"a\u0000"}"#,
                "health_cmd",
                "NUL",
            ),
            (
                r#"{"name":"a","health_interval_secs":0}"#,
                "health_interval_secs",
                "over 0",
            ),
            (
                r#"{"name":"a","health_interval_secs":1e-10}"#,
                "health_interval_secs",
                "1e-10 is not over 0 once it is rounded",
            ),
            (
                r#"{"name":"a","health_interval_secs":1e300}"#,
                "health_interval_secs",
                ": 1e300 is not over 0 and at most 86400 seconds",
            ),
            (
                r#"{"name":"a","startup_grace_secs":1e20}"#,
                "startup_grace_secs",
                ": 1e20 is not 0 or more and at most 1e18 seconds",
            ),
            (
                r#"{"name":"a","failure_threshold":1e300}"#,
                "failure_threshold",
                "floating point `1e+300`",
            ),
            (
                r#"{"name":"a","health_timeout_secs":86400.5}"#,
                "health_timeout_secs",
                "86400",
            ),
            (
                r#"{"name":"a","health_timeout_secs":"5"}"#,
                "health_timeout_secs",
                "string",
            ),
            (
                r#"{"name":"a","startup_grace_secs":-1}"#,
                "startup_grace_secs",
                ": -1 is not 0 or more and at most 1e18 seconds",
            ),
            (
                r#"{"name":"a","failure_threshold":0}"#,
                "failure_threshold",
                "1 or more",
            ),
            (
                r#"{"name":"a","success_threshold":1.5}"#,
                "success_threshold",
                "1.5",
            ),
            (r#"{"name":"a","critical":"yes"}"#, "critical", "boolean"),
            (r#"{"name":"a","user":"a b"}"#, "user", "no user name"),
            (
                r#"{"name":"a","helth_cmd":"x"}"#,
                "helth_cmd",
                "unknown field",
            ),
        ] {
            let problem = integration(content).unwrap_err();
            assert_eq!(
                problem.field.as_deref(),
                Some(field),
                "{content}: {problem:?}"
            );
            assert!(problem.message.contains(message), "{content}: {problem:?}");
        }
        let both = read::<Probe>(br#"{"name":"a","cmd":"x","command":"y"}"#).unwrap_err();
        assert!(
            both.message.contains("duplicate field `command`"),
            "{both:?}"
        );
        let lifecycle = read::<Probe>(br#"{"name":"a","cmd":"x","checkpoint_cmd":"y"}"#);
        assert!(
            lifecycle
                .unwrap_err()
                .message
                .contains("unknown field `checkpoint_cmd`")
        );
    }
}
