//! On a terminal: colour, and tables that fit.

use crate::host::{Host, answering};
use crate::pty::Terminal;
use mvm_fake_agent::inspect;
use std::process::Command;

/// Runs it with a terminal of that many columns as stdout and stderr, and gives what it wrote.
fn on_terminal(command: Command, columns: u16) -> String {
    Terminal::new(columns, 50).output_of(command)
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
fn a_dumb_terminal_gets_text_alone() {
    let host = verbose_guest();
    for command in ["vm inspect web", "vm inspect nope"] {
        let mut command = host.command(command);
        command.env("TERM", "dumb");
        let shown = on_terminal(command, 80);
        assert!(!shown.is_empty() && !shown.contains('\x1b'), "{shown:?}");
    }
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
