//! The log: whole lines to standard error, or to the kernel's log where there is none.
//!
//! A log must never hold up the agent: a console whose reader is stuck loses lines.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fmt;

/// Writes one line, after the program's name. Never blocks, never fails.
pub(crate) fn write_line(message: fmt::Arguments) {
    let line = format!("mvm-guest-agent: {message}\n");
    let stderr = rustix::stdio::stderr();
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    match poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], Some(&now)) {
        Ok(ready) if ready > 0 => {
            let _ = rustix::io::write(stderr, line.as_bytes());
        }
        _ => {}
    }
}

/// Logs like `println!`.
macro_rules! say {
    ($($part:tt)+) => { $crate::machine::console::write_line(format_args!($($part)+)) };
}
pub(crate) use say;
