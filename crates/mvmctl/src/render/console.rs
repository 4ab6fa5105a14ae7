//! What a guest wrote to its console, for standard output: byte for byte, or fit for a terminal.

use super::text::clean;
use std::borrow::Cow;
use std::io::IsTerminal as _;

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
    pub(crate) fn for_stdout() -> Self {
        Self {
            terminal: std::io::stdout().is_terminal(),
            partial: Vec::new(),
        }
    }

    /// What to write of it now.
    pub(crate) fn take<'a>(&mut self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        if !self.terminal {
            return Cow::Borrowed(bytes);
        }
        self.partial.extend_from_slice(bytes);
        // A line without an end does not fill memory.
        let end = match self.partial.iter().rposition(|byte| *byte == b'\n') {
            Some(end) => end + 1,
            None if self.partial.len() > LONGEST => self.partial.len(),
            None => return Cow::Borrowed(&[]),
        };
        let lines: Vec<u8> = self.partial.drain(..end).collect();
        Cow::Owned(shown(&lines).into_bytes())
    }

    /// What is left when nothing more comes.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        shown(&std::mem::take(&mut self.partial)).into_bytes()
    }
}

/// Lines without anything that a terminal would obey.
fn shown(lines: &[u8]) -> String {
    let text = String::from_utf8_lossy(lines);
    let lines = text.lines().map(|line| {
        let line = line.trim_end_matches('\r').replace('\t', "    ");
        format!("{}\n", clean(&line))
    });
    lines.collect::<Vec<_>>().concat()
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
        assert_eq!(shown(b"\xff\n"), "\u{fffd}\n");
    }
}
