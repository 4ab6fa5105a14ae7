//! What may be written to a terminal, as a type.

pub(crate) mod table;

use super::text::{clean_json, cut};
use mvm_protocol::visible::line;

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

    /// Several lines, each as [`Shown::line`] makes it; a tab becomes a space, or as many as are given.
    pub(crate) fn lines(text: &str, tab: &str) -> Self {
        let mut shown = String::with_capacity(text.len() + 1);
        for one in text.lines() {
            shown.push_str(&line(&one.replace('\t', tab)));
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
        assert_eq!(Shown::lines("", " "), Shown::new());
    }
}
