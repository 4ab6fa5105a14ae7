//! The line protocol of hybrid vsock that precedes the first frame.
//!
//! The host writes `CONNECT 52\n` to the VMM's Unix socket and reads one line `OK <number>\n`. The
//! number is the VMM's business (Firecracker's docs/vsock.md, "Host-Initiated Connections"): a host
//! port from 1073741824 up with Firecracker, the guest's port with others.

use thiserror::Error;

/// The longest line of the handshake in bytes, newline included: `CONNECT 4294967295\n` and slack.
pub const MAX_LINE: usize = 32;

/// Why a handshake line was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum HandshakeError {
    /// No newline within [`MAX_LINE`] bytes.
    #[error("no newline within {MAX_LINE} bytes")]
    TooLong,
    /// A whole line that is not of the expected form.
    #[error("not a handshake line: {0:?}")]
    Malformed(String),
}

/// The request line that a host writes, in one write, to reach `port` in the guest.
pub fn connect_line(port: u32) -> String {
    format!("CONNECT {port}\n")
}

/// The line that answers [`connect_line`].
pub fn ok_line(number: u32) -> String {
    format!("OK {number}\n")
}

/// Collects one line of the handshake from pieces of any size.
#[derive(Debug, Default)]
pub struct LineReader {
    line: Vec<u8>,
}

impl LineReader {
    /// Takes bytes up to the newline and says how many it took; the line, without its newline,
    /// once it is whole. What follows the newline belongs to the frames and is left alone.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(usize, Option<String>), HandshakeError> {
        let room = MAX_LINE.saturating_sub(self.line.len());
        let piece = bytes.get(..bytes.len().min(room)).unwrap_or_default();
        match piece.iter().position(|byte| *byte == b'\n') {
            Some(end) => {
                self.line.extend(piece.iter().take(end));
                let line = std::mem::take(&mut self.line);
                match String::from_utf8(line) {
                    Ok(line) => Ok((end + 1, Some(line))),
                    Err(error) => Err(HandshakeError::Malformed(
                        String::from_utf8_lossy(error.as_bytes()).into_owned(),
                    )),
                }
            }
            None if piece.len() == room => Err(HandshakeError::TooLong),
            None => {
                self.line.extend_from_slice(piece);
                Ok((piece.len(), None))
            }
        }
    }

    /// Whether nothing has been taken yet.
    pub fn is_empty(&self) -> bool {
        self.line.is_empty()
    }
}

/// Reads `CONNECT <port>`.
pub fn parse_connect(line: &str) -> Result<u32, HandshakeError> {
    parse_number(line, "CONNECT ")
}

/// Reads `OK <number>`. The number may have any value: decimal digits are all that is asked for.
pub fn parse_ok(line: &str) -> Result<(), HandshakeError> {
    match line.strip_prefix("OK ") {
        Some(number) if !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) => Ok(()),
        _ => Err(HandshakeError::Malformed(line.to_owned())),
    }
}

fn parse_number(line: &str, prefix: &str) -> Result<u32, HandshakeError> {
    line.strip_prefix(prefix)
        .filter(|number| number.bytes().all(|b| b.is_ascii_digit()))
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| HandshakeError::Malformed(line.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_comes_in_pieces_and_leaves_the_frames_alone() {
        let mut reader = LineReader::default();
        assert_eq!(reader.push(b"CONN"), Ok((4, None)));
        assert_eq!(
            reader.push(b"ECT 52\n\0\0"),
            Ok((7, Some("CONNECT 52".into())))
        );
        assert_eq!(parse_connect("CONNECT 52"), Ok(52));
    }

    #[test]
    fn a_line_without_end_is_refused_at_its_cap() {
        let mut reader = LineReader::default();
        assert_eq!(reader.push(&[b'x'; 31]), Ok((31, None)));
        assert_eq!(reader.push(b"yz"), Err(HandshakeError::TooLong));
    }

    #[test]
    fn ok_takes_any_decimal_and_nothing_else() {
        for good in ["OK 52", "OK 1073741824", "OK 99999999999999999999"] {
            assert_eq!(parse_ok(good), Ok(()), "{good}");
        }
        for bad in [
            "OK",
            "OK ",
            "OK x",
            "OK 52 ",
            "ok 52",
            "OK -1",
            "HTTP/1.1 200 OK",
            "",
        ] {
            assert!(parse_ok(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn connect_is_exact() {
        for bad in [
            "CONNECT",
            "CONNECT ",
            "CONNECT +52",
            "CONNECT 4294967296",
            "CONNECT 52 ",
        ] {
            assert!(parse_connect(bad).is_err(), "{bad}");
        }
    }
}
