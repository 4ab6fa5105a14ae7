//! Text from outside, made fit for a terminal.

use std::borrow::Cow;
use std::fmt::Write as _;

/// One line without anything that a terminal would obey: control characters (newlines too) and
/// those that turn the direction of writing are shown as escapes such as `\u{1b}` and `\n`.
///
/// A guest chooses its names, outputs and errors; with an escape sequence in one it could rewrite
/// the screen, the window's title or, on some terminals, type commands.
pub(crate) fn clean(text: &str) -> Cow<'_, str> {
    if !text.contains(is_obeyed) {
        return Cow::Borrowed(text);
    }
    let mut line = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_obeyed(character) {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    Cow::Owned(line)
}

/// Several lines, each as [`clean`] makes it; newlines stay, tabs become a space.
pub(crate) fn clean_lines(text: &str) -> String {
    let lines: Vec<_> = text
        .lines()
        .map(|line| clean(&line.replace('\t', " ")).into_owned())
        .collect();
    lines.join("\n")
}

/// JSON whose strings hold nothing that a terminal would obey. A serializer escapes what lies
/// below U+0020 alone; U+007F to U+009F and the direction marks can stand in strings only, so they
/// are escaped here, and the document means the same as before.
pub(crate) fn clean_json(json: &str) -> Cow<'_, str> {
    let unsafe_in_string = |character: char| character >= '\u{7f}' && is_obeyed(character);
    if !json.contains(unsafe_in_string) {
        return Cow::Borrowed(json);
    }
    let mut safe = String::with_capacity(json.len() + 16);
    for character in json.chars() {
        if unsafe_in_string(character) {
            // All of them lie below U+10000: one escape of four digits.
            let _ = write!(safe, "\\u{:04x}", u32::from(character));
        } else {
            safe.push(character);
        }
    }
    Cow::Owned(safe)
}

/// The text if it has at most `most` characters, else its start with an ellipsis.
pub(crate) fn cut(text: &str, most: usize) -> Cow<'_, str> {
    match text.char_indices().nth(most) {
        None => Cow::Borrowed(text),
        Some((at, _)) => Cow::Owned(format!("{}…", text.get(..at).unwrap_or_default())),
    }
}

/// The text with newlines between words so that no line is longer than the terminal's, where words
/// allow it. All lines but the first begin with `indent` spaces; the first stands after as many.
pub(crate) fn wrapped(text: &str, width: usize, indent: usize) -> String {
    let mut lines = String::new();
    let mut column = indent;
    for word in text.split(' ') {
        let length = word.chars().count();
        if column > indent && column + 1 + length > width {
            lines.push('\n');
            lines.push_str(&" ".repeat(indent));
            column = indent;
        } else if column > indent {
            lines.push(' ');
            column += 1;
        }
        lines.push_str(word);
        column += length;
    }
    lines
}

/// C0, DEL and C1 controls (U+009B is CSI), and marks and overrides of direction, with which a
/// line can be made to read as another.
fn is_obeyed(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
                | '\u{2028}' | '\u{2029}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_is_left() {
        assert_eq!(clean("plain, Ümlaut, 名"), "plain, Ümlaut, 名");
        assert_eq!(clean("\x1b[2Jx\r\n\t\x7f"), "\\u{1b}[2Jx\\r\\n\\t\\u{7f}");
        assert_eq!(
            clean("\u{9b}31m\u{202e}gpj.exe"),
            "\\u{9b}31m\\u{202e}gpj.exe"
        );
        assert_eq!(
            clean_lines("a\tb\n\x1b]0;t\x07\n"),
            "a b\n\\u{1b}]0;t\\u{7}"
        );
    }

    #[test]
    fn json_means_the_same_as_before() {
        let value = serde_json::json!({"k\u{9b}": "\u{7f}\x1b\u{202e}ü"});
        let safe = clean_json(&value.to_string()).into_owned();
        assert_eq!(safe, "{\"k\\u009b\":\"\\u007f\\u001b\\u202eü\"}");
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&safe).unwrap(),
            value
        );
    }

    #[test]
    fn lines_break_between_words() {
        assert_eq!(wrapped("one two three", 80, 8), "one two three");
        assert_eq!(wrapped("one two three", 15, 8), "one two\n        three");
        assert_eq!(
            wrapped("one incompressible", 12, 8),
            "one\n        incompressible"
        );
        assert_eq!(wrapped("", 10, 2), "");
    }
}
