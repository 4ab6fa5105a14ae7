//! A terminal for what people do: tmux is the person's.

use crate::SOON;
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A terminal in which a program runs. It ends with its owner.
#[derive(Debug)]
pub struct Tmux {
    folder: TempDir,
}

impl Tmux {
    /// One of that size, columns and rows.
    pub fn start(size: (u16, u16), program: &str) -> Self {
        let tmux = Self {
            folder: TempDir::new().expect("make a folder"),
        };
        let (columns, rows) = (size.0.to_string(), size.1.to_string());
        tmux.tmux(&["new-session", "-d", "-x", &columns, "-y", &rows, program]);
        tmux
    }

    fn tmux(&self, arguments: &[&str]) -> String {
        let output = Command::new("tmux")
            .args(["-f", "/dev/null", "-S"])
            .arg(self.folder.path().join("socket"))
            .args(arguments)
            .output()
            .expect("run tmux: `cargo xtask test` installs it");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Presses keys: text, or names such as `Enter` and `C-c`.
    pub fn press(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"], keys].concat());
    }

    /// Types a text, in which no key has a name.
    pub fn type_in(&self, text: &str) {
        self.tmux(&["send-keys", "-l", text]);
    }

    /// Makes it another size.
    pub fn resize(&self, (columns, rows): (u16, u16)) {
        let (columns, rows) = (columns.to_string(), rows.to_string());
        self.tmux(&["resize-window", "-x", &columns, "-y", &rows]);
    }

    /// What it shows, and has shown.
    pub fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p", "-S", "-"])
    }

    /// Waits until a line of the screen is this. tmux has no event for it.
    pub fn expect(&self, line: &str) {
        self.await_line(line, |shown| shown == line);
    }

    /// The same of a part of a line.
    pub fn expect_part(&self, part: &str) {
        self.await_line(part, |shown| shown.contains(part));
    }

    fn await_line(&self, what: &str, is_it: impl Fn(&str) -> bool) {
        self.await_screen(what, |screen| {
            screen.lines().any(|shown| is_it(shown.trim_end()))
        });
    }

    /// Waits until the last line is this.
    pub fn expect_last(&self, line: &str) {
        self.await_screen(line, |screen| {
            screen.trim_end().lines().next_back().map(str::trim_end) == Some(line)
        });
    }

    fn await_screen(&self, what: &str, is_it: impl Fn(&str) -> bool) {
        let until = Instant::now() + SOON;
        loop {
            let screen = self.screen();
            if is_it(&screen) {
                return;
            }
            assert!(Instant::now() < until, "no {what:?} in\n{screen}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        let _ = Command::new("tmux")
            .arg("-S")
            .arg(self.folder.path().join("socket"))
            .arg("kill-server")
            .output();
    }
}
