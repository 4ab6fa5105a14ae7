//! An interactive shell in a guest, at a terminal: tmux is the person's.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use mvm_guest_tests::{Mvmctl, SOON, TestVm};
use std::process::Command;
use std::time::Instant;
use tempfile::TempDir;

/// A terminal of that size in which a program runs. It ends with its owner.
struct Tmux {
    folder: TempDir,
}

impl Tmux {
    fn start(size: (u16, u16), program: &str) -> Self {
        let tmux = Self {
            folder: TempDir::new().unwrap(),
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
        String::from_utf8(output.stdout).unwrap()
    }

    /// Presses keys: text, or names such as `Enter` and `C-c`.
    fn press(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"], keys].concat());
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p", "-S", "-"])
    }

    /// Waits until a line of the screen is this. tmux has no event for it.
    fn expect(&self, line: &str) {
        self.await_line(line, |shown| shown == line);
    }

    /// The same of a part of a line.
    fn expect_part(&self, part: &str) {
        self.await_line(part, |shown| shown.contains(part));
    }

    fn await_line(&self, what: &str, is_it: impl Fn(&str) -> bool) {
        let until = Instant::now() + SOON;
        while !self.screen().lines().any(|shown| is_it(shown.trim_end())) {
            assert!(Instant::now() < until, "no {what:?} in\n{}", self.screen());
            std::thread::sleep(std::time::Duration::from_millis(50));
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

#[test]
fn a_shell_with_job_control() {
    let Some(vm) = TestVm::dev() else { return };
    let mvmctl = Mvmctl::new();
    let exec = format!(
        "PS1='here$ ' MVM_HOME={} {} vm exec -it -e PS1='there$ ' {} -- sh; echo ended $?; stty -a | \
         grep -o ' -*icanon'; exec sh",
        mvmctl.home().display(),
        mvmctl.program().display(),
        vm.address()
    );
    let terminal = Tmux::start((90, 30), &exec);
    terminal.expect("there$");
    // Echo is the guest's terminal's.
    terminal.press(&["stty size; echo $TERM", "Enter"]);
    terminal.expect("there$ stty size; echo $TERM");
    terminal.expect("30 90");
    // It says itself when it is in the foreground: keys before that are the shell's.
    let job = "sh -c 'trap \"echo again\" CONT; echo runs; while :; do sleep 0.1; done'";
    terminal.press(&[job, "Enter"]);
    terminal.expect("runs");
    terminal.press(&["C-z"]);
    terminal.expect_part("[1]+  Stopped");
    terminal.press(&["fg", "Enter"]);
    terminal.expect("again");
    terminal.press(&["C-c"]);
    terminal.press(&["echo $? back", "Enter"]);
    terminal.expect("130 back");
    terminal.tmux(&["resize-window", "-x", "120", "-y", "40"]);
    terminal.press(&["stty size", "Enter"]);
    terminal.expect("40 120");
    terminal.press(&["exit 7", "Enter"]);
    terminal.expect("ended 7");
    terminal.expect(" icanon");
}
