//! What may be written to a terminal, as a type.
#![expect(
    clippy::disallowed_methods,
    reason = "text is cleaned here, and in the tables"
)]

pub(crate) mod table;

use super::text::{clean_json, cut};
use mvm_protocol::visible::line;
use serde::Serialize;
use std::fmt;

/// Text in which nothing is left that a terminal would obey, but for the styles of [`table`]: all that
/// [`Ui::print`](crate::ui::Ui::print) takes.
///
/// There is no way to make one of text as it came: each function here cleans what it is given, whoever
/// chose it, and this module and its tables alone can see into the type. What a guest says is so
/// cleaned once, at the end, wherever it was put together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Shown(String);

impl Shown {
    /// Nothing.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// One line, whatever is in the text: newlines in it are shown as escapes.
    pub(crate) fn line(text: &str) -> Self {
        Self(format!("{}\n", line(text)))
    }

    /// The same of at most so many characters.
    pub(crate) fn short_line(text: &str, most: usize) -> Self {
        Self(format!("{}\n", cut(&line(text), most)))
    }

    /// Several lines, each as [`Shown::line`] makes it, but for tabs, which become what is given.
    pub(crate) fn lines(text: &str, tab: &'static str) -> Self {
        let mut shown = String::with_capacity(text.len() + 1);
        for one in text.lines() {
            for (number, part) in one.split('\t').enumerate() {
                if number > 0 {
                    shown.push_str(tab);
                }
                shown.push_str(&line(part));
            }
            shown.push('\n');
        }
        Self(shown)
    }

    /// JSON, on one line or more.
    pub(crate) fn json(json: &str) -> Self {
        Self(format!("{}\n", clean_json(json)))
    }

    /// An empty line.
    pub(crate) fn empty_line() -> Self {
        Self("\n".into())
    }

    /// Puts another after it.
    pub(crate) fn push(&mut self, more: &Self) {
        self.0.push_str(&more.0);
    }

    /// Whether there is nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// To be written.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// A text of one line, of which the same is true: for what is no output of its own, such as a cell of a
/// screen, the words beside a bar, and what a service manager is told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(crate) struct OneLine(String);

impl OneLine {
    /// Whatever is in the text: newlines in it are shown as escapes.
    pub(crate) fn of(text: &str) -> Self {
        Self(line(text).into_owned())
    }

    /// The same of at most so many characters.
    pub(crate) fn short(text: &str, most: usize) -> Self {
        Self(cut(&line(text), most).into_owned())
    }

    /// To be shown.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for OneLine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.0)
    }
}

impl FromIterator<Shown> for Shown {
    fn from_iter<T: IntoIterator<Item = Self>>(parts: T) -> Self {
        let mut all = Self::new();
        for part in parts {
            all.push(&part);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_is_left() {
        assert_eq!(Shown::line("a\nb").as_str(), "a\\nb\n");
        assert_eq!(Shown::short_line("a\x1bbcd", 7).as_str(), "a\\u{1b}…\n");
        assert_eq!(
            Shown::lines("a\tb\n\x1b]0;t\x07\n", " ").as_str(),
            "a b\n\\u{1b}]0;t\\u{7}\n"
        );
        assert_eq!(Shown::lines("\ta\x1b", "\t").as_str(), "\ta\\u{1b}\n");
        assert_eq!(Shown::lines("", " "), Shown::new());
        assert_eq!(OneLine::of("a\tb\n").as_str(), "a\\tb\\n");
        assert_eq!(format!("{:4}|", OneLine::short("ab\x1bcd", 2)), "ab… |");
    }
}
