//! The terminal of a command in the guest: ours, raw as long as it runs.
#![expect(
    clippy::disallowed_methods,
    reason = "it speaks of the terminal itself, in words of ours"
)]

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::{IsTerminal as _, Write as _};
use std::sync::{Arc, Mutex};

/// What a program that was cut off may have left behind: the other screen, no cursor, colours,
/// reports of the mouse, marked pastes. Each of these does nothing where it is as it should be.
const SANE: &str =
    "\x1b[?47l\x1b[?25h\x1b[m\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l";

/// Standard input as a raw terminal: each key goes to the guest as a byte, Ctrl-C too. As it was
/// once this is dropped, and if the program panics, which in a release build ends it at once.
#[derive(Debug)]
pub(crate) struct RawTerminal {
    saved: Saved,
}

/// How the terminal was; none once that was restored.
type Saved = Arc<Mutex<Option<Termios>>>;

impl RawTerminal {
    /// Makes it raw.
    pub(crate) fn enter() -> rustix::io::Result<Self> {
        let before = tcgetattr(std::io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        let saved = Arc::new(Mutex::new(Some(before)));
        let for_panics = Arc::clone(&saved);
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panicked| {
            restore(&for_panics);
            usual(panicked);
        }));
        // At once: waiting until all output is written could wait for ever, and what was typed
        // ahead is meant for the command.
        tcsetattr(std::io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self { saved })
    }

    /// As it was before. A command that was cut off could not tidy up: that is done for it.
    pub(crate) fn leave(self, cut_off: bool) {
        // First: what is written may wait for a terminal that stands still.
        drop(self);
        if cut_off && std::io::stdout().is_terminal() {
            let mut stdout = std::io::stdout().lock();
            let _ = stdout.write_all(SANE.as_bytes());
            let _ = stdout.flush();
        }
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore(&self.saved);
    }
}

fn restore(saved: &Saved) {
    let saved = match saved.lock() {
        Ok(mut saved) => saved.take(),
        Err(poisoned) => poisoned.into_inner().take(),
    };
    if let Some(before) = saved {
        // A terminal that has gone needs no more.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &before);
    }
}

/// Whether standard input is a terminal.
pub(crate) fn is_stdin() -> bool {
    isatty(std::io::stdin())
}

/// The terminal's size in columns and rows: that of the first of stdin, stdout and stderr that is
/// one, else 80 by 24.
pub(crate) fn size() -> (u16, u16) {
    let sizes = [
        tcgetwinsize(std::io::stdin()),
        tcgetwinsize(std::io::stdout()),
        tcgetwinsize(std::io::stderr()),
    ];
    let known = sizes.into_iter().flatten();
    known
        .map(|size| (size.ws_col, size.ws_row))
        .find(|(columns, rows)| *columns > 0 && *rows > 0)
        .unwrap_or((80, 24))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use rustix::termios::LocalModes;
    use std::fs::File;
    use std::process::{Command, Stdio};

    /// What the next test runs, with a terminal as standard input.
    #[test]
    #[ignore = "panics on purpose"]
    fn a_program_that_panics() {
        let _raw = RawTerminal::enter().unwrap();
        let modes = tcgetattr(std::io::stdin()).unwrap().local_modes;
        assert!(!modes.contains(LocalModes::ICANON));
        // As a release build does: nothing is dropped.
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panicked| {
            usual(panicked);
            std::process::abort();
        }));
        panic!("on purpose");
    }

    #[test]
    fn a_panic_gives_the_terminal_back() {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let name = ptsname(&ours, Vec::new()).unwrap();
        let mut options = File::options();
        let terminal = options
            .read(true)
            .write(true)
            .open(name.to_str().unwrap())
            .unwrap();
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--ignored", "--nocapture"])
            .arg("raw_terminal::tests::a_program_that_panics")
            .stdin(terminal.try_clone().unwrap())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("on purpose"), "{said}");
        let modes = tcgetattr(&terminal).unwrap().local_modes;
        assert!(
            modes.contains(LocalModes::ICANON | LocalModes::ECHO),
            "{modes:?}"
        );
    }
}
