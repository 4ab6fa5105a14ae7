//! Commands in a guest: what goes there, what comes back, and how it ends.

use crate::host::{Host, Ran};
use mvm_fake_agent::{Peer, dev, well};
use mvm_protocol::Frame;
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};

/// A guest that serves `exec` so.
fn guest(serve: impl Fn(&mut Peer, &Value) + Send + Sync + 'static) -> Host {
    Host::with("web", dev(serve))
}

/// A guest in which every command ends with this.
fn ending(end: Value) -> Host {
    guest(move |peer, request| {
        peer.exec_started(request);
        peer.reply(request, end.clone());
    })
}

/// A guest that tells the test what it is sent, and serves it so.
fn told<T: Send + 'static>(
    serve: impl Fn(&mut Peer, &Value, &dyn Fn(T)) + Send + Sync + 'static,
) -> (Host, Receiver<T>) {
    let (tell, heard) = channel();
    let tell = std::sync::Mutex::new(tell);
    let host = guest(move |peer, request| {
        let tell = tell.lock().unwrap().clone();
        serve(peer, request, &|what| tell.send(what).unwrap());
    });
    (host, heard)
}

fn exited(exit_code: Option<i32>, signal: Option<&str>, timed_out: bool) -> Value {
    json!({
        "type": "exec-exited", "exit_code": exit_code, "signal": signal, "timed_out": timed_out,
        "truncated": false,
    })
}

fn begin(host: &Host, arguments: &str) -> Child {
    let mut command = host.command(arguments);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, signal).unwrap();
}

/// Waits until the command has printed this, and so runs.
fn printed(child: &mut Child, text: &str) {
    let mut read = vec![0; text.len()];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut read)
        .unwrap();
    assert_eq!(read, text.as_bytes());
}

#[test]
fn the_commands_exit_code_is_ours() {
    for code in [0, 1, 3, 125, 255] {
        let host = ending(exited(Some(code), None, false));
        host.mvmctl("vm exec web -- true").exits(code).silently();
    }
    for code in [256, 512, 65_536, -1, -256, i32::MIN, i32::MAX] {
        let host = ending(exited(Some(code), None, false));
        host.mvmctl("vm exec web -- true").exits(255);
    }
    let host = ending(exited(None, Some("SEGV"), false));
    host.mvmctl("vm exec web -- true").exits(139).silently();
    let host = ending(exited(None, Some("34"), false));
    host.mvmctl("vm exec web -- true").exits(162);
    let host = ending(exited(None, Some("TERM"), true));
    host.mvmctl("vm exec --timeout 2s web -- true")
        .exits(124)
        .says("not done after 2s");
}

#[test]
fn what_keeps_a_command_from_being_run_has_codes_of_its_own() {
    let refusing =
        |code: &'static str| guest(move |peer, request| peer.refuse(request, code, "for a reason"));
    let run = |host: &Host, code: i32| host.mvmctl("vm exec web -- nonsense").exits(code);
    run(&refusing("not-found"), 127)
        .says("for a reason")
        .says("sh -c");
    run(&refusing("not-allowed"), 126)
        .says("for a reason")
        .says("-u");
    run(&refusing("failed"), 125).says("for a reason");
    run(&refusing("busy"), 125).says("try again later");
    run(&Host::new(), 125).says("no VM has that name");
    run(&Host::with("web", crate::host::nobody), 125).says("nobody listens");
    let odd = ending(exited(None, Some("BOO"), false));
    run(&odd, 125).says("does not say how the command ended");
    let host = Host::with("web", well);
    for arguments in [
        "vm exec web",
        "vm exec web -- ",
        "vm exec -- ls",
        "vm exec -e X=1 web ls",
        "vm exec -e SURELY_NOT_SET web -- ls",
        "vm exec -w srv web -- ls",
        "vm exec --timeout 25h web -- ls",
        "vm exec -t --json web -- ls",
        "vm exec -it web -- ls",
        "vm exec -id web -- ls",
    ] {
        host.mvmctl(arguments).exits(2);
    }
    assert_eq!(host.accepted("web"), 0);
}

#[test]
fn a_prod_build_is_told_from_a_program_that_may_not_be_run() {
    let refusing = |profile: &'static str, capability: &'static str, code: &'static str| {
        Host::with("web", move |peer| {
            peer.shake_hands();
            while let Some(request) = peer.request() {
                if request["type"] == "hello" {
                    peer.reply(
                        &request,
                        json!({
                            "type": "hello", "protocol": 1, "agent_version": "0.0.9",
                            "profile": profile, "capabilities": [capability], "boot_id": "",
                            "generation": 0,
                        }),
                    );
                } else {
                    peer.refuse(&request, code, "no");
                }
            }
        })
    };
    let run = |host: Host, code| host.mvmctl("vm exec web -- ls").exits(code);
    run(refusing("prod", "ping", "not-allowed"), 125)
        .says("the guest has the prod build of the agent")
        .says("mvmctl image build --dev");
    // A port that it exposes it would forward to.
    let forward = refusing("prod", "ping", "not-allowed").mvmctl("vm forward web 0:80");
    forward
        .exits(1)
        .says("its agent.json exposes, and that is none")
        .says("\"expose\": [PORT]");
    run(refusing("dev", "ping", "not-allowed"), 125)
        .says("switched off")
        .says("\"exec\": true");
    run(refusing("prod", "ping", "unknown-request"), 125)
        .says("version 0.0.9, does not know `exec`")
        .says("update the agent");
    run(refusing("dev", "exec", "not-allowed"), 126);
}

#[test]
fn what_is_asked_for_is_what_was_typed() {
    let (host, heard) = told(|peer, request, tell| {
        if request["type"] != "exec" {
            // The end of standard input, after the command's own.
            return;
        }
        tell(request.clone());
        peer.exec_started(request);
        peer.exec_exited(request, 0);
    });
    host.mvmctl("vm exec web -- ls -l --json").exits(0);
    let plain = json!({"type": "exec", "id": 1, "argv": ["ls", "-l", "--json"], "stdin": false});
    assert_eq!(heard.recv().unwrap(), plain);
    let mut command = host
        .command("vm exec -i -e A=1 -e B=x=y -e HERE -w /srv -u web --timeout 1.5s web -- sh -c");
    command.arg("echo \"$A\"").env("HERE", "local");
    Ran::from(command.output().unwrap()).exits(0);
    let all = json!({
        "type": "exec", "id": 1, "argv": ["sh", "-c", "echo \"$A\""], "stdin": true,
        "env": {"A": "1", "B": "x=y", "HERE": "local"}, "cwd": "/srv", "user": "web",
        "timeout_secs": 1.5,
    });
    assert_eq!(heard.recv().unwrap(), all);
    // A terminal in the guest alone: nothing here is one.
    let mut command = host.command("vm exec -t web -- top");
    command.env("TERM", "vt100");
    Ran::from(command.output().unwrap()).exits(0);
    let terminal = heard.recv().unwrap();
    assert_eq!(terminal["tty"], json!({"cols": 80, "rows": 24}));
    assert_eq!(terminal["env"]["TERM"], "vt100");
}

#[test]
fn output_comes_byte_for_byte() {
    let host = guest(|peer, request| {
        peer.exec_started(request);
        peer.data(1, b"out\xff\x00\x1b[2J");
        peer.data(2, b"err\xfe");
        peer.data(1, b"");
        peer.data(1, &vec![b'x'; 262_143]);
        peer.exec_exited(request, 0);
    });
    let output = host.command("vm exec web -- x").output().unwrap();
    let mut expected = b"out\xff\x00\x1b[2J".to_vec();
    expected.extend(vec![b'x'; 262_143]);
    assert!(output.stdout == expected);
    assert_eq!(output.stderr, b"err\xfe");
}

#[test]
fn the_outcome_as_data() {
    let host = guest(|peer, request| {
        peer.exec_started(request);
        peer.data(1, b"all is \xffwell\n");
        peer.data(2, b"not all\n");
        peer.exec_exited(request, 3);
    });
    let ran = host.mvmctl("vm exec --json web -- x").exits(3).silently();
    let mut outcome = ran.json();
    assert!(outcome["duration_ms"].take().is_u64());
    assert_eq!(
        outcome,
        json!({
            "vm": "web", "exit_code": 3, "signal": null, "timed_out": false, "truncated": false,
            "duration_ms": null, "stdout": "all is \u{fffd}well\n", "stderr": "not all\n",
        })
    );
    let yaml = host.mvmctl("vm exec -o yaml web -- x").exits(3).stdout;
    assert!(yaml.contains("exit_code: 3\n"), "{yaml}");
}

#[test]
fn of_long_output_the_end_is_data() {
    let host = guest(|peer, request| {
        peer.exec_started(request);
        for _ in 0..100 {
            peer.data(1, &vec![b'a'; 100_000]);
        }
        peer.data(1, b"the end");
        peer.exec_exited(request, 0);
    });
    let outcome = host.mvmctl("vm exec --json web -- x").exits(0).json();
    let stdout = outcome["stdout"].as_str().unwrap();
    assert_eq!(stdout.len(), 1024 * 1024);
    assert!(stdout.ends_with("aathe end"));
    assert_eq!(outcome["truncated"], true);
}

#[test]
fn a_failure_is_data_too() {
    let host = guest(|peer, request| peer.refuse(request, "not-found", "no such program"));
    let ran = host.mvmctl("vm exec --json web -- x").exits(127);
    assert_eq!(ran.json()["error"]["code"], "not-found");
}

/// Gives back what it is sent, as `cat` does.
fn cat(peer: &mut Peer, request: &Value) {
    peer.exec_started(request);
    while let Some(frame) = peer.frame() {
        match frame {
            Frame::Data { channel: 0, bytes } => {
                if !peer.data(1, &bytes) {
                    return;
                }
            }
            Frame::Json(body) => {
                let control: Value = serde_json::from_slice(&body).unwrap();
                assert_eq!(control, json!({"type": "stdin-close"}));
                return peer.exec_exited(request, 0);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn input_comes_out_again() {
    let host = guest(cat);
    let input: Vec<u8> = (0..750_000_u32)
        .flat_map(|n| (n * 7).to_le_bytes())
        .collect();
    let mut child = begin(&host, "vm exec -i web -- cat");
    let mut stdin = child.stdin.take().unwrap();
    let writing = std::thread::spawn({
        let input = input.clone();
        move || stdin.write_all(&input).unwrap()
    });
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap();
    assert!(
        output.stdout == input && output.status.success(),
        "{output:.0?}"
    );
    // Without -i it is not even opened.
    let (host, heard) = told(|peer, request, tell| {
        tell(request["stdin"].clone());
        peer.exec_started(request);
        peer.exec_exited(request, 0);
    });
    let mut child = begin(&host, "vm exec web -- cat");
    assert!(child.wait().unwrap().success());
    assert_eq!(heard.recv().unwrap(), false);
}

#[test]
fn a_command_that_ends_does_not_wait_for_its_input() {
    let host = guest(|peer, request| {
        peer.exec_started(request);
        peer.exec_exited(request, 4);
    });
    let mut child = begin(&host, "vm exec -i web -- true");
    let _stdin = child.stdin.take().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(4));
}

#[test]
fn a_closed_pipe_ends_it_as_it_would_the_command() {
    let (host, heard) = told(|peer, request, tell| {
        peer.exec_started(request);
        while peer.data(1, b"y\n") {}
        tell(());
    });
    let mut child = begin(&host, "vm exec web -- yes");
    printed(&mut child, "y\ny\n");
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), output.stderr),
        (Some(141), Vec::new())
    );
    // The connection was closed, which ends the command.
    heard.recv().unwrap();
}

#[test]
fn a_signal_is_the_commands() {
    for (sent, name, code) in [
        (rustix::process::Signal::INT, "INT", 130),
        (rustix::process::Signal::TERM, "TERM", 143),
        (rustix::process::Signal::HUP, "HUP", 129),
    ] {
        let host = guest(move |peer, request| {
            peer.exec_started(request);
            peer.data(1, b"up");
            assert_eq!(
                peer.request().unwrap(),
                json!({"type": "signal", "signal": name})
            );
            peer.reply(request, exited(None, Some(name), false));
        });
        let mut child = begin(&host, "vm exec web -- sleep 9");
        printed(&mut child, "up");
        signal(&child, sent);
        let output = child.wait_with_output().unwrap();
        assert_eq!(
            (output.status.code(), output.stderr),
            (Some(code), Vec::new())
        );
    }
}

#[test]
fn the_second_interrupt_is_ours() {
    let (host, heard) = told(|peer, request, tell| {
        peer.exec_started(request);
        peer.data(1, b"up");
        // Such as a program that handles it.
        assert_eq!(peer.request().unwrap()["signal"], "INT");
        peer.data(1, b"got it");
        peer.until_closed();
        tell(());
    });
    let mut child = begin(&host, "vm exec web -- stubborn");
    printed(&mut child, "up");
    signal(&child, rustix::process::Signal::INT);
    printed(&mut child, "got it");
    signal(&child, rustix::process::Signal::INT);
    let ran = Ran::from(child.wait_with_output().unwrap());
    ran.exits(130).says("ended by SIGINT");
    heard.recv().unwrap();
}

#[test]
fn a_signal_that_cannot_be_sent_ends_it() {
    let host = guest(|peer, request| {
        peer.exec_started(request);
        // The first piece, and a byte of the second: larger than what a socket holds, it is under
        // way for ever, and nothing can be sent before its end.
        peer.frame();
        peer.read_raw(1);
        peer.data(1, b"up");
        peer.stall();
    });
    let mut command = host.command("vm exec -i web -- sleep 9");
    command
        .stdin(std::fs::File::open("/dev/zero").unwrap())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    printed(&mut child, "up");
    signal(&child, rustix::process::Signal::INT);
    let ran = Ran::from(child.wait_with_output().unwrap());
    ran.exits(130).says("ended by SIGINT");
}

#[test]
fn an_agent_that_is_gone_is_no_exit_code() {
    let host = guest(|peer, request| {
        peer.exec_started(request);
        peer.data(1, b"half");
        peer.hang_up();
    });
    let ran = host.mvmctl("vm exec web -- x").exits(125);
    assert_eq!(ran.stdout, "half");
    ran.says("closed the connection while a command ran")
        .says("hint: ");
}

#[test]
fn output_nobody_can_write_is_told() {
    let host = guest(|peer, request| {
        peer.exec_started(request);
        peer.data(1, b"x");
        peer.until_closed();
    });
    let mut command = host.command("vm exec web -- x");
    command.stdout(std::fs::File::create("/dev/full").unwrap());
    Ran::from(command.output().unwrap())
        .exits(125)
        .says("No space left");
}

#[test]
fn nonsense_in_the_middle_is_no_output() {
    for (channel, bytes) in [(3_u8, b"x".as_slice()), (0, b"x"), (9, b"")] {
        let host = guest(move |peer, request| {
            peer.exec_started(request);
            peer.data(channel, bytes);
            peer.until_closed();
        });
        let ran = host.mvmctl("vm exec web -- x").exits(125);
        ran.says(&format!("bytes of channel {channel}"));
    }
}
