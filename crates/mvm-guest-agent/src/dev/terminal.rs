//! A terminal of a command's own: pty(7).

use crate::machine::users::Identity;
use crate::ports::flow::ToldEnd;
use mvm_protocol::dev::exec::Window;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, fchmod, fchown};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{SpecialCodeIndex, Winsize, tcgetattr, tcsetwinsize};
use std::io;

/// The agent's end of a terminal.
#[derive(Debug)]
pub(super) struct Terminal {
    master: OwnedFd,
}

/// What a terminal's end of file is unless somebody has changed it: Ctrl-D.
const END_OF_FILE: u8 = 4;

impl Terminal {
    /// A new terminal of that size, and the command's end of it.
    pub(super) fn open(window: Window, user: Option<&Identity>) -> io::Result<(Self, OwnedFd)> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags)?;
        unlockpt(&master)?;
        // By the descriptor, not by its name: /dev/pts may be another one's.
        let slave = ioctl_tiocgptpeer(&master, flags)?;
        if let Some(user) = user {
            // As login does it: whoever works on it may open it by its name.
            fchown(&slave, Some(user.uid), None)?;
            fchmod(&slave, Mode::from_raw_mode(0o620))?;
        }
        rustix::io::ioctl_fionbio(&master, true)?;
        let terminal = Self { master };
        terminal.resize(window);
        Ok((terminal, slave))
    }

    /// Another descriptor of the agent's end.
    pub(super) fn end(&self) -> io::Result<OwnedFd> {
        self.master.try_clone()
    }

    /// The same terminal once more.
    pub(super) fn again(&self) -> io::Result<Self> {
        let master = self.end()?;
        Ok(Self { master })
    }

    /// Sets its size; the kernel notifies its processes (WINCH).
    pub(super) fn resize(&self, window: Window) {
        let size = Winsize {
            ws_row: window.rows,
            ws_col: window.cols,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let _ = tcsetwinsize(&self.master, size);
    }
}

impl ToldEnd for Terminal {
    /// On a line that has begun it has to be said twice: the first one hands in the line.
    fn end_of_file(&self, line_has_begun: bool) -> Vec<u8> {
        let code = tcgetattr(&self.master)
            .map_or(END_OF_FILE, |it| it.special_codes[SpecialCodeIndex::VEOF]);
        vec![code; if line_has_begun { 2 } else { 1 }]
    }
}
