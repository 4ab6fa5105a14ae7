//! A guest that answers no more, or whose VM is frozen or gone: what would wait for it for ever ends.

use crate::host::{Host, Ran};
use mvm_fake_agent::{Peer, answer_to, dev};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};

/// A guest that begins what it is asked for, says so to the test, and then says nothing more.
fn standing_still() -> (Host, Receiver<Value>) {
    let (tell, begun) = channel();
    let tell = Mutex::new(tell);
    let host = Host::with("web", move |peer: &mut Peer| {
        peer.shake_hands();
        while let Some(request) = peer.request() {
            match request["type"].as_str().unwrap() {
                "hello" => {
                    let mut hello = answer_to(&request);
                    hello["capabilities"] = json!(["forward"]);
                    peer.reply(&request, hello);
                }
                "watch" => {
                    peer.reply(&request, answer_to(&request));
                    // No heartbeat ever.
                    peer.stall();
                }
                _ => {
                    peer.exec_started(&request);
                    peer.data(1, b"begun\n");
                    tell.lock().unwrap().send(request).unwrap();
                    peer.stall();
                }
            }
        }
    });
    (host, begun)
}

fn begin(host: &Host, arguments: &str) -> Child {
    let mut command = host.command(arguments);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().unwrap()
}

#[test]
fn a_limit_that_the_guest_does_not_keep_is_kept_here() {
    let (host, _begun) = standing_still();
    let ran = host.mvmctl("vm exec --timeout 1s web -- sleep 60");
    assert_eq!(ran.stdout, "begun\n");
    ran.exits(125)
        .says("the guest stands still: it was to end the command after 1s")
        .says("  hint: ");
    let ran = host.mvmctl("vm exec --json --timeout 1s web -- sleep 60");
    assert_eq!(ran.exits(125).json()["error"]["code"], "timed-out");
}

#[test]
fn a_slow_reader_of_the_output_is_not_the_guests_fault() {
    // Slower than a guest may be late.
    let host = Host::with(
        "web",
        dev(|peer, request| {
            peer.exec_started(request);
            // The limit is over by the time that output comes.
            std::thread::sleep(std::time::Duration::from_millis(500));
            for _ in 0..40 {
                peer.data(1, &vec![b'x'; 200_000]);
            }
            peer.reply(
                request,
                json!({
                    "type": "exec-exited", "exit_code": null, "signal": "TERM", "timed_out": true,
                    "truncated": false,
                }),
            );
        }),
    );
    let mut child = begin(&host, "vm exec --timeout 100ms web -- yes");
    let mut stdout = child.stdout.take().unwrap();
    let mut first = [0; 1];
    stdout.read_exact(&mut first).unwrap();
    std::thread::sleep(std::time::Duration::from_secs(7));
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).unwrap();
    assert_eq!(rest.len(), 8_000_000 - 1);
    Ran::from(child.wait_with_output().unwrap()).exits(124);
}

#[test]
fn attach_ends_when_nothing_comes_any_more() {
    let (host, _begun) = standing_still();
    let ran = host.mvmctl("vm attach --timeout 500ms web 7");
    assert_eq!(ran.stdout, "begun\n");
    ran.exits(125)
        .says("the guest stands still: nothing has come from it for 5.5s")
        .says("--timeout allows a longer silence");
}

#[test]
fn forward_ends_when_nothing_comes_any_more() {
    let (host, _begun) = standing_still();
    let ran = host.mvmctl("vm forward --timeout 500ms web 0:80");
    ran.exits(125).says("the guest stands still");
}

#[test]
fn a_job_that_is_silent_is_followed_as_long_as_the_guest_lives() {
    let (tell, begun) = channel();
    let tell = Mutex::new(tell);
    let host = Host::with("web", move |peer: &mut Peer| {
        let tell = tell.lock().unwrap().clone();
        if peer.number == 1 {
            // The watch beside it: as many heartbeats as it takes to outlast any silence.
            peer.shake_hands();
            let request = peer.request().unwrap();
            assert_eq!(request["type"], "watch");
            peer.reply(&request, answer_to(&request));
            let every = request["heartbeat_secs"].as_f64().unwrap();
            for _ in 0..5 {
                std::thread::sleep(std::time::Duration::from_secs_f64(every));
                peer.reply(
                    &request,
                    json!({"type": "event", "at": "2026-11-24T06:02:11Z", "heartbeat": true}),
                );
            }
            tell.send(()).unwrap();
            peer.until_closed();
        } else {
            dev(move |peer, request| {
                peer.exec_started(request);
                peer.stall();
            })(peer);
        }
    });
    let mut child = begin(&host, "vm attach --timeout 100ms web 7");
    begun.recv().unwrap();
    assert!(child.try_wait().unwrap().is_none(), "it has ended");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_vm_that_runs_no_more_ends_what_waits_for_its_guest() {
    let (guest, _begun) = standing_still();
    let port = Host::with("web", |peer: &mut Peer| {
        peer.expect_connect_to(22);
        peer.send(b"OK 22\nbegun\n");
        peer.stall();
    });
    for (host, arguments, code) in [
        (guest, "vm exec web -- sleep 60", 125),
        (port, "vm connect --stdio web 22", 3),
    ] {
        host.write_record("web", r#"{"state":"running"}"#);
        let mut child = begin(&host, arguments);
        let stdin = child.stdin.take();
        let mut begun = [0; 6];
        child
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut begun)
            .unwrap();
        host.write_record("web", r#"{"state":"stopped"}"#);
        let ran = Ran::from(child.wait_with_output().unwrap());
        ran.exits(code).says("the VM is stopped");
        drop(stdin);
    }
}

/// A guest with one job, that prints a line each time that it is attached to.
fn with_a_job(sleeps: bool) -> Host {
    Host::with("web", move |peer: &mut Peer| {
        let number = peer.number;
        peer.shake_hands();
        while let Some(request) = peer.request() {
            match request["type"].as_str().unwrap() {
                "hello" => peer.reply(&request, answer_to(&request)),
                "jobs" => peer.reply(
                    &request,
                    json!({"type": "jobs", "jobs": [{
                        "job": 7, "argv": ["x"], "pid": 321, "state": "running",
                        "started_at": "2026-11-24T06:00:00.000Z", "ended_at": null,
                        "exit_code": null, "signal": null, "timed_out": false, "output_bytes": 6,
                    }]}),
                ),
                "attach" => {
                    peer.exec_started(&request);
                    peer.data(1, b"first\n");
                    if number >= 2 {
                        peer.data(2, b"second\n");
                        peer.exec_exited(&request, 5);
                    }
                }
                "watch" => {
                    peer.reply(&request, answer_to(&request));
                    if sleeps && number == 1 {
                        peer.reply(
                            &request,
                            json!({
                                "type": "event", "at": "2026-11-24T06:02:11Z", "lifecycle": "ready",
                            }),
                        );
                    }
                    peer.until_closed();
                }
                other => panic!("{other}"),
            }
        }
    })
    .record("web", r#"{"state":"running"}"#)
}

#[test]
fn a_job_is_followed_on_over_a_snapshot_after_which_the_vm_runs_on() {
    let host = with_a_job(true);
    let child = begin(&host, "vm attach web 7");
    // Both connections are closed before the VM is frozen.
    host.agent("web").until_closed(2);
    host.write_record("web", r#"{"state":"asleep"}"#);
    host.write_record("web", r#"{"state":"running"}"#);
    let ran = Ran::from(child.wait_with_output().unwrap()).exits(5);
    assert_eq!(ran.stdout, "first\n", "what was shown is not shown again");
    assert!(ran.stderr.ends_with("second\n"), "{ran:?}");
}

#[test]
fn a_job_is_followed_on_over_stop_and_start() {
    let host = with_a_job(false);
    let mut child = begin(&host, "vm attach web 7");
    let mut first = [0; 6];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut first)
        .unwrap();
    host.agent("web").until_accepted(2);
    host.write_record("web", r#"{"state":"asleep"}"#);
    host.agent("web").until_closed(2);
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    assert!(
        line.contains("the VM is asleep; the job is followed on when it runs"),
        "{line}"
    );
    assert_eq!(
        host.accepted("web"),
        2,
        "a VM that is asleep is not dialled"
    );
    host.write_record("web", r#"{"state":"running"}"#);
    line.clear();
    stderr.read_line(&mut line).unwrap();
    assert_eq!(line, "second\n");
    Ran::from(child.wait_with_output().unwrap()).exits(5);
}

#[test]
fn a_job_of_an_agent_that_was_started_anew_is_not_taken_for_another() {
    let host = Host::with("web", move |peer: &mut Peer| {
        let number = peer.number;
        peer.shake_hands();
        while let Some(request) = peer.request() {
            let mut answer = match request["type"].as_str().unwrap() {
                "jobs" => json!({"type": "jobs", "jobs": []}),
                "attach" => {
                    peer.exec_started(&request);
                    peer.until_closed();
                    return;
                }
                _ => answer_to(&request),
            };
            answer["id"] = request["id"].clone();
            peer.answer(&answer);
            if request["type"] == "watch" {
                // Both connections go at once, as with a guest that is powered off.
                if number < 2 {
                    return;
                }
                peer.until_closed();
            }
        }
    });
    let child = begin(&host, "vm attach web 7");
    host.agent("web").until_accepted(2);
    host.agent("web").hang_up();
    let ran = Ran::from(child.wait_with_output().unwrap());
    ran.exits(125)
        .says("job 7 ended with the agent that ran it");
}

#[test]
fn a_port_is_forwarded_again_when_the_vm_runs_again() {
    let host = Host::with(
        "web",
        dev(|peer, request| {
            peer.reply(
                request,
                json!({"type": "forward-started", "address": "127.0.0.1:80"}),
            );
            peer.data(1, b"hello");
            peer.until_closed();
        }),
    )
    .record("web", r#"{"state":"running"}"#);
    let mut child = begin(&host, "vm forward --json web 0:80");
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    let shown: Value = serde_json::from_str(&line).unwrap();
    let address = shown["listening"].as_str().unwrap().to_owned();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut said = |what: &str| {
        let mut line = String::new();
        while !line.contains(what) {
            line.clear();
            assert!(stderr.read_line(&mut line).unwrap() > 0, "not said: {what}");
        }
    };
    let greeting = || {
        let mut hello = Vec::new();
        let mut stream = TcpStream::connect(&address).unwrap();
        let _ = stream.by_ref().take(5).read_to_end(&mut hello);
        (stream, hello)
    };
    let (mut open, hello) = greeting();
    assert_eq!(hello, b"hello");
    host.write_record("web", r#"{"state":"stopped"}"#);
    said("connections are taken again when it runs");
    let mut rest = Vec::new();
    let _ = open.read_to_end(&mut rest);
    let (_refused, nothing) = greeting();
    assert_eq!(nothing, b"");
    host.write_record("web", r#"{"state":"running"}"#);
    let until = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while greeting().1 != b"hello" {
        assert!(
            std::time::Instant::now() < until,
            "it is not forwarded again"
        );
    }
    child.kill().unwrap();
    child.wait().unwrap();
}
