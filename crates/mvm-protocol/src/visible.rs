//! Text from the other side, made fit to be shown.
//!
//! A guest chooses its names, outputs and errors. With an escape sequence in one it could rewrite the
//! screen, the window's title or, on some terminals, type commands; with a mark of direction or a
//! character without width it could make one name read as another.

use std::borrow::Cow;

/// Whether a character is obeyed rather than seen: C0, DEL and C1 controls (U+009B is CSI), line and
/// paragraph separators, marks and overrides of direction, characters without any width, fillers that
/// are shown as nothing, and the tags and selectors of U+E0000 to U+E0FFF.
///
/// Variation selectors below U+10000 are seen: emoji have them.
pub fn is_hidden(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}'
                | '\u{61c}'
                | '\u{115f}'
                | '\u{1160}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{3164}'
                | '\u{feff}'
                | '\u{ffa0}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e0fff}'
        )
}

/// One line in which nothing is hidden: each such character, a newline too, is an escape such as
/// `\u{1b}` or `\n`.
pub fn line(text: &str) -> Cow<'_, str> {
    if !text.contains(is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut line = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_hidden(character) {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    Cow::Owned(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_obeyed_is_shown_as_an_escape() {
        assert_eq!(
            line("plain, Ümlaut, 名, ❤\u{fe0f}"),
            "plain, Ümlaut, 名, ❤\u{fe0f}"
        );
        assert_eq!(line("\x1b[2Jx\r\n\t\x7f"), "\\u{1b}[2Jx\\r\\n\\t\\u{7f}");
        assert_eq!(
            line("\u{9b}31m\u{202e}gpj.exe"),
            "\\u{9b}31m\\u{202e}gpj.exe"
        );
    }

    #[test]
    fn a_name_cannot_look_like_another() {
        let ranges = [
            '\u{200b}'..='\u{200f}',
            '\u{202a}'..='\u{202e}',
            '\u{2060}'..='\u{2069}',
            '\u{feff}'..='\u{feff}',
            '\u{ad}'..='\u{ad}',
            '\u{e0000}'..='\u{e007f}',
        ];
        for character in ranges.into_iter().flatten() {
            assert!(is_hidden(character), "{:x}", u32::from(character));
            let name = format!("w{character}eb");
            assert_eq!(line(&name), format!("w\\u{{{:x}}}eb", u32::from(character)));
        }
    }
}
