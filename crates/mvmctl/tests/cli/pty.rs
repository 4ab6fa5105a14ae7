//! A terminal that the test holds the other end of.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// How long a program may take to write what is waited for, on a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// A terminal and both its ends.
pub(crate) struct Terminal {
    ours: OwnedFd,
    other: File,
    written: Vec<u8>,
}

impl Terminal {
    /// One of that size.
    pub(crate) fn new(columns: u16, rows: u16) -> Self {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let name = ptsname(&ours, Vec::new()).unwrap();
        let other = File::options()
            .read(true)
            .write(true)
            .open(name.to_str().unwrap())
            .unwrap();
        let terminal = Self {
            ours,
            other,
            written: Vec::new(),
        };
        terminal.resize(columns, rows);
        terminal
    }

    /// Changes its size, of which the program in the foreground is told.
    pub(crate) fn resize(&self, columns: u16, rows: u16) {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.ours, size).unwrap();
    }

    /// Runs a program as a shell would: it leads a session on this terminal.
    pub(crate) fn run(&self, command: &Command) -> Child {
        // It becomes the program itself, with the same process id: as our child it leads no group.
        let mut session = Command::new("setsid");
        session
            .arg("--ctty")
            .arg(command.get_program())
            .args(command.get_args())
            .env_clear()
            .envs(
                command
                    .get_envs()
                    .filter_map(|(key, value)| Some((key, value?))),
            )
            .stdin(self.other.try_clone().unwrap())
            .stdout(self.other.try_clone().unwrap())
            .stderr(self.other.try_clone().unwrap());
        session.spawn().unwrap()
    }

    /// Runs a program that writes to it, and gives all that it wrote.
    pub(crate) fn output_of(self, mut command: Command) -> String {
        command
            .stdout(self.other.try_clone().unwrap())
            .stderr(self.other);
        let mut child = command.spawn().unwrap();
        // Holds the other end open itself: without this the read below would not end.
        drop(command);
        let mut written = Vec::new();
        // Ends with an error once the last process has closed the other end.
        let _ = File::from(self.ours).read_to_end(&mut written);
        child.wait().unwrap();
        String::from_utf8(written).unwrap().replace("\r\n", "\n")
    }

    /// Presses keys.
    pub(crate) fn press(&self, keys: &[u8]) {
        assert_eq!(rustix::io::write(&self.ours, keys).unwrap(), keys.len());
    }

    /// Waits until this has been written to it, and forgets everything up to there.
    pub(crate) fn expect(&mut self, text: &str) {
        let until = Instant::now() + SOON;
        loop {
            let found = self
                .written
                .windows(text.len())
                .position(|window| window == text.as_bytes());
            if let Some(at) = found {
                self.written.drain(..at + text.len());
                return;
            }
            let shown = String::from_utf8_lossy(&self.written).into_owned();
            assert!(Instant::now() < until, "no {text:?} in {shown:?}");
            let mut ready = [PollFd::new(&self.ours, PollFlags::IN)];
            let tick = Timespec {
                tv_sec: 1,
                tv_nsec: 0,
            };
            if poll(&mut ready, Some(&tick)).unwrap() > 0 {
                let mut piece = [0; 4096];
                let count = rustix::io::read(&self.ours, &mut piece).unwrap();
                self.written.extend_from_slice(&piece[..count]);
            }
        }
    }

    /// Whether it hands each key on as it is: no lines, no echo, no signals.
    pub(crate) fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.other).unwrap().local_modes;
        let cooked = LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
        assert!(
            modes.contains(cooked) || !modes.intersects(cooked),
            "neither raw nor as it was: {modes:?}"
        );
        !modes.intersects(cooked)
    }
}
