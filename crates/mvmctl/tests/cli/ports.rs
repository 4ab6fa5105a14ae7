//! Bytes to and from ports of a guest.

use crate::host::{Host, Ran, nobody};
use mvm_fake_agent::{Peer, dev, well};
use mvm_protocol::Frame;
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Child, ChildStderr, Stdio};

fn begin(host: &Host, arguments: &str) -> Child {
    let mut command = host.command(arguments);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn interrupt(child: &Child) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
}

/// A program in a guest that gives back what it is sent, and greets before that.
fn echo(peer: &mut Peer) {
    peer.expect_connect_to(22);
    // The first bytes may come along with OK.
    peer.send(b"OK 1073741824\nSSH-2.0\r\n");
    loop {
        let bytes = peer.read();
        if bytes.is_empty() || bytes == b"bye" {
            return;
        }
        peer.send(&bytes);
    }
}

#[test]
fn any_port_is_joined_to_standard_input_and_output() {
    let host = Host::with("web", echo);
    let mut child = begin(&host, "vm connect --stdio web 22");
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut expect = |text: &[u8]| {
        let mut read = vec![0; text.len()];
        stdout.read_exact(&mut read).unwrap();
        assert_eq!(read, text);
    };
    expect(b"SSH-2.0\r\n");
    stdin.write_all(b"\0\xffping").unwrap();
    expect(b"\0\xffping");
    stdin.write_all(b"bye").unwrap();
    // The guest closes, and that is the end; standard input is still open.
    let ran = Ran::from(child.wait_with_output().unwrap());
    ran.exits(0).silently();
    drop(stdin);
}

#[test]
fn a_guest_still_answers_after_the_end_of_input() {
    let host = Host::with("web", |peer| {
        peer.expect_connect_to(7);
        peer.send(b"OK 7\n");
        assert_eq!(peer.read(), b"question");
        peer.send(b"answer");
    });
    let mut child = begin(&host, "vm connect --stdio web 7");
    child.stdin.take().unwrap().write_all(b"question").unwrap();
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!(ran.exits(0).stdout, "answer");
}

#[test]
fn nobody_who_reads_ends_it() {
    // ssh's way to end a ProxyCommand: the guest would keep the connection open for ever.
    let host = Host::with("web", |peer| {
        peer.expect_connect_to(22);
        peer.send(b"OK 22\nhello");
        peer.until_closed();
    });
    let mut child = begin(&host, "vm connect --stdio web 22");
    let mut hello = [0; 5];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut hello)
        .unwrap();
    drop(child.stdin.take());
    drop(child.stdout.take());
    Ran::from(child.wait_with_output().unwrap())
        .exits(0)
        .silently();
}

#[test]
fn a_port_that_nobody_listens_on() {
    let host = Host::with("web", |peer| peer.expect_connect_to(22));
    host.mvmctl("vm connect --stdio web 22")
        .exits(3)
        .says("nobody listens on port 22 in the guest")
        .says("vsock ports");
    for arguments in [
        "vm connect web 22",
        "vm connect --stdio web",
        "vm connect --stdio web 0",
    ] {
        host.mvmctl(arguments).exits(2);
    }
}

/// A guest one of whose ports gives back what it is sent, and tells how much that was.
fn forwarding(peer: &mut Peer, asked: &Value) {
    assert_eq!(asked["type"], "forward");
    if asked["port"] != 80 {
        return peer.refuse(asked, "not-found", "nobody listens on port 81");
    }
    peer.reply(
        asked,
        json!({"type": "forward-started", "address": "127.0.0.1:80"}),
    );
    let mut count = 0;
    while let Some(frame) = peer.frame() {
        match frame {
            Frame::Data { channel: 0, bytes } => {
                count += bytes.len();
                peer.data(1, &bytes);
            }
            Frame::Json(body) => {
                assert_eq!(body, br#"{"type":"forward-end"}"#);
                peer.data(1, format!(" {count} bytes").as_bytes());
                peer.reply(asked, json!({"type": "forward-end"}));
                return peer.reply(
                    asked,
                    json!({"type": "forward-done", "sent": count, "received": count}),
                );
            }
            other => panic!("{other:?}"),
        }
    }
}

/// One that listens, and where.
fn listening(host: &Host, arguments: &str) -> (Child, SocketAddr, BufReader<ChildStderr>) {
    let mut child = begin(host, arguments);
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.as_mut().unwrap());
    stdout.read_line(&mut line).unwrap();
    let shown: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(shown["vm"], "web");
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    line.clear();
    stderr.read_line(&mut line).unwrap();
    let address = shown["listening"].as_str().unwrap();
    assert!(line.starts_with(&format!("{address} is port ")), "{line}");
    (child, address.parse().unwrap(), stderr)
}

#[test]
fn a_port_is_forwarded_to_any_number_at_once() {
    let host = Host::with("web", dev(forwarding));
    let (mut child, address, _stderr) = listening(&host, "vm forward --json web 0:80");
    assert!(address.ip().is_loopback());
    let mut open: Vec<_> = (0..20)
        .map(|_| TcpStream::connect(address).unwrap())
        .collect();
    let content = vec![b'x'; 1_000_000];
    for stream in &mut open {
        stream.write_all(b"begun ").unwrap();
    }
    for stream in open {
        let content = content.clone();
        let mut writing = stream.try_clone().unwrap();
        let writer = std::thread::spawn(move || {
            writing.write_all(&content).unwrap();
            // The answer comes nevertheless.
            writing.shutdown(Shutdown::Write).unwrap();
        });
        let mut got = Vec::new();
        (&stream).read_to_end(&mut got).unwrap();
        writer.join().unwrap();
        assert!(got.starts_with(b"begun xx") && got.ends_with(b"xx 1000006 bytes"));
        assert_eq!(got.len(), 1_000_006 + " 1000006 bytes".len());
    }
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn what_the_guest_refuses_ends_one_connection_alone() {
    let host = Host::with("web", dev(forwarding));
    let (mut child, address, mut stderr) = listening(&host, "vm forward --json web 0:81");
    for _ in 0..2 {
        let mut stream = TcpStream::connect(address).unwrap();
        let mut got = Vec::new();
        // Either is an end.
        let _ = stream.read_to_end(&mut got);
        assert_eq!(got, b"");
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        assert!(line.contains("nobody listens on port 81"), "{line}");
        line.clear();
        stderr.read_line(&mut line).unwrap();
        assert!(line.contains("netstat"), "{line}");
    }
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn what_cannot_be_forwarded_is_told_first() {
    let host = Host::with("web", well)
        .and("dev", dev(forwarding))
        .and("gone", nobody);
    host.mvmctl("vm forward web 80")
        .exits(1)
        .says("prod build")
        .says("image build --dev");
    host.mvmctl("vm forward gone 80").exits(3);
    host.mvmctl("vm forward none 80").exits(3);
    host.mvmctl("vm forward dev 80:0").exits(2);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    host.mvmctl(&format!("vm forward dev {port}:80"))
        .exits(1)
        .says("cannot listen on 127.0.0.1:")
        .says("0:PORT");
}
