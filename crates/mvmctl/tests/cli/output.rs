//! Where output goes: closed pipes, colour, the conversation.

use crate::host::{Host, Ran};
use mvm_fake_agent::well;
use std::io::Read as _;
use std::process::Stdio;

#[test]
fn a_closed_pipe_ends_it_quietly() {
    let host = Host::with("web", well);
    for arguments in [
        "vm ls",
        "vm status web --json",
        "vm ping -o yaml",
        "vm inspect web",
        "vm ls -o name",
        "vm wait web --for ready --json",
        "completion bash",
        "man",
    ] {
        let mut command = host.command(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        drop(child.stdout.take());
        let ran = Ran::from(child.wait_with_output().unwrap());
        ran.exits(0).silently();
    }
}

/// Whoever reads it may have made it one that does not block.
#[test]
fn a_full_pipe_that_does_not_block_is_waited_for() {
    let host = Host::with("web", well);
    let (read, write) = rustix::pipe::pipe().unwrap();
    rustix::io::ioctl_fionbio(&write, true).unwrap();
    let mut filled = 0;
    while let Ok(count) = rustix::io::write(&write, &[b'x'; 4096]) {
        filled += count;
    }
    let mut command = host.command("vm ls -o name");
    command.stdout(Stdio::from(write)).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // It has the other end as well.
    drop(command);
    let waits = format!("/proc/{}/syscall", child.id());
    // poll(2) and ppoll(2) of x86-64, and ppoll(2) of aarch64.
    let in_poll = || {
        let call = std::fs::read_to_string(&waits).unwrap_or_default();
        ["7 ", "271 ", "73 "]
            .iter()
            .any(|number| call.starts_with(number))
    };
    while child.try_wait().unwrap().is_none() && !in_poll() {
        std::thread::yield_now();
    }
    let mut come = Vec::new();
    std::fs::File::from(read).read_to_end(&mut come).unwrap();
    assert_eq!(come.get(filled..), Some(&b"web\n"[..]));
    Ran::from(child.wait_with_output().unwrap())
        .exits(0)
        .silently();
}

#[test]
fn no_colour_in_a_pipe_unless_it_is_asked_for() {
    let host = Host::with("web", well);
    let plain = host.mvmctl("vm status").exits(0).stdout;
    assert!(!plain.contains('\x1b'));
    let coloured = host.mvmctl("vm status --color always").exits(0).stdout;
    assert!(coloured.contains('\x1b'), "{coloured:?}");
    let uncoloured = host.mvmctl("vm status --color never").exits(0).stdout;
    assert_eq!(uncoloured, plain);
    // What is typed goes before what is in the environment.
    let mut command = host.command("vm status --color always");
    let ran = Ran::from(command.env("NO_COLOR", "1").output().unwrap());
    assert_eq!(ran.stdout, coloured);
    assert!(!host.mvmctl("vm status nope").stderr.contains('\x1b'));
    assert!(
        host.mvmctl("vm status nope --color always")
            .stderr
            .contains('\x1b')
    );
    assert!(
        !host
            .mvmctl("vm status --json --color always")
            .stdout
            .contains('\x1b')
    );
}

#[test]
fn the_conversation_goes_to_stderr() {
    let host = Host::with("web", well);
    let ran = host.mvmctl("vm ping web --json -v").exits(0);
    assert_eq!(ran.json()["vm"], "web");
    let lines: Vec<_> = ran.stderr.lines().collect();
    assert_eq!(lines.len(), 5, "{lines:#?}");
    let dialled = format!("web  dialling unix:{}", host.socket("web").display());
    for (line, end) in lines.iter().zip([
        dialled.as_str(),
        "web  > CONNECT 52",
        "web  < OK 1073741824",
        "web  > {\"type\":\"ping\",\"id\":1}",
        "web  < {\"id\":1,\"type\":\"pong\"}",
    ]) {
        assert!(line.ends_with(end), "{line:?} does not end with {end:?}");
        assert!(line.contains(" ms  "), "{line:?}");
    }
}
