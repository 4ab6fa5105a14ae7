//! On a terminal: colour, and tables that fit.

use crate::host::{Host, answering};
use mvm_fake_agent::inspect;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use std::fs::File;
use std::io::Read as _;
use std::process::Command;

/// Runs it with a terminal of that many columns as stdout and stderr, and gives what it wrote.
fn on_terminal(mut command: Command, columns: u16) -> String {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let size = Winsize {
        ws_row: 50,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&terminal, size).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap();
    let other_end = File::options()
        .read(true)
        .write(true)
        .open(name.to_str().unwrap())
        .unwrap();
    command
        .stdout(other_end.try_clone().unwrap())
        .stderr(other_end);
    let mut child = command.spawn().unwrap();
    // Holds the other end open itself: without this the read below would not end.
    drop(command);
    let mut written = Vec::new();
    // Ends with an error once the last process has closed the other end.
    let _ = File::from(terminal).read_to_end(&mut written);
    child.wait().unwrap();
    String::from_utf8(written).unwrap().replace("\r\n", "\n")
}

/// How many columns a line takes up, escape sequences left out.
fn width(line: &str) -> usize {
    let mut count = 0;
    let mut in_escape = false;
    for character in line.chars() {
        match (in_escape, character) {
            (false, '\x1b') => in_escape = true,
            (true, character) => in_escape = !character.is_ascii_alphabetic(),
            (false, _) => count += 1,
        }
    }
    count
}

fn verbose_guest() -> Host {
    let mut inspect = inspect("unhealthy");
    let output = "curl: (7) Failed to connect to localhost port 8080: Connection refused";
    inspect["integrations"][0]["last_check"]["output"] = output.into();
    inspect["agent"]["drop_in_errors"][0]["message"] =
        "of the longer kind of reason ".repeat(6).into();
    Host::with("web", answering(inspect))
}

#[test]
fn tables_fit() {
    let host = verbose_guest();
    for columns in [80, 120] {
        let shown = on_terminal(host.command("vm inspect web"), columns);
        for line in shown.lines() {
            assert!(
                width(line) <= columns.into(),
                "{columns}: {line:?}\n{shown}"
            );
        }
        assert!(shown.contains("REJECTED FILE"), "{shown}");
    }
    // In a pipe a row is a line, however long.
    let piped = host.mvmctl("vm inspect web").stdout;
    assert!(piped.lines().any(|line| line.len() > 160), "{piped}");
}

#[test]
fn colour_on_a_terminal_unless_it_is_not_wanted() {
    let host = verbose_guest();
    let coloured = |change: fn(&mut Command)| {
        let mut command = host.command("vm inspect web");
        change(&mut command);
        on_terminal(command, 100).contains('\x1b')
    };
    assert!(coloured(|_| {}));
    assert!(coloured(|command| {
        command.env("NO_COLOR", "");
    }));
    assert!(!coloured(|command| {
        command.env("NO_COLOR", "1");
    }));
    assert!(!coloured(|command| {
        command.args(["--color", "never"]);
    }));
}
