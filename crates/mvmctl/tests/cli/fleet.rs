//! Many VMs at once: name order, failures among them, and how many are asked at a time.

use crate::host::{Host, answering, nobody, silent};
use mvm_fake_agent::{Peer, status, well};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};

#[test]
fn one_that_is_dead_costs_the_others_nothing() {
    let host = Host::with("c", well)
        .and("a", well)
        .and("b", silent)
        .and("d", nobody);
    let ran = host
        .mvmctl("vm status --json --timeout 1s")
        .exits(4)
        .says("b: ")
        .says("d: ");
    let list = ran.json();
    let names: Vec<_> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["vm"])
        .collect();
    assert_eq!(names, ["a", "b", "c", "d"]);
    assert_eq!(list[0]["health"], "healthy");
    assert_eq!(list[2]["health"], "healthy");
    let keys: Vec<_> = list[1].as_object().unwrap().keys().collect();
    assert_eq!(keys, ["error", "vm"]);
    let keys: Vec<_> = list[1]["error"].as_object().unwrap().keys().collect();
    assert_eq!(keys, ["code", "hint", "message", "retryable"]);
    assert_eq!(list[1]["error"]["code"], "timed-out");
    assert_eq!(list[3]["error"]["code"], "nobody-listening");
}

#[test]
fn what_cannot_be_reached_is_unknown() {
    let host = Host::with("a", well).and("b", nobody);
    let expected = "\
NAME  LIFECYCLE  HEALTH   WORKER   UPTIME   INTEGRATIONS
a     running    healthy  idle     1m33s    1 healthy
b     unknown    unknown  unknown  unknown  unknown
";
    assert_eq!(host.mvmctl("vm status").exits(4).stdout, expected);
    assert_eq!(host.mvmctl("vm status a b").exits(4).stdout, expected);
}

#[test]
fn named_ones_have_to_be_there() {
    let host = Host::with("a", well).record("b", r#"{"state":"stopped"}"#);
    host.mvmctl("vm ping").exits(0).silently();
    host.mvmctl("vm ping a b")
        .exits(4)
        .says("b: the VM is stopped");
    let ran = host.mvmctl("vm ping a nope --json").exits(4);
    assert_eq!(ran.json()[1]["error"]["code"], "no-such-vm");
}

#[test]
fn unhealthy_among_several() {
    let host = Host::with("a", well).and("b", answering(status("unhealthy")));
    let shown = host.mvmctl("vm status a b").exits(4).silently().stdout;
    assert!(shown.contains("1 unhealthy (my-service)"), "{shown}");
}

#[test]
fn many_failures_are_told_in_part() {
    let mut host = Host::new();
    for number in 0..15 {
        host = host.record(&format!("vm-{number:02}"), "{}");
    }
    let ran = host
        .mvmctl("vm ping")
        .exits(4)
        .says("vm-09: ")
        .says("… and 5 more");
    assert!(!ran.stderr.contains("vm-10: "));
    let list = host.mvmctl("vm ping --json").exits(4).json();
    assert_eq!(list.as_array().unwrap().len(), 15);
}

#[test]
fn all_are_asked_at_once() {
    // Each answers when all have been asked: one after the other they would wait for ever.
    let all = Arc::new(Barrier::new(8));
    let mut host = Host::new();
    for number in 0..8 {
        let all = Arc::clone(&all);
        host = host.and(&format!("vm-{number}"), move |peer: &mut Peer| {
            peer.expect_connect();
            all.wait();
            peer.send(b"OK 52\n");
            let id = peer.request().unwrap()["id"].clone();
            peer.answer(&serde_json::json!({"type": "pong", "id": id}));
            peer.until_closed();
        });
    }
    host.mvmctl("vm ping --timeout 30s").exits(0);
}

#[test]
fn no_more_at_once_than_allowed() {
    let open = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let mut host = Host::new();
    for number in 0..20 {
        let (open, most) = (Arc::clone(&open), Arc::clone(&most));
        host = host.and(&format!("vm-{number:02}"), move |peer: &mut Peer| {
            most.fetch_max(open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            peer.shake_hands();
            let id = peer.request().unwrap()["id"].clone();
            // Before the answer: what the client does after it is not seen from here.
            open.fetch_sub(1, Ordering::SeqCst);
            peer.answer(&serde_json::json!({"type": "pong", "id": id}));
            peer.until_closed();
        });
    }
    host.mvmctl("vm ping --parallel 3 --timeout 30s").exits(0);
    let most = most.load(Ordering::SeqCst);
    assert!((1..=3).contains(&most), "{most} at once");
}
