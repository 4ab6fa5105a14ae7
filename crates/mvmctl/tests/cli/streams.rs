//! `vm events`: the status, then changes as lines, through losses.

use crate::host::{Host, Ran, nobody};
use mvm_fake_agent::{Peer, status, well};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

/// Answers `watch` with a healthy status and then these events.
fn tell(peer: &mut Peer, events: &[Value]) {
    peer.shake_hands();
    let id = peer.request().unwrap()["id"].clone();
    let mut first = status("healthy");
    first["id"] = id.clone();
    peer.answer(&first);
    for event in events {
        let mut event = event.clone();
        event["type"] = "event".into();
        event["at"] = "2026-11-24T06:02:11.123Z".into();
        event["id"] = id.clone();
        peer.answer(&event);
    }
}

/// The guest is about to be frozen: a watch ends well.
fn ready() -> Value {
    json!({"lifecycle": "ready"})
}

fn lines(ran: &Ran) -> Vec<Value> {
    let parse = |line| serde_json::from_str(line).unwrap();
    ran.stdout.lines().map(parse).collect()
}

#[test]
fn each_change_is_a_line() {
    let sick = status("unhealthy")["integrations"][0].clone();
    let events = [
        json!({"heartbeat": true}),
        json!({"integration": sick}),
        json!({"weather": "of a newer agent"}),
        json!({"drop_ins": {"integrations": 2, "probes": 1, "errors": []}}),
        json!({"restored": {"announced": false, "by": "cid"}}),
        json!({"restored": {"announced": false, "by": "a-newer-sign"}}),
        ready(),
    ];
    let host = Host::with("web", move |peer| {
        tell(peer, &events);
        peer.until_closed();
    });
    let ran = host
        .mvmctl("vm events web --json")
        .exits(0)
        .says("put to sleep");
    let lines = lines(&ran);
    assert_eq!(lines.len(), 6, "{lines:#?}");
    assert_eq!(lines[0]["lifecycle"], "running");
    assert!(lines[0].get("at").is_none() && lines[0].get("type").is_none());
    let change = json!({"vm": "web", "at": "2026-11-24T06:02:11.123Z", "integration": sick});
    assert_eq!(lines[1], change);
    assert_eq!(
        lines[3]["restored"],
        json!({"announced": false, "by": "cid"})
    );
    assert_eq!(lines[5]["lifecycle"], "ready");

    let shown = host.mvmctl("vm events web").exits(0).stdout;
    let expected = "\
web  running, healthy, worker idle, integrations: 1 healthy
web  2026-11-24T06:02:11.123Z  my-service unhealthy, last check exit 1 after 11ms: ok
web  2026-11-24T06:02:11.123Z  drop-ins read: 2 integrations, 1 probes, 0 files rejected
web  2026-11-24T06:02:11.123Z  restored, no host has announced it: the vsock CID is another one
web  2026-11-24T06:02:11.123Z  restored, no host has announced it: a-newer-sign
web  2026-11-24T06:02:11.123Z  lifecycle ready
";
    assert_eq!(shown, expected);
    assert_eq!(
        host.accepted("web"),
        2,
        "a frozen guest is not dialled again"
    );
}

#[test]
fn one_that_is_lost_is_told_and_dialled_again() {
    let host = Host::with("web", |peer| match peer.number {
        0 => tell(peer, &[]),
        // More than one try takes by itself.
        1..8 => peer.expect_connect(),
        _ => {
            tell(peer, &[ready()]);
            peer.until_closed();
        }
    });
    let ran = host
        .mvmctl("vm events web --json")
        .exits(0)
        .says("closed the connection");
    let lines = lines(&ran);
    assert_eq!(
        lines.len(),
        4,
        "told of once, not for each try in vain: {lines:#?}"
    );
    assert_eq!(lines[1]["error"]["code"], "closed");
    assert_eq!(lines[2]["lifecycle"], "running");
}

#[test]
fn one_that_was_never_there_is_given_up() {
    let host = Host::with("a", |peer| {
        tell(peer, &[ready()]);
        peer.until_closed();
    })
    .and("b", nobody);
    let ran = host
        .mvmctl("vm events --json")
        .exits(4)
        .says("b: nobody listens");
    let lines = lines(&ran);
    let of_b: Vec<_> = lines.iter().filter(|line| line["vm"] == "b").collect();
    assert_eq!(of_b.len(), 1);
    assert_eq!(of_b[0]["error"]["code"], "nobody-listening");
    assert_eq!(lines.len(), 3);
    let alone = host.mvmctl("vm events b --json").exits(3);
    assert_eq!(alone.json()["error"]["code"], "nobody-listening");
}

#[test]
fn it_ends_when_nobody_reads_any_more() {
    let host = Host::with("web", |peer: &mut Peer| {
        tell(peer, &[]);
        // Heartbeats until the client closes: nothing is printed of them.
        let beat = json!({
            "type": "event", "at": "2026-11-24T06:02:11Z", "id": 1, "heartbeat": true,
        });
        let frame = mvm_protocol::frame::encode_json(beat.to_string().as_bytes()).unwrap();
        while peer.send(&frame) {}
    });
    let mut child = host
        .command("vm events web --json")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert!(line.contains("\"vm\":\"web\""), "{line}");
    drop(stdout);
    Ran::from(child.wait_with_output().unwrap())
        .exits(0)
        .silently();
}

#[test]
fn it_ends_when_nobody_reads_any_more_and_there_is_nothing_to_read() {
    // Lost for good: all that comes of dialling it again is more pauses.
    let host = Host::with("web", |peer| match peer.number {
        0 => tell(peer, &[]),
        _ => peer.expect_connect(),
    });
    let mut child = host
        .command("vm events web --json")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("closed the connection") {
        line.clear();
        assert!(stdout.read_line(&mut line).unwrap() > 0, "it has ended");
    }
    drop(stdout);
    assert!(child.wait().unwrap().success());
}

#[test]
fn all_are_watched_at_once() {
    let host = Host::with("a", well).and("b", well);
    // With one place for dialling, two are watched: the place is given back. And a number beyond
    // what can be counted is as good as any.
    for parallel in ["1", "18446744073709551615"] {
        watched_at_once(&host, parallel);
    }
}

fn watched_at_once(host: &Host, parallel: &str) {
    let mut child = host
        .command(&format!("vm events --json --parallel {parallel}"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut names = Vec::new();
    for _ in 0..2 {
        let mut line = String::new();
        assert!(stdout.read_line(&mut line).unwrap() > 0, "it has ended");
        let line: Value = serde_json::from_str(&line).unwrap();
        names.push(line["vm"].clone());
    }
    child.kill().unwrap();
    child.wait().unwrap();
    names.sort_by_key(ToString::to_string);
    assert_eq!(names, ["a", "b"]);
}
