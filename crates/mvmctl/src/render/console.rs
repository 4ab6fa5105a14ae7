//! What a guest wrote to its console, for standard output: byte for byte, or fit for a terminal.

use super::shown::Shown;
use crate::report::Failure;
use crate::ui::Ui;
use std::borrow::Cow;

/// How long a line may be before it is shown without its end, in bytes.
const LONGEST: usize = 64 * 1024;

/// A console's text on its way out.
#[derive(Debug)]
pub(crate) struct ConsoleText {
    terminal: bool,
    /// The beginning of a line: on a terminal only whole ones are shown.
    partial: Vec<u8>,
}

impl ConsoleText {
    /// As standard output takes it: a terminal gets lines in which nothing is obeyed.
    pub(crate) fn for_stdout(ui: &Ui) -> Self {
        Self {
            terminal: ui.is_terminal(),
            partial: Vec::new(),
        }
    }

    /// What to write of it now.
    pub(crate) fn take<'a>(&mut self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        if !self.terminal {
            return Cow::Borrowed(bytes);
        }
        Cow::Owned(self.lines(bytes).as_str().into())
    }

    /// What is left when nothing more comes.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        self.last_line().as_str().into()
    }

    /// Prints what there is to print of it now.
    pub(crate) fn print(&mut self, ui: &Ui, bytes: &[u8]) -> Result<(), Failure> {
        match ui.not_a_terminal() {
            Some(raw) => raw.print(bytes),
            None => ui.print(&self.lines(bytes)),
        }
    }

    /// Prints what is left.
    pub(crate) fn print_rest(&mut self, ui: &Ui) -> Result<(), Failure> {
        let rest = self.last_line();
        if rest.is_empty() {
            Ok(())
        } else {
            ui.print(&rest)
        }
    }

    fn lines(&mut self, bytes: &[u8]) -> Shown {
        self.partial.extend_from_slice(bytes);
        // A line without an end does not fill memory.
        let end = match self.partial.iter().rposition(|byte| *byte == b'\n') {
            Some(end) => end + 1,
            None if self.partial.len() > LONGEST => self.partial.len(),
            None => return Shown::new(),
        };
        let lines: Vec<u8> = self.partial.drain(..end).collect();
        shown(&lines)
    }

    fn last_line(&mut self) -> Shown {
        shown(&std::mem::take(&mut self.partial))
    }
}

/// Lines without anything that a terminal would obey.
fn shown(lines: &[u8]) -> Shown {
    let text = String::from_utf8_lossy(lines);
    let lines: Vec<_> = text
        .lines()
        .map(|line| line.trim_end_matches('\r'))
        .collect();
    Shown::lines(&lines.join("\n"), "    ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_gets_lines_and_no_commands() {
        let mut text = ConsoleText {
            terminal: true,
            partial: Vec::new(),
        };
        assert_eq!(*text.take(b"a\r\n\tb\x1b"), *b"a\n");
        assert_eq!(*text.take(b"[2J\nen"), *b"    b\\u{1b}[2J\n");
        assert_eq!(text.rest(), b"en\n");
        assert_eq!(text.rest(), b"");
        assert_eq!(shown(b"\xff\n").as_str(), "\u{fffd}\n");
    }
}
