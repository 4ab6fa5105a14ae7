//! Commands in a guest with the agent's dev build.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use mvm_client::dev::{CommandOutput, Output};
use mvm_guest_tests::{Mvmctl, TestVm, eventually};
use mvm_protocol::dev::exec::{Argv, Exec};
use serde_json::{Value, json};
use std::fs;
use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// Byte by byte as the protocol has it, without our own client.
#[test]
fn a_command_runs_over_connect_52() {
    let Some(vm) = TestVm::dev() else { return };
    let mut stream = vm.raw_connection();
    let body =
        br#"{"type":"exec","argv":["sh","-c","cat; echo done >&2; exit 3"],"stdin":true,"id":7}"#;
    let mut sent = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
    sent.extend(body);
    sent.extend(b"\x80\x00\x00\x06\x00hello");
    let close = br#"{"type":"stdin-close"}"#;
    sent.extend(u32::try_from(close.len()).unwrap().to_be_bytes());
    sent.extend(close);
    stream.write_all(&sent).unwrap();
    let mut frame = || {
        let mut header = [0; 4];
        stream.read_exact(&mut header).unwrap();
        let header = u32::from_be_bytes(header);
        let mut body = vec![0; (header & 0x7fff_ffff) as usize];
        stream.read_exact(&mut body).unwrap();
        (header >> 31 == 1, body)
    };
    let answer = |(raw, body): (bool, Vec<u8>)| {
        assert!(!raw, "{body:?}");
        serde_json::from_slice::<Value>(&body).unwrap()
    };
    let started = answer(frame());
    assert_eq!(
        (&started["type"], &started["id"]),
        (&"exec-started".into(), &7.into())
    );
    assert!(started["pid"].as_u64().unwrap() > 1);
    let mut output = [frame(), frame()];
    output.sort();
    assert_eq!(
        output,
        [
            (true, b"\x01hello".to_vec()),
            (true, b"\x02done\n".to_vec())
        ]
    );
    let exited = json!({
        "type": "exec-exited", "exit_code": 3, "signal": null, "timed_out": false,
        "truncated": false, "id": 7,
    });
    assert_eq!(answer(frame()), exited);
}

#[test]
fn every_end_of_a_command_is_told() {
    let Some(vm) = TestVm::dev() else { return };
    let (mvmctl, vm) = (Mvmctl::new(), vm.address());
    let run = |options: &[&str], command: &[&str]| {
        let arguments = [&["vm", "exec"], options, &[&vm, "--"], command].concat();
        mvmctl.run(&arguments)
    };
    let sh = |script| run(&[], &["sh", "-c", script]);
    let code = |run: mvm_guest_tests::Run| run.code.unwrap();
    assert_eq!(code(sh("exit 3")), 3);
    assert_eq!(code(sh("kill -SEGV $$")), 139);
    assert_eq!(code(sh("kill -KILL $$")), 137);
    assert_eq!(code(run(&[], &["no-such-program"])), 127);
    assert_eq!(code(run(&[], &["/etc/inittab"])), 126);
    assert_eq!(code(run(&["-u", "nobody-at-all"], &["true"])), 127);
    assert_eq!(code(run(&["-w", "/no/such/folder"], &["true"])), 127);
    assert_eq!(code(run(&["--timeout", "300ms"], &["sleep", "100"])), 124);
    let both = sh("echo out; echo err >&2");
    assert_eq!(
        (both.stdout.as_str(), both.stderr.as_str()),
        ("out\n", "err\n")
    );
    // The kernel has one value for both until it is a program.
    let hard_to_kill = "until grep -qx -- -997 /proc/$PPID/oom_score_adj; do :; done; \
                        cat /proc/self/oom_score_adj";
    let told = run(&["--timeout", "20s"], &["sh", "-c", hard_to_kill]);
    assert_eq!((told.code, told.stdout.as_str()), (Some(0), "0\n"));
    let set = run(
        &["-e", "A=it's \"$x\"", "-w", "/tmp"],
        &[
            "sh",
            "-c",
            "echo \"$A\"; pwd; test -n \"$PATH\" && echo path",
        ],
    );
    assert_eq!(set.stdout, "it's \"$x\"\n/tmp\npath\n");
    let outcome = run(&["--json"], &["sh", "-c", "echo hi; exit 5"]);
    let shown: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(
        (outcome.code, &shown["stdout"], &shown["exit_code"]),
        (Some(5), &"hi\n".into(), &5.into())
    );
    // Whoever holds the pipes.
    let background = sh("sleep 54321 & echo hi");
    assert_eq!(background.stdout, "hi\n");
    assert_eq!(
        sh("pidof sleep").stdout,
        "",
        "what it left running is killed"
    );
}

#[tokio::test]
async fn sixty_four_at_once_and_pings_are_answered() {
    let Some(vm) = TestVm::dev() else { return };
    let mut sessions = Vec::new();
    let asked = |number: usize| Exec {
        stdin: true,
        ..sh(&format!("read word; echo {number} $word"))
    };
    for number in 0..64 {
        let mut session = vm.session().await;
        // The first frame has to come soon after the connection.
        session.ping().await.unwrap();
        sessions.push((number, session));
    }
    let mut commands = Vec::new();
    for (number, session) in &mut sessions {
        let command = session.exec(asked(*number)).await.unwrap();
        commands.push((*number, command));
    }
    // All of them stand now.
    let mut other = vm.session().await;
    for _ in 0..20 {
        other.ping().await.unwrap();
    }
    let counted = printed(other.exec(sh("pidof sh | wc -w")).await.unwrap()).await;
    let counted: usize = counted.trim().parse().unwrap();
    assert!(counted >= 64, "{counted}");
    for (number, command) in commands {
        let (mut input, output) = command.split();
        input.write(b"word\n").await.unwrap();
        assert_eq!(printed_by(output).await, format!("{number} word\n"));
    }
    // Each is in step again.
    for (_, session) in &mut sessions {
        session.ping().await.unwrap();
    }
}

fn sh(script: &str) -> Exec {
    let words = ["sh", "-c", script].map(str::to_owned);
    Exec::new(Argv::new(words.to_vec()).unwrap())
}

async fn printed(command: mvm_client::dev::Command<'_>) -> String {
    let (_input, output) = command.split();
    printed_by(output).await
}

/// What a command prints until its end, which has to be a good one.
async fn printed_by(mut output: CommandOutput<'_>) -> String {
    let mut printed = Vec::new();
    loop {
        match output.next().await.unwrap() {
            Output::Stdout(bytes) => printed.extend(bytes),
            Output::Exited(end) => {
                assert_eq!(end.exit_code, Some(0), "{end:?}");
                return String::from_utf8(printed).unwrap();
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_folder_goes_through_tar_on_both_sides() {
    let Some(vm) = TestVm::dev() else { return };
    let (mvmctl, address) = (Mvmctl::new(), vm.address());
    let folder = TempDir::new().unwrap();
    let content: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
    fs::create_dir(folder.path().join("sub")).unwrap();
    fs::write(folder.path().join("sub/numbers"), &content).unwrap();
    let mut tar = Command::new("tar")
        .arg("c")
        .arg("-C")
        .args([folder.path()])
        .arg(".")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut untar = mvmctl.command(&[
        "vm",
        "exec",
        "-i",
        &address,
        "--",
        "sh",
        "-c",
        "mkdir /srv && tar x -C /srv",
    ]);
    let status = untar.stdin(tar.stdout.take().unwrap()).status().unwrap();
    assert!(status.success() && tar.wait().unwrap().success());
    let sum = |run: mvm_guest_tests::Run| run.stdout.split(' ').next().unwrap().to_owned();
    let there = mvmctl.ok(&[
        "vm",
        "exec",
        &address,
        "--",
        "sha256sum",
        "/srv/sub/numbers",
    ]);
    let here = Command::new("sha256sum")
        .arg(folder.path().join("sub/numbers"))
        .output()
        .unwrap();
    assert_eq!(
        sum(there),
        String::from_utf8(here.stdout)
            .unwrap()
            .split(' ')
            .next()
            .unwrap()
    );
    // And out again, byte for byte.
    let out = mvmctl.command(&["vm", "exec", &address, "--", "cat", "/srv/sub/numbers"]);
    let out = { out }.output().unwrap();
    assert!(out.stdout == content);
}

#[tokio::test]
async fn a_client_that_is_killed_leaves_no_process() {
    let Some(vm) = TestVm::dev() else { return };
    let (mvmctl, address) = (Mvmctl::new(), vm.address());
    let script = "setsid sleep 54321 & (sleep 54322 &) ; echo up; sleep 54323";
    let mut child = mvmctl.start(&["vm", "exec", &address, "--", "sh", "-c", script]);
    let mut up = [0; 3];
    child.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
    let sleepers = || {
        let ps = ["vm", "exec", &address, "--", "ps", "-o", "args"];
        let ps = mvmctl.ok(&ps).stdout;
        ps.lines()
            .filter(|line| line.starts_with("sleep 5432"))
            .count()
    };
    eventually("all three run", async || (sleepers() == 3).then_some(())).await;
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("none of them is left", async || {
        (sleepers() == 0).then_some(())
    })
    .await;
}

#[test]
fn a_prod_build_says_how_to_get_another() {
    let Some(vm) = TestVm::new() else { return };
    let mvmctl = Mvmctl::new();
    let ran = mvmctl.run(&["vm", "exec", &vm.address(), "--", "true"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(125), ""));
    assert!(ran.stderr.contains("prod build of the agent"), "{ran:?}");
    assert!(ran.stderr.contains("mvmctl image build --dev"), "{ran:?}");
    let copied = mvmctl.run(&["vm", "cp", &format!("{}:/etc/inittab", vm.address()), "-"]);
    assert_eq!(copied.code, Some(1), "{copied:?}");
    assert!(
        copied.stderr.contains("prod build of the agent"),
        "{copied:?}"
    );
}

#[test]
fn interrupts_reach_the_command() {
    let Some(vm) = TestVm::dev() else { return };
    let (mvmctl, address) = (Mvmctl::new(), vm.address());
    let script = "trap 'echo got it; exit 9' INT; echo up; while :; do sleep 0.1; done";
    let mut child = mvmctl.start(&["vm", "exec", &address, "--", "sh", "-c", script]);
    let mut up = [0; 3];
    child.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
    let sent = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(sent.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), output.stdout.as_slice()),
        (Some(9), b"got it\n".as_slice())
    );
}
