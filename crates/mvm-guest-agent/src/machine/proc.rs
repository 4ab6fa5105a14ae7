//! Small files of `/proc` and `/etc`, read whole and without trust in their size.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Reads at most `limit` bytes of a text file; invalid UTF-8 is replaced.
pub(crate) fn read(path: impl AsRef<Path>, limit: u64) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Reads a file of `/proc` or `/sys`: a page is enough for all that are read here.
pub(crate) fn read_small(path: impl AsRef<Path>) -> io::Result<String> {
    read(path, 16 * 1024)
}

/// The number after `name` and white space in a file of lines like `MemTotal:  123 kB`.
pub(crate) fn field(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_name() {
        let text = "MemTotal:        1000 kB\nMemFree:   7 kB\n";
        assert_eq!(field(text, "MemFree:"), Some(7));
        assert_eq!(field(text, "MemAvailable:"), None);
        assert_eq!(field("some avg10=0.12\n", "some"), None);
    }
}
