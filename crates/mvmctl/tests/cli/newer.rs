//! Agents newer than this client: words that it does not know are shown as they came.

use crate::host::{Host, answering};
use mvm_fake_agent::{Peer, inspect, status};
use serde_json::{Value, json};

/// What an agent may answer that has learnt words which we have not.
fn newer(mut answer: Value) -> Value {
    answer["lifecycle"] = "migrating".into();
    answer["health"] = "degraded".into();
    answer["worker"]["state"] = "drowsy".into();
    answer["worker"]["because"] = json!(["gpu", "loadavg"]);
    answer["integrations"][0]["health"] = "flapping".into();
    if answer.get("agent").is_some() {
        answer["agent"]["profile"] = "lean".into();
    }
    answer
}

#[test]
fn a_status_is_shown_as_it_came() {
    let host = Host::with("web", |peer: &mut Peer| {
        peer.shake_hands();
        let request = peer.request().unwrap();
        let mut answer = match request["type"].as_str() {
            Some("inspect") => newer(inspect("healthy")),
            _ => newer(status("healthy")),
        };
        answer["id"] = request["id"].clone();
        peer.answer(&answer);
    });
    let ran = host.mvmctl("vm status web").exits(0).silently();
    assert!(
        ran.stdout
            .contains("web   migrating  degraded  drowsy (gpu, loadavg)"),
        "{ran:?}"
    );
    assert!(ran.stdout.contains("my-service   flapping"), "{ran:?}");
    let all = host.mvmctl("vm status").exits(0).silently();
    assert!(all.stdout.contains("1 flapping"), "{all:?}");
    let inspected = host.mvmctl("vm inspect web").exits(0).silently();
    assert!(
        inspected.stdout.contains("0.1.0 (lean), process 71"),
        "{inspected:?}"
    );

    let json = host.mvmctl("vm inspect web --json").exits(0).json();
    assert_eq!(json["worker"], newer(inspect("healthy"))["worker"]);
    for field in ["lifecycle", "health", "integrations", "agent"] {
        assert_eq!(json[field], newer(inspect("healthy"))[field], "{field}");
    }
}

#[test]
fn what_is_not_known_is_not_what_is_waited_for() {
    let host = Host::with("web", answering(newer(status("healthy"))));
    for goal in ["ready", "healthy", "idle", "busy"] {
        host.mvmctl(&format!("vm wait web --for {goal} --timeout 300ms"))
            .exits(1)
            .says("it is migrating, degraded, worker drowsy (gpu, loadavg)");
    }
}

#[test]
fn a_change_is_shown_as_it_came() {
    let host = Host::with("web", |peer: &mut Peer| {
        peer.shake_hands();
        let id = peer.request().unwrap()["id"].clone();
        let mut first = status("healthy");
        first["id"] = id.clone();
        peer.answer(&first);
        for lifecycle in ["hibernating", "ready"] {
            peer.answer(&json!({
                "type": "event", "at": "2026-11-24T06:02:11Z", "lifecycle": lifecycle, "id": id,
            }));
        }
        peer.until_closed();
    });
    let shown = host.mvmctl("vm events web").exits(0).stdout;
    assert!(shown.contains("lifecycle hibernating\n"), "{shown}");
}

#[test]
fn an_error_keeps_its_code() {
    let refusal = json!({
        "type": "error", "code": "on-fire", "message": "call somebody", "retryable": true,
    });
    let host = Host::with("web", answering(refusal));
    let ran = host.mvmctl("vm status web --json").exits(1);
    assert_eq!(ran.json()["error"]["code"], "on-fire");
    assert_eq!(ran.json()["error"]["retryable"], true);
}

#[test]
fn a_step_that_came_to_who_knows_what_is_not_vouched_for() {
    let awake = json!({
        "type": "awake", "was_ready": true, "lease_expired": false, "generation": 1,
        "steps": [{
            "step": "defragment", "integration": null, "outcome": "deferred", "duration_ms": 3,
            "detail": null,
        }],
    });
    let host = Host::with("web", answering(awake.clone()));
    let shown = host.mvmctl("vm wake web").exits(1).stdout;
    assert!(shown.contains("defragment"), "{shown}");
    assert!(shown.contains("deferred"), "{shown}");
    let json = host.mvmctl("vm wake web --json").exits(1).json();
    assert_eq!(json["steps"], awake["steps"]);
}
