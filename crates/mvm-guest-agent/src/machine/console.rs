//! The log: whole lines to standard error; and the guest's console.
//!
//! A log must never hold up the agent: a console whose reader is stuck loses lines.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{Mode, OFlags, open};
use std::fmt;
use std::io::IsTerminal;

/// Writes one line, after the program's name. Never blocks, never fails.
pub(crate) fn write_line(message: fmt::Arguments) {
    put(rustix::stdio::stderr(), message);
}

/// Whether the log can be seen on a console: it goes to a terminal. A service manager takes it
/// elsewhere.
pub(crate) fn has_log() -> bool {
    std::io::stderr().is_terminal()
}

/// Writes one line to the guest's console, as [`write_line`] does.
pub(crate) fn write_to_console(message: fmt::Arguments) {
    let flags = OFlags::WRONLY | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    if let Ok(console) = open("/dev/console", flags, Mode::empty()) {
        put(console.as_fd(), message);
    }
}

fn put(to: BorrowedFd, message: fmt::Arguments) {
    let line = format!("mvm-guest-agent: {message}\n");
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

/// Logs like `println!`.
macro_rules! say {
    ($($part:tt)+) => { $crate::machine::console::write_line(format_args!($($part)+)) };
}
pub(crate) use say;
