//! Whatever ends `mvmctl`: a handshake that it began is finished.
//!
//! The stand-in answers OK once `mvmctl` has ended, which would be a minute later if the test took a
//! minute: that nobody waits for it, and that nobody gives it up, are both without a clock.

use crate::host::{Host, Ran};
use mvm_fake_agent::{Peer, dev};
use rustix::process::Signal;
use std::io::{BufRead as _, BufReader};
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

fn late(peer: &mut Peer) {
    peer.shake_hands_late();
}

fn begin(host: &Host, arguments: &str) -> Child {
    let mut command = host.command(arguments);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn send(child: &Child, signal: Signal) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, signal).unwrap();
}

/// Its output has ended, which it would not have if the helper had the pipes.
fn ended_by(child: Child, signal: Signal) -> Output {
    let output = child.wait_with_output().unwrap();
    let status = output.status;
    let ended =
        status.signal() == Some(signal.as_raw()) || status.code() == Some(128 + signal.as_raw());
    assert!(ended, "{output:?}");
    output
}

/// None of so many handshakes was given up.
fn all_finished(host: &Host, count: usize) {
    let agent = host.agent("web");
    agent.release();
    assert_eq!(agent.given_up_of(count), 0);
}

#[test]
fn a_signal_gives_no_handshake_up() {
    for arguments in [
        "vm ping web",
        "vm status",
        "vm events web",
        "vm wait web --for ready",
        "vm exec web -- true",
        "vm cp web:/etc/passwd ./never-written",
        "vm connect --stdio web 22",
        "vm forward web 0:80",
        "vm sleep web",
        // It has looked after the VM itself before.
        "vm wake web",
    ] {
        for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
            let host = Host::with("web", late);
            let child = begin(&host, arguments);
            host.agent("web").until_begun(1);
            send(&child, signal);
            ended_by(child, signal);
            all_finished(&host, 1);
        }
    }
}

#[test]
fn a_deadline_gives_no_handshake_up() {
    let host = Host::with("web", late);
    host.mvmctl("vm ping web --timeout 50ms").exits(3);
    host.mvmctl("vm exec web -- true").exits(125);
    all_finished(&host, 2);
}

#[test]
fn a_reader_that_goes_gives_no_handshake_up() {
    let host = Host::with("web", late);
    let mut child = begin(&host, "vm events web --timeout 1m");
    host.agent("web").until_begun(1);
    drop(child.stdout.take());
    Ran::from(child.wait_with_output().unwrap()).exits(0);
    all_finished(&host, 1);
}

#[test]
fn a_failure_beside_it_gives_no_handshake_up() {
    let host = Host::with("web", late).and("gone", crate::host::nobody);
    let ran = host.mvmctl("vm status web gone none --timeout 300ms --json");
    let codes = ran.exits(4).json();
    assert_eq!(codes[2]["error"]["code"], "timed-out");
    all_finished(&host, 1);
}

#[test]
fn fifty_connections_of_a_forward_are_all_finished() {
    let host = Host::with("web", |peer: &mut Peer| match peer.number {
        // Whether it can be forwarded at all is asked first.
        0 => dev(|_, _| ())(peer),
        _ => late(peer),
    });
    let mut child = begin(&host, "vm forward --json web 0:80");
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    let shown: serde_json::Value = serde_json::from_str(&line).unwrap();
    let address = shown["listening"].as_str().unwrap();
    let open: Vec<_> = (0..50)
        .map(|_| TcpStream::connect(address).unwrap())
        .collect();
    host.agent("web").until_begun(50);
    send(&child, Signal::INT);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    all_finished(&host, 50);
    drop(open);
}

/// The helpers that `mvmctl` left behind for this host.
fn helpers(host: &Host) -> Vec<u32> {
    let home = format!("MVM_HOME={}", host.path().display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap() {
        let entry = entry.unwrap();
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let read = |name: &str| std::fs::read(entry.path().join(name)).unwrap_or_default();
        let is_helper = read("cmdline") == b"mvmctl\0finish-handshakes\0";
        if is_helper
            && read("environ")
                .split(|byte| *byte == 0)
                .any(|it| it == home.as_bytes())
        {
            found.push(pid);
        }
    }
    found
}

#[test]
fn the_helper_holds_nothing_of_its_parents_and_ends_when_it_is_done() {
    let host = Host::with("web", late);
    // A pipe that a shell left open, and a lock of a script's: neither is the helper's.
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let mut command = host.command("vm ping web --timeout 50ms");
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    drop(writer);
    child.wait().unwrap();
    let mut byte = [0];
    assert_eq!(rustix::io::read(&reader, &mut byte), Ok(0));

    let helpers = helpers(&host);
    let [helper] = helpers.as_slice() else {
        panic!("{helpers:?}");
    };
    let stat = std::fs::read_to_string(format!("/proc/{helper}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let fields: Vec<_> = fields.split(' ').collect();
    assert_eq!(fields[3], helper.to_string(), "a session of its own");
    assert_eq!(fields[4], "0", "no terminal");
    // As it starts it has its libraries open, one after the other.
    let begun = Instant::now() + Duration::from_secs(30);
    loop {
        let descriptors = std::fs::read_dir(format!("/proc/{helper}/fd")).unwrap();
        let targets = descriptors.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
        let others: Vec<_> = targets
            .map(|target| target.to_str().unwrap().to_owned())
            .filter(|target| !target.starts_with("socket:") && target != "/dev/null")
            .collect();
        if others.is_empty() {
            break;
        }
        assert!(Instant::now() < begun, "{others:?}");
        std::thread::yield_now();
    }

    all_finished(&host, 1);
    let gone = Instant::now() + Duration::from_secs(30);
    while std::fs::exists(format!("/proc/{helper}/exe")).unwrap() {
        assert!(Instant::now() < gone, "the helper stays");
        std::thread::yield_now();
    }
}

/// A command that handles signals and stands still: nobody reads what it has to say.
fn stuck() -> (Host, Child, rustix::fd::OwnedFd) {
    let host = Host::with("web", dev(|_, _| ()));
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let flags = rustix::fs::fcntl_getfl(&writer).unwrap();
    rustix::fs::fcntl_setfl(&writer, flags | rustix::fs::OFlags::NONBLOCK).unwrap();
    while rustix::io::write(&writer, &[b'x'; 4096]).is_ok() {}
    while rustix::io::write(&writer, b"x").is_ok() {}
    rustix::fs::fcntl_setfl(&writer, flags).unwrap();
    let mut command = host.command("vm forward --json web 0:80");
    command.stdout(Stdio::piped()).stderr(writer);
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.as_mut().unwrap());
    stdout.read_line(&mut line).unwrap();
    (host, child, reader)
}

#[test]
fn the_second_signal_ends_what_stands_still_and_the_third_at_once() {
    let (_host, mut child, _reader) = stuck();
    send(&child, Signal::INT);
    assert!(child.try_wait().unwrap().is_none());
    let begun = Instant::now();
    // Of another kind: two of one kind are one to the kernel while the first is on its way.
    send(&child, Signal::TERM);
    assert!(child.wait().unwrap().signal().is_some());
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(2), "{took:?}");
    assert!(took < Duration::from_secs(10), "{took:?}");

    let (_host, mut child, _reader) = stuck();
    let begun = Instant::now();
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        send(&child, signal);
    }
    assert!(child.wait().unwrap().signal().is_some());
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[test]
fn a_signal_that_is_ignored_at_the_start_stays_ignored() {
    let host = Host::with("web", late);
    let mut command = std::process::Command::new("sh");
    command
        .arg("-c")
        .arg("trap '' HUP; exec \"$0\" vm ping web --timeout 1m")
        .arg(env!("CARGO_BIN_EXE_mvmctl"))
        .env("MVM_HOME", host.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    host.agent("web").until_begun(1);
    send(&child, Signal::HUP);
    send(&child, Signal::TERM);
    ended_by(child, Signal::TERM);
    all_finished(&host, 1);
}
