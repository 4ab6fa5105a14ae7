//! Ports of a guest, joined to this host.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use mvm_guest_tests::{Mvmctl, TestVm, eventually};
use serde_json::Value;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
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

/// The kernel's own vsock, which a host has with vhost-vsock. This machine's is nobody's to touch:
/// the guest plays the host, and its own address is the VM.
#[tokio::test]
async fn a_vsock_address_of_the_kernels() {
    let Some(vm) = TestVm::dev() else { return };
    let mvmctl = Mvmctl::new();
    let folder = tempfile::tempdir().unwrap();
    with_its_libraries(mvmctl.program(), folder.path());
    let there = format!("{}:/tmp/host", vm.address());
    mvmctl.ok(&["vm", "cp", folder.path().to_str().unwrap(), &there]);
    // Run by a service of the guest's: what its agent starts has no vsock.
    let command = |words: &str| format!("./ld --library-path . ./mvmctl {words}");

    // That same service listens there, and takes one at a time. The connection ends when nobody reads it.
    let connect = command("vm connect --stdio vsock:3 60");
    let begun = format!(
        "cd /tmp/host; {{ printf '7\\necho hi' | {connect} | head -n 2; }} \
         >/tmp/answer 2>&1 </dev/null &"
    );
    vm.sh(&begun).await;
    eventually("an answer of the service", async || {
        (vm.sh("cat /tmp/answer").await == "0 3\nhi\n").then_some(())
    })
    .await;

    // The agent takes its host alone, and a port has to have somebody who listens.
    for (words, said) in [
        ("vm ping vsock:3", "closed the connection before the answer"),
        ("vm connect --stdio vsock:3 61", "nobody listens on port 61"),
    ] {
        let command = command(words);
        let script = format!("cd /tmp/host; {command} 2>&1; echo code $?");
        let told = vm.sh(&script).await;
        assert!(told.contains(said) && told.contains("code 3"), "{told}");
    }

    // And by the agent's own.
    let script = format!("cd /tmp/host; exec {}", command("vm ping vsock:3"));
    let refused = mvmctl.run(&["vm", "exec", &vm.address(), "--", "sh", "-c", &script]);
    assert_ne!(refused.code, Some(0), "{refused:?}");
    assert!(
        refused.stderr.contains("Address family not supported"),
        "{refused:?}"
    );
}

/// Copies a program to where it is to be run by the dynamic linker `ld` beside it.
fn with_its_libraries(program: &Path, folder: &Path) {
    let run = |command: &mut Command| {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{command:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    run(Command::new("strip")
        .arg("-o")
        .args([&folder.join("mvmctl"), program]));
    // `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, and the linker without an arrow.
    for line in run(Command::new("ldd").arg(program)).lines() {
        let path = line.split_whitespace().find(|word| word.starts_with('/'));
        let Some(path) = path.map(Path::new) else {
            continue;
        };
        let name = path.file_name().unwrap().to_str().unwrap();
        let name = if name.starts_with("ld-") { "ld" } else { name };
        std::fs::copy(path, folder.join(name)).unwrap();
    }
}
