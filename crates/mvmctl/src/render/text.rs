//! Text from outside, made fit for a terminal.

use mvm_protocol::visible::is_hidden;
use std::borrow::Cow;
use std::fmt::Write as _;

/// JSON whose strings hold nothing that a terminal would obey. A serializer escapes what lies
/// below U+0020 alone; what else is hidden can stand in strings only, so it is escaped
/// here, and the document means the same as before.
pub(crate) fn clean_json(json: &str) -> Cow<'_, str> {
    let unsafe_in_string = |character: char| character >= '\u{7f}' && is_hidden(character);
    if !json.contains(unsafe_in_string) {
        return Cow::Borrowed(json);
    }
    let mut safe = String::with_capacity(json.len() + 16);
    for character in json.chars() {
        if unsafe_in_string(character) {
            // Two escapes for what lies beyond U+FFFF.
            for unit in character.encode_utf16(&mut [0; 2]) {
                let _ = write!(safe, "\\u{unit:04x}");
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_means_the_same_as_before() {
        let value = serde_json::json!({"k\u{9b}": "\u{7f}\x1b\u{202e}\u{e0041}ü"});
        let safe = clean_json(&value.to_string()).into_owned();
        assert_eq!(
            safe,
            "{\"k\\u009b\":\"\\u007f\\u001b\\u202e\\udb40\\udc41ü\"}"
        );
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
