//! Ports of a guest, joined to this host.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use mvm_guest_tests::{Mvmctl, TestVm};
use serde_json::Value;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};

/// What a web server answers on that address.
fn page(address: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .write_all(b"GET /index.html HTTP/1.0\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_web_server_on_the_guests_loopback() {
    let Some(vm) = TestVm::dev() else { return };
    let mvmctl = Mvmctl::new();
    let mut child = mvmctl.start(&["vm", "forward", "--json", &vm.address(), "0:8080"]);
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    let shown: Value = serde_json::from_str(&line).unwrap();
    let address = shown["listening"].as_str().unwrap().to_owned();
    let pages: Vec<_> = (0..16)
        .map(|_| {
            let address = address.clone();
            std::thread::spawn(move || page(&address))
        })
        .collect();
    for page in pages {
        let page = page.join().unwrap();
        assert!(
            page.starts_with("HTTP/1.1 200 OK") && page.ends_with("It works\n"),
            "{page}"
        );
    }
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &pid])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// The agent's own port, spoken to by hand.
#[test]
fn a_vsock_port_on_standard_input_and_output() {
    // Any build of the agent: it has no part in it.
    let Some(vm) = TestVm::new() else { return };
    let mvmctl = Mvmctl::new();
    let mut command = mvmctl.command(&["vm", "connect", "--stdio", &vm.address(), "52"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let ping = br#"{"type":"ping","id":9}"#;
    let mut frame = u32::try_from(ping.len()).unwrap().to_be_bytes().to_vec();
    frame.extend(ping);
    child.stdin.as_mut().unwrap().write_all(&frame).unwrap();
    let stdout = child.stdout.as_mut().unwrap();
    let mut header = [0; 4];
    stdout.read_exact(&mut header).unwrap();
    let mut body = vec![0; u32::from_be_bytes(header) as usize];
    stdout.read_exact(&mut body).unwrap();
    let answer: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        (&answer["type"], &answer["id"]),
        (&"pong".into(), &9.into())
    );
    // Nobody who reads is the end of it.
    drop((child.stdin.take(), child.stdout.take()));
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let nobody = mvmctl.run(&["vm", "connect", "--stdio", &vm.address(), "53"]);
    assert_eq!(nobody.code, Some(3));
    assert!(
        nobody.stderr.contains("nobody listens on port 53"),
        "{nobody:?}"
    );
}
