//! The log: whole lines to standard error; and the guest's console.
//!
//! A log must never hold up the agent: a console whose reader is stuck loses lines. The descriptor
//! may be shared with others and blocks, so a line is written only where poll(2) finds room, and is
//! never longer than the least room that it can have found. A terminal is opened once more, so that this
//! one does not block: of a pseudo-terminal poll(2) says that there is room when there is for a byte.

use mvm_protocol::object::in_one_line;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, AsRawFd as _, BorrowedFd};
use rustix::fs::{Mode, OFlags, open};
use std::fmt;
use std::io::IsTerminal;

/// The longest line in bytes, the newline included. poll(2) says that a pipe has room when 4096 bytes
/// of it are free (pipe(7), `PIPE_BUF`); a socket, such as a journal's, when at least three quarters of its
/// buffer are free.
const MAX_LINE: usize = 3072;

/// How a terminal is opened to write to it without waiting.
const TERMINAL: OFlags = OFlags::WRONLY
    .union(OFlags::NOCTTY)
    .union(OFlags::NONBLOCK)
    .union(OFlags::CLOEXEC);

/// What stands for the rest of a longer one.
const CUT: &str = " […]";

/// Writes one line, after the program's name; what is beyond [`MAX_LINE`] is cut off. Never blocks,
/// never fails.
pub(crate) fn write_line(message: fmt::Arguments) {
    put_shared(rustix::stdio::stderr(), message);
}

/// Whether the log can be seen on a console: it goes to a terminal. A service manager takes it
/// elsewhere.
pub(crate) fn has_log() -> bool {
    std::io::stderr().is_terminal()
}

/// Writes one line to the guest's console, as [`write_line`] does.
pub(crate) fn write_to_console(message: fmt::Arguments) {
    if let Ok(console) = open("/dev/console", TERMINAL, Mode::empty()) {
        put(console.as_fd(), message);
    }
}

/// Writes to what others have open too, and which blocks for them.
fn put_shared(to: BorrowedFd, message: fmt::Arguments) {
    let path = || format!("/proc/self/fd/{}", to.as_raw_fd());
    let own = to
        .is_terminal()
        .then(|| open(path(), TERMINAL, Mode::empty()));
    match own {
        Some(Ok(own)) => put(own.as_fd(), message),
        _ => put(to, message),
    }
}

fn put(to: BorrowedFd, message: fmt::Arguments) {
    let line = line(message);
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    match poll(&mut [PollFd::new(&to, PollFlags::OUT)], Some(&now)) {
        Ok(ready) if ready > 0 => {
            let _ = rustix::io::write(to, line.as_bytes());
        }
        _ => {}
    }
}

fn line(message: fmt::Arguments) -> String {
    let mut line = in_one_line(&format!("mvm-guest-agent: {message}"));
    if line.len() >= MAX_LINE {
        line.truncate(line.floor_char_boundary(MAX_LINE - CUT.len() - 1));
        line.push_str(CUT);
    }
    line.push('\n');
    line
}

/// Logs like `println!`.
macro_rules! say {
    ($($part:tt)+) => { $crate::machine::console::write_line(format_args!($($part)+)) };
}
pub(crate) use say;

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fd::OwnedFd;
    use std::io::{PipeReader, Read as _, Write as _, pipe};
    use std::sync::mpsc::channel;
    use std::time::Duration;

    /// Whether it returns; a write that blocks does not.
    #[expect(clippy::disallowed_methods, reason = "the harness has threads anyway")]
    fn returns(to: OwnedFd, message: String) -> bool {
        let (sender, returned) = channel();
        std::thread::spawn(move || {
            put_shared(to.as_fd(), format_args!("{message}"));
            let _ = sender.send(());
        });
        returned.recv_timeout(Duration::from_secs(10)).is_ok()
    }

    /// A pipe with so many free pages of its sixteen, and what reads it.
    fn pipe_with(free: usize) -> (PipeReader, OwnedFd) {
        let (reader, mut writer) = pipe().unwrap();
        writer.write_all(&vec![b'x'; 4096 * (16 - free)]).unwrap();
        (reader, writer.into())
    }

    #[test]
    fn a_long_line_to_a_pipe_that_is_nearly_full_is_cut_and_blocks_nobody() {
        let (mut reader, writer) = pipe_with(1);
        assert!(returns(writer, "ü".repeat(20_000)), "it blocks");
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        let line = text.trim_start_matches('x');
        assert!(line.starts_with("mvm-guest-agent: üü"), "{line}");
        assert!(line.ends_with("ü […]\n"), "{line}");
        assert!(line.len() <= MAX_LINE, "{}", line.len());
    }

    #[test]
    fn a_line_to_a_pipe_that_is_full_is_dropped() {
        let (mut reader, writer) = pipe_with(0);
        assert!(returns(writer, "short".to_owned()), "it blocks");
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text.trim_start_matches('x'), "");
    }

    /// Of which nobody has read a byte.
    #[test]
    fn lines_to_a_terminal_that_is_full_are_dropped() {
        use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
        let master = openpt(flags).unwrap();
        unlockpt(&master).unwrap();
        for number in 0..400 {
            let terminal = ioctl_tiocgptpeer(&master, flags).unwrap();
            let message = format!("line {number} {}", "x".repeat(200));
            assert!(returns(terminal, message), "line {number} blocks");
        }
    }

    #[test]
    fn what_is_quoted_makes_no_line_of_its_own() {
        let line = line(format_args!("rejected {}", "a\nmvm-guest-agent: b\u{1b}c"));
        let shown = "mvm-guest-agent: rejected a\u{fffd}mvm-guest-agent: b\u{fffd}c\n";
        assert_eq!(line, shown);
    }

    #[test]
    fn a_line_that_fits_is_whole() {
        for length in [0, 10, MAX_LINE - 19, MAX_LINE - 18, MAX_LINE - 17] {
            let message = "y".repeat(length);
            let line = line(format_args!("{message}"));
            let whole = line == format!("mvm-guest-agent: {message}\n");
            assert_eq!(whole, length <= MAX_LINE - 18, "{length}");
            assert!(line.len() <= MAX_LINE && line.ends_with('\n'));
        }
    }
}
