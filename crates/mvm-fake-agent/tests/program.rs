//! `mvm-fake-agent` as a program.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Command, Output, Stdio};

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mvm-fake-agent"));
    command
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[test]
fn the_list_has_each_name_once() {
    let all: Value = serde_json::from_slice(&run(&["list", "--json"]).stdout).unwrap();
    let of = |key: &str| all[key].as_array().unwrap().clone();
    let names = of("clients").into_iter().chain(of("agents"));
    let names: Vec<String> = names
        .map(|one| one["name"].as_str().unwrap().into())
        .collect();
    let distinct: BTreeSet<&String> = names.iter().collect();
    assert_eq!(distinct.len(), names.len());
    assert!(names.len() > 60);
    let text = String::from_utf8(run(&["list"]).stdout).unwrap();
    assert!(names.iter().all(|name| text.contains(name)), "{text}");
}

#[test]
fn one_is_served_until_its_input_ends() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("a.sock");
    let mut serving = Command::new(env!("CARGO_BIN_EXE_mvm-fake-agent"))
        .args(["serve", "stranger", "--socket"])
        .arg(&socket)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(serving.stderr.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert!(line.contains("serving unix:"), "{line}");
    let mut stream = UnixStream::connect(&socket).unwrap();
    stream.write_all(b"CONNECT 52\n").unwrap();
    let mut banner = [0; 3];
    stream.read_exact(&mut banner).unwrap();
    assert_eq!(&banner, b"SSH");
    drop(stream);
    drop(serving.stdin.take());
    assert!(serving.wait().unwrap().success());
}

#[test]
fn a_client_that_does_nothing_right_fails() {
    let ran = run(&["check", "--json", "--", "echo", "ok"]);
    assert_eq!(ran.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&ran.stdout).unwrap();
    // `echo` says what it is asked as well: its first word counts.
    assert_eq!(report["verdict"], "fails");
    assert!(report["required"]["failed"].as_u64().unwrap() > 20);
    let ran = run(&["check", "--", "/no/such/client"]);
    assert!(
        String::from_utf8(ran.stdout)
            .unwrap()
            .contains("cannot run /no/such/client")
    );
}

#[test]
fn anything_else_is_told_how_it_is_used() {
    for wrong in [
        &[][..],
        &["serve", "no-such", "--socket", "/tmp/x"],
        &["check", "--"],
    ] {
        assert_eq!(run(wrong).status.code(), Some(2), "{wrong:?}");
    }
}
