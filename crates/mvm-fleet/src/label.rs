//! Text from guests and folders, made fit for a label of a series.

use mvm_protocol::visible::is_hidden;

/// The longest label value, in characters: as long as the longest name of a VM or of a drop-in.
pub const MAX_LABEL: usize = 64;

/// The text with what is obeyed rather than seen in it ([`is_hidden`]) replaced by `U+FFFD`, and cut
/// to [`MAX_LABEL`] characters.
///
/// A series' labels are shown by programs that do not expect a terminal's escape sequences or marks
/// that turn the direction of writing, and each different value is a series that a database keeps.
pub fn clean(text: &str) -> Box<str> {
    text.chars()
        .take(MAX_LABEL)
        .map(|character| {
            if is_hidden(character) {
                char::REPLACEMENT_CHARACTER
            } else {
                character
            }
        })
        .collect()
}

/// The pool of a VM that has no label `pool`: its name up to the last `-` and digits, or the whole
/// name if it does not end so.
pub fn default_pool(name: &str) -> &str {
    match name.rsplit_once('-') {
        Some((pool, digits))
            if !pool.is_empty()
                && !digits.is_empty()
                && digits.bytes().all(|byte| byte.is_ascii_digit()) =>
        {
            pool
        }
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_are_names_without_their_number() {
        for (name, pool) in [
            ("web-1", "web"),
            ("web-12", "web"),
            ("web-1-2", "web-1"),
            ("web", "web"),
            ("web-", "web-"),
            ("web-1a", "web-1a"),
            ("-7", "-7"),
            ("7", "7"),
        ] {
            assert_eq!(default_pool(name), pool, "{name}");
        }
    }

    #[test]
    fn nothing_that_is_obeyed_is_left() {
        assert_eq!(&*clean("disk usage, 名 \"x\\"), "disk usage, 名 \"x\\");
        assert_eq!(
            &*clean("a\x1b[2J\n\u{202e}\u{200b}\u{ad}\u{e0041}b"),
            "a\u{fffd}[2J\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}b"
        );
        assert_eq!(clean(&"ü".repeat(10_000)).chars().count(), MAX_LABEL);
    }
}
