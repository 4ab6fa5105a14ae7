//! The lines before the first frame, byte by byte or all at once: the same line either way, and
//! never more taken than up to the newline.

use mvm_protocol::handshake::{LineReader, connect_line, parse_connect, parse_ok};

/// The bytes that come before the first frame.
pub fn handshake() -> impl FnMut(&[u8]) {
    |bytes| {
        let whole = read(std::iter::once(bytes));
        assert_eq!(read(bytes.chunks(1)), whole);
        if let Some((taken, line)) = whole {
            assert_eq!(bytes.get(..taken - 1), Some(line.as_bytes()));
            let _ = parse_ok(&line);
            if let Ok(port) = parse_connect(&line) {
                assert_eq!(parse_connect(connect_line(port).trim_end()), Ok(port));
            }
        }
    }
}

/// The line, and how many bytes it took.
fn read<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Option<(usize, String)> {
    let mut reader = LineReader::default();
    let mut taken = 0;
    for piece in pieces {
        let (count, line) = reader.push(piece).ok()?;
        taken += count;
        if let Some(line) = line {
            return Some((taken, line));
        }
    }
    None
}
