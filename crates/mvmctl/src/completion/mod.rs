//! Completion in shells: the script of each, and what it is answered.
//!
//! The scripts of bash, zsh and fish are ours, since those of clap_complete take the words as they are
//! typed, with their quotes, for what they mean: nothing is found any more once a word is quoted. For
//! bash they quote nothing either.

mod line;

use clap_complete::engine::{self, CompletionCandidate};
use clap_complete::env::{Elvish, EnvCompleter, Powershell, Shells};
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;

/// The shells that there are scripts for.
pub(crate) const SHELLS: Shells<'static> = Shells(&[
    &Script {
        shell: "bash",
        text: include_str!("mvmctl.bash"),
        asked: of_bash,
        offer: to_bash,
    },
    &Elvish,
    &Script {
        shell: "fish",
        text: include_str!("mvmctl.fish"),
        asked: of_fish,
        offer: to_fish,
    },
    &Powershell,
    &Script {
        shell: "zsh",
        text: include_str!("mvmctl.zsh"),
        asked: of_zsh,
        offer: to_zsh,
    },
]);

/// A shell whose script is ours. It runs `COMPLETE=SHELL mvmctl -- ARGUMENTS…`, and reads a line for
/// each candidate.
struct Script {
    shell: &'static str,
    text: &'static str,
    /// What the arguments say.
    asked: fn(&[String]) -> Asked,
    /// The line of a candidate: its value, without what the shell has before it, and its help.
    offer: fn(&str, &str) -> String,
}

/// What a shell wants to have completed.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    /// The words up to the cursor, without their quotes. The last one is begun, and may be empty.
    words: Vec<String>,
    /// How much of the last one the shell leaves as it is.
    kept: usize,
}

impl EnvCompleter for Script {
    fn name(&self) -> &'static str {
        self.shell
    }

    fn is(&self, name: &str) -> bool {
        name == self.shell
    }

    /// It calls mvmctl by its name, not by its path: it is installed once, and the program may move.
    fn write_registration(
        &self,
        _: &str,
        _: &str,
        _: &str,
        _: &str,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        out.write_all(self.text.as_bytes())
    }

    fn write_complete(
        &self,
        command: &mut clap::Command,
        arguments: Vec<OsString>,
        folder: Option<&Path>,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        let text = |it: &OsString| it.to_string_lossy().into_owned();
        let arguments: Vec<_> = arguments.iter().map(text).collect();
        let Asked { words, kept } = (self.asked)(&arguments);
        let Some(begun) = words.last() else {
            return Ok(());
        };
        let before = begun.get(..kept).unwrap_or_default().to_owned();
        let last = words.len() - 1;
        let words = words.into_iter().map(OsString::from).collect();
        for candidate in engine::complete(command, words, last, folder)? {
            if let Some(value) = of_one_line(&candidate).and_then(|it| it.strip_prefix(&*before)) {
                writeln!(out, "{}", (self.offer)(value, &help(&candidate)))?;
            }
        }
        Ok(())
    }
}

/// The value of a candidate. `None` for the name of a file that would not arrive as it is.
fn of_one_line(candidate: &CompletionCandidate) -> Option<&str> {
    let value = candidate.get_value().to_str()?;
    (!value.contains(char::is_control)).then_some(value)
}

fn help(candidate: &CompletionCandidate) -> String {
    let help = candidate.get_help().map(ToString::to_string);
    let help = help.as_deref().and_then(|it| it.lines().next());
    let shown = help.unwrap_or_default().chars();
    shown.filter(|it| !it.is_control()).collect()
}

/// The line up to the cursor, and how much of it bash replaces: what follows a `:` or `=`.
fn of_bash(arguments: &[String]) -> Asked {
    let (line, replaced) = match arguments {
        [line, replaced, ..] => (&**line, &**replaced),
        _ => ("", ""),
    };
    let words = line::words(line);
    let begun = words.last().map_or("", |it| &**it);
    let replaced = line::meant(replaced);
    let kept = begun.strip_suffix(&*replaced).map_or(0, str::len);
    Asked { words, kept }
}

/// The words as they are typed.
fn of_zsh(arguments: &[String]) -> Asked {
    Asked {
        words: arguments.iter().map(|word| line::meant(word)).collect(),
        kept: 0,
    }
}

/// The words, of which the one that is begun is as it is typed.
fn of_fish(arguments: &[String]) -> Asked {
    let mut words = arguments.to_vec();
    if let Some(begun) = words.last_mut() {
        *begun = line::meant(begun);
    }
    Asked { words, kept: 0 }
}

fn to_bash(value: &str, _: &str) -> String {
    value.to_owned()
}

/// `-VALUE:HELP`, or `+VALUE:HELP` of a value that may go on.
fn to_zsh(value: &str, help: &str) -> String {
    let sign = if value.ends_with(['/', ':', '=']) {
        '+'
    } else {
        '-'
    };
    let escape = |text: &str| text.replace('\\', "\\\\");
    let (value, help) = (escape(value).replace(':', "\\:"), escape(help));
    if help.is_empty() {
        format!("{sign}{value}")
    } else {
        format!("{sign}{value}:{help}")
    }
}

fn to_fish(value: &str, help: &str) -> String {
    format!("{value}\t{help}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bash_keeps_what_precedes_a_break() {
        let asked = |line: &str, replaced: &str| of_bash(&[line.into(), replaced.into()]);
        let words = |words: &[&str], kept| Asked {
            words: words.iter().map(|&word| word.into()).collect(),
            kept,
        };
        assert_eq!(asked("mvmctl vm ", ""), words(&["mvmctl", "vm", ""], 0));
        assert_eq!(
            asked("mvmctl wait --for=he", "he"),
            words(&["mvmctl", "wait", "--for=he"], 6)
        );
        assert_eq!(
            asked("mvmctl cp \"a b", "a b"),
            words(&["mvmctl", "cp", "a b"], 0)
        );
        assert_eq!(
            asked("mvmctl cp a\\ b", "a\\ b"),
            words(&["mvmctl", "cp", "a b"], 0)
        );
        assert_eq!(of_bash(&[]).words, [""]);
    }

    #[test]
    fn a_value_has_no_colon_for_zsh_that_is_no_separator() {
        assert_eq!(to_zsh("a:b\\c", "d:e"), "-a\\:b\\\\c:d:e");
        assert_eq!(to_zsh("web:/", ""), "+web\\:/");
    }
}
