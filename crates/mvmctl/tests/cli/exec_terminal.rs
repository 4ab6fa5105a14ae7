//! `exec -it`: the terminal of the command is ours, and ours again whatever happens.

use crate::host::Host;
use crate::pty::Terminal;
use mvm_fake_agent::{Peer, dev};
use mvm_protocol::Frame;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::process::{Child, Command};

const EXEC: &str = "vm exec -it web -- sh";

fn guest(serve: impl Fn(&mut Peer, &Value) + Send + Sync + 'static) -> Host {
    Host::with("web", dev(serve))
}

fn exec(host: &Host) -> Command {
    let mut command = host.command(EXEC);
    command.env("PATH", std::env::var_os("PATH").unwrap());
    command
}

fn code(mut child: Child) -> Option<i32> {
    child.wait().unwrap().code()
}

fn keys(peer: &mut Peer) -> Vec<u8> {
    match peer.frame().unwrap() {
        Frame::Data { channel: 0, bytes } => bytes,
        other => panic!("{other:?}"),
    }
}

#[test]
fn keys_and_sizes_go_to_the_guest() {
    let host = guest(|peer, request| {
        assert_eq!(request["tty"], json!({"cols": 90, "rows": 30}));
        peer.exec_started(request);
        peer.data(1, b"ready\r\n");
        // Ctrl-C, Ctrl-Z, Ctrl-D, Ctrl-\, a flow control and a newline that was typed.
        let mut pressed = Vec::new();
        while pressed.len() < 6 {
            pressed.extend(keys(peer));
        }
        assert_eq!(pressed, b"\x03\x1a\x04\x1c\x13\r");
        peer.data(1, b"keys\r\n");
        let resized = peer.request().unwrap();
        assert_eq!(resized, json!({"type": "resize", "cols": 100, "rows": 40}));
        peer.data(1, b"size\r\n");
        peer.exec_exited(request, 3);
    });
    let mut terminal = Terminal::new(90, 30);
    let child = terminal.run(&exec(&host));
    terminal.expect("ready\r\n");
    assert!(terminal.is_raw());
    terminal.press(b"\x03\x1a\x04\x1c\x13\r");
    // Nothing is echoed here, and what the guest writes is not changed.
    terminal.expect("keys\r\n");
    terminal.resize(100, 40);
    terminal.expect("size\r\n");
    assert_eq!(code(child), Some(3));
    assert!(!terminal.is_raw());
}

#[test]
fn whatever_ends_it_the_terminal_is_as_before() {
    for (signal, expected) in [
        (Signal::TERM, 143),
        (Signal::HUP, 129),
        (Signal::INT, 130),
        (Signal::QUIT, 131),
    ] {
        let host = guest(|peer, request| {
            peer.exec_started(request);
            peer.data(1, b"ready");
            peer.until_closed();
        });
        let mut terminal = Terminal::new(80, 24);
        let child = terminal.run(&exec(&host));
        terminal.expect("ready");
        assert!(terminal.is_raw());
        kill_process(Pid::from_child(&child), signal).unwrap();
        terminal.expect("\x1b[?25h");
        terminal.expect("web: ended by SIG");
        assert_eq!(code(child), Some(expected));
        assert!(!terminal.is_raw());
    }
}

#[test]
fn a_lost_connection_gives_the_terminal_back() {
    let host = guest(|peer, request| {
        peer.exec_started(request);
        peer.data(1, b"ready");
        keys(peer);
        peer.hang_up();
    });
    let mut terminal = Terminal::new(80, 24);
    let child = terminal.run(&exec(&host));
    terminal.expect("ready");
    assert!(terminal.is_raw());
    terminal.press(b"x");
    terminal.expect("closed the connection while a");
    assert_eq!(code(child), Some(125));
    assert!(!terminal.is_raw());
}

#[test]
fn what_is_refused_leaves_the_terminal_alone() {
    let host = guest(|peer, request| peer.refuse(request, "not-found", "no such program"));
    let mut terminal = Terminal::new(80, 24);
    let child = terminal.run(&exec(&host));
    terminal.expect("no such program\r\n");
    assert_eq!(code(child), Some(127));
    assert!(!terminal.is_raw());
}

#[test]
fn a_terminal_in_the_guest_alone_leaves_ours_as_it_is() {
    let host = guest(|peer, request| {
        peer.exec_started(request);
        peer.data(1, b"ready");
        assert_eq!(peer.request().unwrap()["signal"], "INT");
        peer.exec_exited(request, 9);
    });
    let mut command = host.command("vm exec -t web -- top");
    command.env("PATH", std::env::var_os("PATH").unwrap());
    let mut terminal = Terminal::new(80, 24);
    let child = terminal.run(&command);
    terminal.expect("ready");
    assert!(!terminal.is_raw());
    // It is not the command's: the terminal makes a signal of it.
    terminal.press(b"\x03");
    assert_eq!(code(child), Some(9));
}
