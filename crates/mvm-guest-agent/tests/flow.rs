//! How much flows: slow readers, full pipes, many at once, and what the rest of the agent does
//! meanwhile.

#![cfg(feature = "dev")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod common;

use common::dev::{exec, shell, with};
use common::{Agent, As, Settings, children, folder, processes, within};
use mvm_protocol::Frame;
use serde_json::{Value, json};
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn ping(agent: &Agent) {
    assert_eq!(agent.ask(&json!({"type": "ping"})), json!({"type": "pong"}));
}

/// Resident memory in bytes.
fn memory(agent: &Agent) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", agent.pid())).unwrap();
    let line = rollup
        .lines()
        .find(|line| line.starts_with("Rss:"))
        .unwrap();
    let kb: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kb * 1024
}

#[test]
fn a_gigabyte_of_output_through_a_slow_reader_takes_no_memory() {
    let megabytes = 1024;
    let agent = Agent::start(&[], &[]);
    ping(&agent);
    let before = memory(&agent);
    let mut host = agent.connection();
    host.begin(&shell(&format!("head -c {megabytes}M /dev/zero")));
    let (mut read, mut naps, mut most) = (0, 0, 0);
    let ended = loop {
        match host.frame().unwrap() {
            Frame::Data { channel: 1, bytes } => read += bytes.len(),
            Frame::Json(body) => break serde_json::from_slice::<Value>(&body).unwrap(),
            other => panic!("{other:?}"),
        }
        if read >= (naps + 1) * (megabytes << 20) / 20 {
            naps += 1;
            // The pause is what is tested: the command goes on writing as far as it is let.
            std::thread::sleep(Duration::from_millis(50));
            most = most.max(memory(&agent));
        }
    };
    assert_eq!(
        (read, ended["truncated"].as_bool()),
        (megabytes << 20, Some(false))
    );
    assert_eq!(ended["exit_code"], 0);
    let grown = most.saturating_sub(before);
    assert!(
        grown < 2 << 20,
        "{grown} bytes more while {read} went through"
    );
}

#[test]
fn output_from_before_the_exit_is_read_however_slowly() {
    let agent = Agent::start(&[], &[]);
    let mut host = agent.connection();
    // More than the socket holds, less than socket and pipe together: it ends at once.
    host.begin(&shell(
        "head -c 300007 /dev/zero; head -c 60000 /dev/zero >&2; exit 6",
    ));
    within(|| processes("300007").is_empty().then_some(()));
    // Longer than the second after which what others print is cut off.
    std::thread::sleep(Duration::from_millis(1500));
    let ran = host.rest();
    assert_eq!((ran.stdout.len(), ran.stderr.len()), (300_007, 60_000));
    assert_eq!(
        (ran.end(), &ran.last["truncated"]),
        ((Some(6), None), &json!(false))
    );
}

#[test]
fn a_command_that_reads_its_own_output_cannot_take_announced_bytes() {
    let agent = Agent::start(&[], &[]);
    // It fills pipe and socket, of which the host takes nothing, and then reads what it can.
    let text = "i=0; while [ $i -lt 5 ]; do dd if=/dev/zero bs=65536 count=100 oflag=nonblock; \
                sleep 0.05; i=$((i+1)); done 2>/dev/null; \
                dd if=/proc/self/fd/1 of=/dev/null bs=1M iflag=nonblock 2>/dev/null; exit 4";
    // Where in a frame that falls is a matter of chance.
    for _ in 0..6 {
        let mut host = agent.connection();
        host.begin(&shell(text));
        within(|| processes("dd if=/proc/self/fd/1").is_empty().then_some(()));
        ping(&agent);
        let ran = host.rest();
        assert!(ran.stdout.len() > 32 * 1024, "{}", ran.stdout.len());
        assert!(ran.stdout.iter().all(|byte| *byte == 0));
        assert_eq!(ran.end(), (Some(4), None));
        assert_eq!(host.ask(&json!({"type": "ping"})), json!({"type": "pong"}));
    }
}

#[test]
fn a_hundred_megabytes_of_input_come_out_as_they_went_in() {
    let agent = Agent::start(&[], &[]);
    let mut host = agent.connection();
    host.begin(&with(exec(&["cat"]), json!({"stdin": true})));
    let mut sender = host.sender();
    // Numbers that a lost, doubled or swapped piece would betray.
    let writer = std::thread::spawn(move || {
        let mut sum = Command::new("sha256sum")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut to_sum = sum.stdin.take().unwrap();
        let mut state = 1_u64;
        for _ in 0..500 {
            let piece: Vec<u8> = (0..25_000)
                .flat_map(|_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state.to_le_bytes()
                })
                .collect();
            to_sum.write_all(&piece).unwrap();
            sender.data(0, &piece);
        }
        drop(to_sum);
        sender.send(&json!({"type": "stdin-close"}));
        sum.wait_with_output().unwrap().stdout
    });
    let mut sum = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut to_sum = sum.stdin.take().unwrap();
    let mut read = 0;
    loop {
        match host.frame().unwrap() {
            Frame::Data { channel: 1, bytes } => {
                read += bytes.len();
                to_sum.write_all(&bytes).unwrap();
            }
            Frame::Json(_) => break,
            other => panic!("{other:?}"),
        }
    }
    drop(to_sum);
    assert_eq!(read, 100_000_000);
    assert_eq!(
        sum.wait_with_output().unwrap().stdout,
        writer.join().unwrap()
    );
}

#[test]
fn sixty_four_at_once_and_pings_are_answered() {
    for user in [As::Tester, As::Nobody] {
        let agent = Agent::launch(folder(&[], &[]), Settings::user(user));
        let text = "read -r line; head -c 200000 /dev/zero | tr '\\0' x; echo $line; exit 3";
        let mut hosts: Vec<_> = (0..64)
            .map(|_| {
                let mut host = agent.connection();
                host.begin(&with(shell(text), json!({"stdin": true})));
                host
            })
            .collect();
        ping(&agent);
        // And as many that print without end, to whoever reads.
        let mut endless = agent.connection();
        endless.begin(&exec(&["yes"]));
        let drain = std::thread::spawn(move || {
            let until = Instant::now() + Duration::from_secs(2);
            while Instant::now() < until {
                endless.frame().unwrap();
            }
        });
        for (number, host) in hosts.iter_mut().enumerate() {
            ping(&agent);
            host.data(0, format!("{number}\n").as_bytes());
        }
        for (number, host) in hosts.iter_mut().enumerate() {
            let ran = host.rest();
            assert_eq!(ran.stdout.len(), 200_000 + number.to_string().len() + 1);
            assert!(ran.text().ends_with(&format!("x{number}\n")));
            assert_eq!(ran.end(), (Some(3), None));
            ping(&agent);
        }
        drain.join().unwrap();
        within(|| children(agent.pid()).is_empty().then_some(()));
    }
}

#[test]
fn input_that_nobody_reads_waits_and_the_end_of_its_host_is_noticed() {
    let agent = Agent::start(&[], &[]);
    ping(&agent);
    let before = memory(&agent);
    let mut host = agent.connection();
    host.begin(&with(exec(&["sleep", "1030.5"]), json!({"stdin": true})));
    host.stream.set_nonblocking(true).unwrap();
    let frame = mvm_protocol::frame::encode_data(0, &vec![b'x'; 100_000]).unwrap();
    let mut sent = 0;
    within(|| match host.stream.write(&frame[sent % frame.len()..]) {
        Ok(count) => {
            sent += count;
            None
        }
        Err(error) => {
            assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
            Some(())
        }
    });
    // It is full for good only if the agent has stopped reading.
    within(|| {
        let full = host.stream.write(&frame[sent % frame.len()..]);
        sent += full.as_ref().map_or(0, |count| *count);
        (full.is_err() && sent > 256 * 1024).then_some(())
    });
    assert!(sent < 2 << 20, "{sent} bytes were taken");
    assert!(memory(&agent).saturating_sub(before) < 2 << 20);
    drop(host);
    within(|| processes("sleep 1030.5").is_empty().then_some(()));
}

#[test]
fn unread_input_does_not_block_a_command() {
    let agent = Agent::start(&[], &[]);
    let mut host = agent.connection();
    let request = with(
        shell("exec <&-; echo closed; sleep 0.1; exit 2"),
        json!({"stdin": true}),
    );
    host.begin(&request);
    host.until("closed");
    for _ in 0..50 {
        host.data(0, &vec![b'x'; 100_000]);
    }
    assert_eq!(host.rest().end(), (Some(2), None));
    assert_eq!(host.ask(&json!({"type": "ping"})), json!({"type": "pong"}));
}

#[test]
fn a_timeout_ends_the_whole_process_tree() {
    for user in [As::Tester, As::Nobody] {
        let agent = Agent::launch(folder(&[], &[]), Settings::user(user));
        let text = "setsid sleep 1031.5 & trap 'echo asked; exit 8' TERM; sleep 1031.5 & wait";
        let ran = agent.exec(&with(shell(text), json!({"timeout_secs": 0.3})));
        assert_eq!(
            (ran.text().as_str(), ran.end()),
            ("asked\n", (Some(8), None))
        );
        assert_eq!(ran.last["timed_out"], true);
        assert_eq!(processes("sleep 1031.5"), [0; 0]);
        let stubborn = shell("trap '' TERM; sleep 1032.5");
        let ran = agent.exec(&with(stubborn, json!({"timeout_secs": 0.3})));
        assert_eq!(ran.end(), (None, Some("KILL")));
        assert_eq!(ran.last["timed_out"], true);
        assert_eq!(processes("sleep 1032.5"), [0; 0]);
    }
}

#[test]
fn any_signal_can_be_sent() {
    let agent = Agent::start(&[], &[]);
    for (signal, end) in [
        ("INT", (None, Some("INT"))),
        ("35", (None, Some("35"))),
        ("KILL", (None, Some("KILL"))),
    ] {
        let mut host = agent.connection();
        host.begin(&exec(&["sleep", "1033.5"]));
        host.send(&json!({"type": "signal", "signal": signal}));
        assert_eq!(host.rest().end(), end);
    }
    let mut host = agent.connection();
    host.begin(&shell(
        "trap 'echo caught; exit 1' USR2; echo up; while :; do sleep 0.01; done",
    ));
    host.until("up");
    host.send(&json!({"type": "signal", "signal": "NONE"}));
    assert_eq!(host.json()["code"], "bad-request");
    host.send(&json!({"type": "signal", "signal": "USR2"}));
    assert_eq!(host.rest().text(), "caught\n");
}

#[test]
fn a_sleep_ends_commands_and_waits_for_their_end() {
    for user in [As::Tester, As::Nobody] {
        let agent = Agent::launch(folder(&[], &[]), Settings::user(user));
        let mut asked = agent.connection();
        asked.begin(&shell(
            "trap 'echo asked; exit 7' TERM; echo up; while :; do sleep 0.01; done",
        ));
        asked.until("up");
        let mut stubborn = agent.connection();
        stubborn.begin(&shell(
            "trap '' TERM; setsid sleep 1034.5 & echo up; sleep 1034.5",
        ));
        stubborn.until("up");
        let ready = within(|| {
            let answer = agent.ask(&json!({"type": "sleep-prep", "token": "t"}));
            (answer["type"] == "ready").then_some(answer)
        });
        assert_eq!(
            ready["steps"][0]["detail"],
            "ended 2 commands, files or ports"
        );
        assert_eq!(
            processes("sleep 1034.5"),
            [0; 0],
            "before the guest is ready"
        );
        let ran = asked.rest();
        assert_eq!(
            (ran.text().as_str(), ran.end()),
            ("asked\n", (Some(7), None))
        );
        assert_eq!(stubborn.rest().end(), (None, Some("KILL")));
        agent.ask(&json!({"type": "wake", "token": "t"}));
        assert_eq!(agent.exec(&exec(&["true"])).end(), (Some(0), None));
    }
}

#[test]
fn an_open_request_makes_the_worker_busy_at_once() {
    let settings = Settings::flags(&[
        "--busy-signals",
        "session",
        "--sample-interval-secs",
        "3600",
    ]);
    let agent = Agent::launch(folder(&[], &[]), settings);
    let mut watch = agent.connection();
    watch.send(&json!({"type": "watch"}));
    assert_eq!(watch.answer().unwrap()["worker"]["state"], "idle");
    let mut host = agent.connection();
    host.begin(&with(exec(&["cat"]), json!({"stdin": true})));
    let busy = watch.event("worker")["worker"].take();
    assert_eq!(
        (&busy["state"], &busy["because"]),
        (&json!("busy"), &json!(["session"]))
    );
    host.send(&json!({"type": "stdin-close"}));
    host.rest();
    let idle = watch.event("worker")["worker"].take();
    assert_eq!(idle["state"], "idle");
    assert!(idle["last_busy_at"].is_string());
}

#[test]
fn each_command_leaves_a_line_without_its_arguments() {
    let agent = Agent::start(&[], &[]);
    let mut host = agent.connection();
    // A dev build's own exec shows what another agent writes.
    let inner = format!(
        "exec {} --no-system-effects --config {} --listen unix:{1}.sock --run-dir {1}.run 2>&1",
        env!("CARGO_BIN_EXE_mvm-guest-agent"),
        agent.path("agent.json").display(),
    );
    host.begin(&shell(&inner));
    host.until("listening");
    let mut asking = agent.connection_to("agent.json.sock");
    asking.exec(&with(
        shell("exit 4; secret"),
        json!({"env": {"S": "secret"}}),
    ));
    let line = host.until("asked by the host)\n");
    assert!(line.contains("exec /bin/sh: exit code 4 after "), "{line}");
    asking.exec(&exec(&["no\nsuch", "secret"]));
    let line = host.until("asked by the host)\n");
    assert!(
        line.contains("exec no\u{fffd}such: not-found after "),
        "{line}"
    );
    asking.send(&json!({"type": "get", "path": "/nonexistent/secret"}));
    let more = host.until("asked by the host)\n");
    assert!(more.contains("get: not-found after "), "{more}");
    assert!(!(line + &more).contains("secret"));
}
