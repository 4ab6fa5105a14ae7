//! A log that another process writes: waiting for a line in it, and its end for error messages.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

/// How the agent's line begins with which it says that it can be dialled. Under hybrid vsock
/// nothing else may be relied on: a dial that comes too early can wedge the VMM's vsock device.
pub const LISTENING: &str = "mvm-guest-agent: listening on ";

/// How much of a log's end goes into an error message, in bytes.
const TAIL: u64 = 4096;

/// How many lines of it.
const TAIL_LINES: usize = 25;

/// Looks for a text in a log that grows, each byte once.
#[derive(Debug)]
pub struct Watch {
    path: PathBuf,
    wanted: Vec<u8>,
    file: Option<File>,
    /// The end of what was read: the text may begin in one read and end in the next.
    seam: Vec<u8>,
}

impl Watch {
    /// Watches for `wanted` from the log's beginning. The log need not be there yet.
    pub fn new(path: impl Into<PathBuf>, wanted: &str) -> Self {
        Self {
            path: path.into(),
            wanted: wanted.into(),
            file: None,
            seam: Vec::new(),
        }
    }

    /// Reads what has been added; whether the text has come.
    pub fn contains(&mut self) -> io::Result<bool> {
        let file = match &mut self.file {
            Some(file) => file,
            None => match File::open(&self.path) {
                Ok(file) => self.file.insert(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                Err(error) => return Err(error),
            },
        };
        let mut buffer = [0; 16 * 1024];
        loop {
            let count = file.read(&mut buffer)?;
            let Some(piece) = buffer.get(..count).filter(|piece| !piece.is_empty()) else {
                return Ok(false);
            };
            self.seam.extend_from_slice(piece);
            let wanted = self.wanted.as_slice();
            if self.seam.windows(wanted.len()).any(|w| w == wanted) {
                return Ok(true);
            }
            let keep = self.seam.len().min(wanted.len().saturating_sub(1));
            self.seam.drain(..self.seam.len() - keep);
        }
    }
}

/// The last lines of a log, without anything that a terminal would obey; empty if there are none.
pub fn tail(path: &Path) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
        let mut bytes = Vec::new();
        file.take(TAIL).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    // A log that cannot be read has nothing to add to the failure that is being told.
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.trim_end().lines().collect();
    let shown = lines.len().saturating_sub(TAIL_LINES);
    lines
        .iter()
        .skip(shown)
        .map(|line| printable(line.trim_end_matches('\r')))
        .collect::<Vec<_>>()
        .join("\n")
}

fn printable(line: &str) -> String {
    line.chars()
        .map(|c| {
            if c.is_control() && c != '\t' {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn a_text_in_two_pieces_is_seen_and_an_absent_log_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console.log");
        let mut watch = Watch::new(&path, LISTENING);
        assert!(!watch.contains().unwrap());
        let mut log = File::create(&path).unwrap();
        log.write_all(b"boot\nmvm-guest-agent: liste").unwrap();
        assert!(!watch.contains().unwrap());
        log.write_all(b"ning on vsock:52\n").unwrap();
        assert!(watch.contains().unwrap());
    }

    #[test]
    fn a_long_log_is_read_through_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console.log");
        let mut content = vec![b'x'; 100_000];
        content.extend_from_slice(LISTENING.as_bytes());
        std::fs::write(&path, content).unwrap();
        assert!(Watch::new(&path, LISTENING).contains().unwrap());
        let mut other = Watch::new(&path, "never");
        assert!(!other.contains().unwrap());
        assert!(other.seam.len() < "never".len());
    }

    #[test]
    fn a_tail_is_short_and_obeyed_by_no_terminal() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console.log");
        let lines: Vec<_> = (0..1000).map(|n| format!("line {n}\r\n")).collect();
        std::fs::write(&path, format!("{}\x1b[2Jpanic\n", lines.concat())).unwrap();
        let tail = tail(&path);
        assert_eq!(tail.lines().count(), TAIL_LINES);
        assert!(tail.ends_with("line 999\n\u{fffd}[2Jpanic"), "{tail}");
        assert_eq!(super::tail(&folder.path().join("absent")), "");
    }
}
