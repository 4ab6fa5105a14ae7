//! A log that another process writes: waiting for a line in it, and its end for error messages.

mod keeper;
mod layout;

pub(crate) use keeper::command as keeper;
pub use keeper::{ConsoleKeeper, run_if_called};
pub use layout::DEFAULT_LIMIT_MIB;
pub(crate) use layout::{LAST_LOG, LOG, Share, begin, open};

use layout::{identity, missing, place_of, said_at};
use mvm_registry::{VmFolder, open_regular};
use std::collections::VecDeque;
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

/// Within how many lines the rest of a line has to come that was torn.
const WITHIN: usize = 8;

/// A console that is read as it grows, whenever it is written anew meanwhile, or begun anew by another
/// boot. What was missing before it could be read, a line in it says.
#[derive(Debug)]
pub struct Follow {
    folder: PathBuf,
    share: Share,
    /// What is read, and how many bytes are missing in it.
    file: Option<(File, u64)>,
}

impl Follow {
    /// From the beginning of what there is, or will be, of a VM's console.
    pub fn new(folder: &VmFolder) -> Self {
        let record = folder.last_record().ok().flatten();
        let limit = record.and_then(|record| record.console_limit_mib);
        Self::in_folder(folder.path(), Share::of(limit))
    }

    fn in_folder(folder: &Path, share: Share) -> Self {
        Self {
            folder: folder.to_owned(),
            share,
            file: None,
        }
    }

    /// Reads some of what is there; 0 if there is no more for now.
    ///
    /// # Errors
    ///
    /// Those of the system, and for what is no regular file.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some((file, missing_in_it)) = &mut self.file else {
            let opened = match open_regular(&self.folder.join(LOG)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
                opened => opened?,
            };
            let missing = missing(&opened, self.share)?;
            return self.file.insert((opened, missing)).0.read(buffer);
        };
        let count = file.read(buffer)?;
        if count > 0 {
            return Ok(count);
        }
        let mut now = match open_regular(&self.folder.join(LOG)) {
            // It is just being begun anew.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            now => now?,
        };
        if identity(&now)? == identity(file)? {
            return Ok(0);
        }
        // What was written to it until it was replaced.
        let count = file.read(buffer)?;
        if count > 0 {
            return Ok(count);
        }
        let missing_now = missing(&now, self.share)?;
        let last = open_regular(&self.folder.join(LAST_LOG)).and_then(|last| identity(&last));
        let is_of_another_boot = last.is_ok_and(|last| identity(file).is_ok_and(|own| own == last));
        if !is_of_another_boot {
            let said = said_at(file.stream_position()?, *missing_in_it, self.share);
            let place = place_of(said, missing_now, self.share);
            let length = now.metadata()?.len();
            now.seek(SeekFrom::Start(place.min(length)))?;
        }
        let (file, _) = self.file.insert((now, missing_now));
        file.read(buffer)
    }
}

/// Looks for a text in a log that grows, each byte once.
///
/// The text is within one line, and is found if that was torn: a kernel's message, or a VMM's, gets
/// into it where it just is, with an end of line of its own, and the rest begins a line later.
///
/// ```text
/// mvm-guest-agent: liste[    2.183] random: crng init done
/// ning on vsock port 52
/// ```
#[derive(Debug)]
pub struct Watch {
    log: Follow,
    search: Search,
}

impl Watch {
    /// Watches for `wanted` from the beginning of a VM's console. It need not be there yet.
    pub fn new(folder: &VmFolder, wanted: &str) -> Self {
        Self::of(Follow::new(folder), wanted)
    }

    fn of(log: Follow, wanted: &str) -> Self {
        Self {
            log,
            search: Search::new(wanted),
        }
    }

    /// Reads what has been added; whether the text has come.
    pub fn contains(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 16 * 1024];
        loop {
            let count = self.log.read(&mut buffer)?;
            let Some(piece) = buffer.get(..count).filter(|piece| !piece.is_empty()) else {
                return Ok(false);
            };
            if self.search.read(piece) {
                return Ok(true);
            }
        }
    }
}

/// A text that is looked for in bytes as they come, with no more of them in memory than the text has.
#[derive(Debug)]
struct Search {
    wanted: Vec<u8>,
    /// The last bytes of the line that is being read, as many as are the text's beginning.
    last: Vec<u8>,
    /// The first bytes of the line that is being read, as many as may be the text's rest.
    first: Vec<u8>,
    /// The most of the text's beginning that is in the line that is being read.
    begun: usize,
    /// The same of each line before it that is not too long ago.
    begun_before: VecDeque<usize>,
}

impl Search {
    fn new(wanted: &str) -> Self {
        Self {
            wanted: wanted.into(),
            last: Vec::new(),
            first: Vec::new(),
            begun: 0,
            begun_before: VecDeque::new(),
        }
    }

    /// Whether the text has come.
    fn read(&mut self, piece: &[u8]) -> bool {
        piece.iter().any(|byte| self.read_byte(*byte))
    }

    fn read_byte(&mut self, byte: u8) -> bool {
        if byte == b'\n' {
            self.begun_before.push_back(self.begun);
            if self.begun_before.len() > WITHIN {
                self.begun_before.pop_front();
            }
            self.begun = 0;
            self.first.clear();
            self.last.clear();
            return false;
        }
        self.last.push(byte);
        while !self.wanted.starts_with(&self.last) {
            self.last.remove(0);
        }
        self.begun = self.begun.max(self.last.len());
        if self.last.len() == self.wanted.len() {
            return true;
        }
        // Longer than what can be missing of the text, it has been looked at.
        if self.first.len() < self.wanted.len() {
            self.first.push(byte);
            return self.is_rest();
        }
        false
    }

    /// Whether the line begins with what is missing of the text since a line before it.
    fn is_rest(&self) -> bool {
        let begun = self.begun_before.iter().max().copied().unwrap_or(0);
        let before = self.wanted.len().saturating_sub(self.first.len());
        (1..=begun).contains(&before) && self.wanted.ends_with(&self.first)
    }
}

/// The last lines of a log, without anything that a terminal would obey; empty if there are none.
pub fn tail(path: &Path) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = open_regular(path)?;
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
    use super::keeper::Keeper;
    use super::*;
    use std::io::Write as _;

    fn follow(folder: &Path) -> Follow {
        Follow::in_folder(folder, Share::of(Some(1)))
    }

    fn watch(folder: &Path, wanted: &str) -> Watch {
        Watch::of(follow(folder), wanted)
    }

    fn read_on(log: &mut Follow) -> String {
        let mut read = Vec::new();
        let mut buffer = [0; 7000];
        loop {
            match log.read(&mut buffer).unwrap() {
                0 => return String::from_utf8(read).unwrap(),
                count => read.extend_from_slice(&buffer[..count]),
            }
        }
    }

    #[test]
    fn who_follows_reads_each_byte_once_however_often_it_is_written_anew() {
        let folder = tempfile::tempdir().unwrap();
        let share = Share::of(Some(1));
        begin(folder.path(), share).unwrap();
        let mut keeper = Keeper::begin(folder.path(), share).unwrap();
        let mut log = follow(folder.path());
        let (mut said, mut read) = (String::new(), String::new());
        for line in 0..300_000 {
            let text = format!("line {line}\n");
            keeper.write(text.as_bytes());
            said += &text;
            if line % 5000 == 0 {
                read += &read_on(&mut log);
            }
        }
        read += &read_on(&mut log);
        assert!(said.len() as u64 > 4 * share.whole());
        assert_eq!(said.len(), read.len());
        assert!(said == read);

        // The next boot is read from its beginning.
        begin(folder.path(), share).unwrap();
        assert_eq!(read_on(&mut log), "");
        Keeper::begin(folder.path(), share)
            .unwrap()
            .write(b"boot\n");
        assert_eq!(read_on(&mut log), "boot\n");
    }

    #[test]
    fn who_is_too_slow_is_told_that_something_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let share = Share::of(Some(1));
        begin(folder.path(), share).unwrap();
        let mut keeper = Keeper::begin(folder.path(), share).unwrap();
        let mut log = follow(folder.path());
        keeper.write(b"first\n");
        assert_eq!(read_on(&mut log), "first\n");
        for _ in 0..40 {
            keeper.write(&vec![b'x'; 64 * 1024]);
        }
        keeper.write(b"last\n");
        let read = read_on(&mut log);
        assert!(read.contains(" bytes are missing here ---\n"));
        assert!(read.ends_with("last\n"));
        assert!((read.len() as u64) < 2 * share.whole());
    }

    #[test]
    fn a_text_in_two_pieces_is_seen_and_an_absent_log_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console.log");
        let mut watch = watch(folder.path(), LISTENING);
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
        assert!(watch(folder.path(), LISTENING).contains().unwrap());
        let mut other = watch(folder.path(), "never");
        assert!(!other.contains().unwrap());
        assert!(other.search.last.len() < "never".len());
        assert!(other.search.first.len() <= "never".len());
    }

    fn heard(log: &str) -> bool {
        let at_once = Search::new(LISTENING).read(log.as_bytes());
        let mut search = Search::new(LISTENING);
        let by_bytes = log.bytes().any(|byte| search.read(&[byte]));
        assert_eq!(at_once, by_bytes, "{log:?}");
        at_once
    }

    #[test]
    fn a_line_that_was_torn_anywhere_is_heard() {
        let line = format!("{LISTENING}vsock port 52\r\n");
        for at in 0..LISTENING.len() {
            let (head, rest) = line.split_at(at);
            for between in [
                "[    2.183] random: crng init done\r\n",
                "2026-11-24T10:00:00.000000000 [web:main] The API server received a request.\n",
                "one\r\ntwo\r\n",
                "\n",
            ] {
                let log = format!("boot\r\n{head}{between}{rest}");
                assert!(heard(&log), "{log:?}");
            }
        }
    }

    #[test]
    fn what_only_looks_like_it_is_not() {
        for log in [
            // Its other lines.
            "mvm-guest-agent: ready\nistening on vsock\n",
            "mvm-guest-agent: listen\nmvm-guest-agent: listen\n",
            // The rest is not at a line's beginning, or of no line before it.
            "mvm-guest-agent: lis[ 1.0] x\n tening on vsock\n",
            "mvm-guest-agent: lis[ 1.0] x\ntening off\n",
            "tening on vsock\nmvm-guest-agent: lis",
            // A piece of it is missing.
            "mvm-guest-agent: l\ntening on vsock\n",
        ] {
            assert!(!heard(log), "{log:?}");
        }
        let torn = |lines| {
            format!(
                "mvm-guest-agent: lis{}tening on vsock\n",
                "x\n".repeat(lines)
            )
        };
        assert!(heard(&torn(WITHIN)));
        assert!(!heard(&torn(WITHIN + 1)));
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
