//! `exec`: a command in the guest.

use crate::drop_in::Secs;
use crate::object::printable;
use crate::signal::Signal;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Fields of `exec`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// The program, looked for in `PATH` if it has no slash, and its arguments.
    pub argv: Argv,
    /// Added to the agent's own environment.
    #[serde(default, skip_serializing_if = "Env::is_empty")]
    pub env: Env,
    /// The folder it starts in; `/` if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<Path>,
    /// Whom it runs as, by name or number; the agent's own user if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The size of the terminal it gets; none if it gets pipes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tty: Option<Window>,
    /// Whether the client sends its standard input; it is empty otherwise.
    #[serde(default)]
    pub stdin: bool,
    /// After so many seconds it is ended, and its whole tree with it; never if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_secs: Option<Secs>,
    /// Whether it is a job: it goes on when the connection is closed, and its output is kept.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub detach: bool,
}

impl Exec {
    /// A command with pipes, without input, environment, limit or user of its own.
    pub fn new(argv: Argv) -> Self {
        Self {
            argv,
            env: Env::default(),
            cwd: None,
            user: None,
            tty: None,
            stdin: false,
            timeout_secs: None,
            detach: false,
        }
    }
}

/// A program and its arguments: at least one word, and none with a NUL, which the kernel could not
/// be told of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct Argv(#[cfg_attr(feature = "schema", schemars(length(min = 1)))] Vec<String>);

impl Argv {
    /// The words, or what is wrong with them.
    pub fn new(words: Vec<String>) -> Result<Self, &'static str> {
        match words.first() {
            None => Err("no program is named"),
            Some(program) if program.is_empty() => Err("the program's name is empty"),
            Some(_) if words.iter().any(|word| word.contains('\0')) => {
                Err("a word has a NUL in it")
            }
            Some(_) => Ok(Self(words)),
        }
    }

    /// The program and its arguments.
    pub fn words(&self) -> &[String] {
        &self.0
    }

    /// The program alone.
    pub fn program(&self) -> &str {
        self.0.first().map_or("", String::as_str)
    }
}

impl<'de> Deserialize<'de> for Argv {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(Vec::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// Environment variables: no name is empty or has a `=`, nothing has a NUL.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct Env(BTreeMap<String, String>);

impl Env {
    /// The variables, or what is wrong with them.
    pub fn new(variables: BTreeMap<String, String>) -> Result<Self, &'static str> {
        for (name, value) in &variables {
            if name.is_empty() || name.contains('=') {
                return Err("a variable's name is empty or has a `=` in it");
            }
            if name.contains('\0') || value.contains('\0') {
                return Err("a variable has a NUL in it");
            }
        }
        Ok(Self(variables))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Names and values, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

impl<'de> Deserialize<'de> for Env {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Variables;
        impl<'de> Visitor<'de> for Variables {
            type Value = BTreeMap<String, String>;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("an object of texts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut variables = BTreeMap::new();
                while let Some((name, value)) = map.next_entry::<String, String>()? {
                    // Parsers disagree on which of the two counts.
                    if variables.contains_key(&name) {
                        let name = printable(&name);
                        return Err(A::Error::custom(format!("`{name}` is given twice")));
                    }
                    variables.insert(name, value);
                }
                Ok(variables)
            }
        }
        Self::new(deserializer.deserialize_map(Variables)?).map_err(D::Error::custom)
    }
}

/// A path in the guest that begins with `/` and has no NUL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct Path(#[cfg_attr(feature = "schema", schemars(regex(pattern = "^/")))] String);

impl Path {
    /// The path, or what is wrong with it.
    pub fn new(path: String) -> Result<Self, &'static str> {
        if !path.starts_with('/') {
            return Err("a path in the guest has to begin with `/`");
        }
        if path.contains('\0') {
            return Err("a path has a NUL in it");
        }
        Ok(Self(path))
    }

    /// The path's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Path {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// The size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
}

/// Fields of `signal`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Send {
    /// Which one.
    pub signal: Signal,
}

/// A command runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ExecStarted {
    /// Its process id in the guest, which is its process group's as well.
    pub pid: u32,
}

/// A command has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ExecExited {
    /// What it exited with; null if a signal ended it.
    pub exit_code: Option<i32>,
    /// The signal that ended it, without `SIG`; null if it exited.
    pub signal: Option<String>,
    /// Whether its time was up and the agent ended it.
    pub timed_out: bool,
    /// Whether output of it is missing.
    pub truncated: bool,
}
