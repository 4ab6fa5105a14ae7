//! Drop-in files: one integration or probe each, written by whoever builds the image.

mod fields;

pub(crate) use fields::secs;
pub use fields::{Argv, Command, Grace, MAX_GRACE_SECS, MAX_SECS, Name, Secs, Threshold, User};

use crate::object::{Object, Problem};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// The largest drop-in file in bytes.
pub const MAX_FILE: usize = 65_536;

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
    argv.map(|argv| argv.words().to_vec())
        .or_else(|| text.map(shell))
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
        self.name.as_str()
    }
}

impl DropIn for Probe {
    const COMMANDS: &[(&str, &str)] = &[("command", "command_argv"), ("cmd", "command_argv")];
    const NEEDS: Option<&str> = Some("command");

    fn name(&self) -> &str {
        self.name.as_str()
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
    let has_command = T::COMMANDS
        .iter()
        .any(|(text, argv)| object.has(text) || object.has(argv));
    // First what is there and wrong: a name that is misspelt is why another one is missing.
    let shape = object.into_shape()?;
    match T::NEEDS.filter(|_| !has_command) {
        Some(needed) => Err(Problem {
            line: 1,
            field: Some(needed.to_owned()),
            message: format!("missing field `{needed}`, or `{needed}_argv`"),
        }),
        None => Ok(shape),
    }
}

fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn integration(content: &str) -> Result<Integration, Problem> {
        read(content.as_bytes())
    }

    #[test]
    fn defaults_are_those_of_the_documentation() {
        let it = integration(r#"{"name":"db"}"#).unwrap();
        let secs = |n| Secs::new(Duration::from_secs(n)).unwrap();
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
    fn a_name_that_is_misspelt_is_told_before_the_one_that_is_missing() {
        let wrong = read::<Probe>(b"{\"name\":\"disk\",\n \"comand\":\"df\"}").unwrap_err();
        assert_eq!((wrong.line, wrong.field.as_deref()), (2, Some("comand")));
        let wrong = read::<Probe>(b"{\"name\":\"disk\"}").unwrap_err();
        let missing = "missing field `command`, or `command_argv`";
        assert_eq!((wrong.line, wrong.message.as_str()), (1, missing));
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
