//! How seeds are written: one a line, as [`u8::escape_ascii`] writes bytes.

/// A line that stands for these bytes.
pub(crate) fn write(seed: &[u8]) -> String {
    format!("{}\n", seed.escape_ascii())
}

/// The bytes that a line stands for, without its end; `None` if it is not written so.
pub(crate) fn read(line: &str) -> Option<Vec<u8>> {
    let mut seed = Vec::new();
    let mut bytes = line.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            seed.push(byte);
            continue;
        }
        seed.push(match bytes.next()? {
            b't' => b'\t',
            b'r' => b'\r',
            b'n' => b'\n',
            b'x' => {
                let digits = [bytes.next()?, bytes.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            quoted @ (b'\\' | b'\'' | b'"') => quoted,
            _ => return None,
        });
    }
    Some(seed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_are_read_as_they_were_written() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(read(write(&all).trim_end()), Some(all));
        for wrong in ["\\", "\\q", "\\x1", "\\xgg"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
