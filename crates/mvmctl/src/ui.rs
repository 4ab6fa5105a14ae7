//! The way out: data on stdout, talk on stderr. Nothing else writes to either.
#![expect(clippy::disallowed_methods, reason = "this is the way out")]

use crate::args::Color;
use crate::render::shown::table::Looks;
use crate::render::shown::{OneLine, Shown};
use crate::render::text::wrapped;
use crate::report::Failure;
use crate::stdio::write_all;
use indicatif::{ProgressBar, ProgressStyle};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::cell::Cell;
use std::io::{IsTerminal as _, Write as _};
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::unix::pipe;

/// How much is said at once, in characters: a path can have 4096, and what a guest sends 256 KiB.
const MOST: usize = 4500;

/// Stdout and stderr of this run.
#[derive(Debug)]
pub(crate) struct Ui {
    terminal: bool,
    width: Option<u16>,
    color: bool,
    color_on_stderr: bool,
    verbose: bool,
    dumb: bool,
    closed: Cell<bool>,
    given_away: Cell<bool>,
}

impl Ui {
    /// Looks at the terminal, at `NO_COLOR` and at `TERM`: a dumb one obeys no escape sequence.
    pub(crate) fn new(color: Color, verbose: bool) -> Self {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|kind| kind == "dumb");
        let wanted = |terminal: bool| match color {
            Color::Auto => terminal && !no_color && !dumb,
            Color::Always => true,
            Color::Never => false,
        };
        let color = wanted(std::io::stdout().is_terminal());
        // The tables' library looks at NO_COLOR by itself, and writes empty sequences then.
        crossterm::style::force_color_output(color);
        Self {
            terminal: std::io::stdout().is_terminal(),
            width: width_of(std::io::stdout()),
            color,
            color_on_stderr: wanted(std::io::stderr().is_terminal()),
            verbose,
            dumb,
            closed: Cell::new(false),
            given_away: Cell::new(false),
        }
    }

    /// How tables look on stdout.
    pub(crate) fn looks(&self) -> Looks {
        Looks {
            width: self.width,
            color: self.color,
        }
    }

    /// Whether stdout is a terminal.
    pub(crate) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Writes data to stdout. A reader that has gone is no error: what follows is dropped, and
    /// [`Ui::is_closed`] tells streams to end.
    pub(crate) fn print(&self, data: &Shown) -> Result<(), Failure> {
        self.write(data.as_str().as_bytes())
    }

    /// Stdout for bytes as they came; `None` if they would reach a terminal.
    pub(crate) fn not_a_terminal(&self) -> Option<Raw<'_>> {
        (!self.is_terminal()).then_some(Raw(self))
    }

    fn write(&self, data: &[u8]) -> Result<(), Failure> {
        if self.closed.get() {
            return Ok(());
        }
        match write_all(std::io::stdout().lock(), data) {
            Ok(()) => Ok(()),
            Err(Errno::PIPE) => {
                self.closed.set(true);
                Ok(())
            }
            Err(error) => Err(unwritten(&error.into())),
        }
    }

    /// Says that stdout carries somebody else's bytes, a file's or a port's: nothing of ours may get
    /// among them.
    pub(crate) fn give_stdout_away(&self) {
        self.given_away.set(true);
    }

    /// Whether data of ours may be written to stdout.
    pub(crate) fn has_stdout(&self) -> bool {
        !self.given_away.get()
    }

    /// Whether the reader of stdout has gone, even if nothing was written to it since.
    pub(crate) fn is_closed(&self) -> bool {
        let stdout = std::io::stdout();
        let mut pipe = [PollFd::new(&stdout, PollFlags::empty())];
        // A pipe without a reader is an error to its writer.
        if poll(&mut pipe, Some(&Timespec::default())).is_ok()
            && pipe
                .iter()
                .any(|pipe| pipe.revents().contains(PollFlags::ERR))
        {
            self.closed.set(true);
        }
        self.closed.get()
    }

    /// Waits until the reader of stdout has gone: for streams that may have nothing to write for long.
    /// It never comes where that cannot be told, as of a file.
    pub(crate) async fn closed(&self) {
        // Only looked at, and so left as it is: not to wait is a setting that others would share.
        let stdout = std::io::stdout().as_fd().try_clone_to_owned();
        if let Ok(pipe) = stdout.and_then(pipe::Sender::from_owned_fd_unchecked)
            && pipe.ready(Interest::ERROR).await.is_ok()
            && self.is_closed()
        {
            return;
        }
        std::future::pending::<()>().await;
    }

    /// Talk on stderr, one line.
    pub(crate) fn note(&self, text: &str) {
        self.talk("", "", text);
    }

    /// What went wrong, on stderr.
    pub(crate) fn error(&self, text: &str) {
        self.talk("error: ", "1;31", text);
    }

    /// What is amiss and ends nothing, on stderr.
    pub(crate) fn warning(&self, text: &str) {
        self.talk("warning: ", "1;33", text);
    }

    /// What to do next, on stderr.
    pub(crate) fn hint(&self, text: &str) {
        self.talk("  hint: ", "1;36", text);
    }

    fn talk(&self, label: &str, style: &str, text: &str) {
        let indent = label.len();
        let label = if self.color_on_stderr && !style.is_empty() {
            format!("\x1b[{style}m{label}\x1b[0m")
        } else {
            label.to_owned()
        };
        let text = OneLine::short(text, MOST);
        let shown = match width_of(std::io::stderr()) {
            Some(width) => wrapped(text.as_str(), width.into(), indent),
            None => text.to_string(),
        };
        say_line(&format!("{label}{shown}"));
    }

    /// Whether stderr is a terminal for things that move. The conversation that `-v` shows would
    /// tear them.
    pub(crate) fn is_live(&self) -> bool {
        std::io::stderr().is_terminal() && !self.verbose && !self.dumb
    }

    /// Says what is being waited for, once it has taken a second, until the guard is dropped: a
    /// spinner on a terminal, one line elsewhere.
    pub(crate) fn progress(&self, what: &str) -> Progress {
        let what = OneLine::of(what);
        let spinner = self.is_live();
        let (done, waiting) = mpsc::channel::<()>();
        let thread = std::thread::Builder::new()
            .name("progress".into())
            .spawn(move || {
                if waiting.recv_timeout(Duration::from_secs(1))
                    != Err(mpsc::RecvTimeoutError::Timeout)
                {
                    return;
                }
                if spinner {
                    let bar = ProgressBar::new_spinner().with_message(format!("{what}…"));
                    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
                        bar.set_style(style);
                    }
                    bar.enable_steady_tick(Duration::from_millis(120));
                    let _ = waiting.recv();
                    bar.finish_and_clear();
                } else {
                    say_line(&format!("{what}…"));
                }
            });
        Progress {
            done: Some(done),
            // Without a thread the work goes on unseen.
            thread: thread.ok(),
        }
    }
}

/// Stdout where it is no terminal.
#[derive(Debug)]
pub(crate) struct Raw<'a>(&'a Ui);

impl Raw<'_> {
    /// Writes bytes as they came, as [`Ui::print`] does.
    pub(crate) fn print(&self, bytes: &[u8]) -> Result<(), Failure> {
        self.0.write(bytes)
    }
}

/// The failure to write what was asked for.
pub(crate) fn unwritten(error: &std::io::Error) -> Failure {
    Failure::failed(format!("cannot write to standard output: {error}"))
        .hint("look at where the output goes: a full disk, for example")
}

/// The width of a terminal in columns; `None` for what is none.
fn width_of(stream: impl AsFd) -> Option<u16> {
    let size = rustix::termios::tcgetwinsize(stream).ok()?;
    (size.ws_col > 0).then_some(size.ws_col)
}

/// Shows that something is under way; ends when dropped.
#[derive(Debug)]
pub(crate) struct Progress {
    done: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Progress {
    fn drop(&mut self) {
        drop(self.done.take());
        if let Some(thread) = self.thread.take() {
            // Waits for the spinner to be cleared, so that what is printed next starts a line.
            let _ = thread.join();
        }
    }
}

/// One line on stderr, in one write: others write to the same terminal or journal. A stderr that has gone
/// leaves nobody to tell.
fn say_line(line: &str) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}
