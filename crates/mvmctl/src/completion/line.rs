//! A command line that is not complete, as shells take it apart.

/// A piece of a line.
enum Piece {
    /// A character that is meant.
    Char(char),
    /// A quote, which makes a word even of nothing.
    Quote,
    /// A blank that separates words.
    Blank,
}

/// Its words, without their quotes. The last one is where the line ends, and empty after a blank.
pub(super) fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    read(line, |piece| match piece {
        Piece::Char(one) => word.get_or_insert_default().push(one),
        Piece::Quote => {
            word.get_or_insert_default();
        }
        Piece::Blank => words.extend(word.take()),
    });
    words.push(word.unwrap_or_default());
    words
}

/// One word without its quotes.
pub(super) fn meant(word: &str) -> String {
    let mut meant = String::new();
    read(word, |piece| match piece {
        Piece::Char(one) => meant.push(one),
        Piece::Quote => {}
        // Such as in `$(a b)`, which is one word, too.
        Piece::Blank => meant.push(' '),
    });
    meant
}

/// Reads a text of which a quote may still be open at the end.
fn read(text: &str, mut each: impl FnMut(Piece)) {
    let mut open = None;
    let mut rest = text.chars().peekable();
    while let Some(one) = rest.next() {
        match (open, one) {
            (None, '\'' | '"') => {
                open = Some(one);
                each(Piece::Quote);
            }
            (Some(quote), _) if quote == one => open = None,
            (None, '\\') => {
                if let Some(escaped) = rest.next() {
                    each(Piece::Char(escaped));
                }
            }
            // Between these quotes a backslash stands for itself, but before what ends them or begins
            // something.
            (Some('"'), '\\') => match rest.next_if(|next| "\"\\$`".contains(*next)) {
                Some(escaped) => each(Piece::Char(escaped)),
                None => each(Piece::Char(one)),
            },
            (None, ' ' | '\t' | '\n') => each(Piece::Blank),
            _ => each(Piece::Char(one)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_taken_apart_as_far_as_it_goes() {
        for (line, parts) in [
            ("", &[""][..]),
            ("mvmctl", &["mvmctl"]),
            ("mvmctl  vm ", &["mvmctl", "vm", ""]),
            ("cp a\\ b 'c d", &["cp", "a b", "c d"]),
            ("cp \"a b\" \"c\\\"d\\e", &["cp", "a b", "c\"d\\e"]),
            ("cp 'a'\\''b' \\", &["cp", "a'b", ""]),
            ("cp '' \"", &["cp", "", ""]),
            ("cp \\$\\(a\\ b\\)", &["cp", "$(a b)"]),
        ] {
            assert_eq!(words(line), parts, "{line}");
        }
    }

    #[test]
    fn a_word_is_one_word() {
        assert_eq!(meant("\"space d"), "space d");
        assert_eq!(meant("quo\\'te\\\"d"), "quo'te\"d");
        assert_eq!(meant("a b"), "a b");
    }
}
