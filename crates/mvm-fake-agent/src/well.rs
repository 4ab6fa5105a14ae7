//! An agent that behaves well, and the answers that it gives.

use crate::Peer;
use serde_json::{Value, json};

/// Serves a connection as an agent does whose guest is healthy: handshake, then `ping`, `hello`,
/// `status`, `inspect`, `check`, `reload` and `watch`.
pub fn well(peer: &mut Peer) {
    peer.shake_hands();
    while let Some(request) = peer.request() {
        let id = request["id"].clone();
        let mut answer = answer_to(&request);
        answer["id"] = id;
        peer.answer(&answer);
        if request["type"] == "watch" {
            peer.until_closed();
        }
    }
}

/// Serves a connection as an agent of version 0.0.9 does, which knows `hello` and nothing else.
pub fn old(peer: &mut Peer) {
    peer.shake_hands();
    while let Some(request) = peer.request() {
        let mut answer = match request["type"].as_str() {
            Some("hello") => {
                let mut hello = answer_to(&request);
                hello["agent_version"] = "0.0.9".into();
                hello["capabilities"] = json!(["hello"]);
                hello
            }
            _ => answer_to(&json!({"type": "?"})),
        };
        answer["id"] = request["id"].clone();
        peer.answer(&answer);
    }
}

/// What an agent that behaves well answers to a request, but for its `id`.
pub fn answer_to(request: &Value) -> Value {
    match request["type"].as_str().unwrap() {
        "ping" => json!({"type": "pong"}),
        "hello" => json!({
            "type": "hello", "protocol": 1, "agent_version": "0.1.0", "profile": "prod",
            "capabilities": ["ping", "hello", "status", "inspect", "check", "reload", "watch"],
            "boot_id": "6f0b7f52-6e44-4d51-9a4c-3e1b5c7b2a10", "generation": 0,
        }),
        "status" | "watch" => status("healthy"),
        "inspect" => inspect("healthy"),
        "reload" => json!({"type": "reloaded", "integrations": 1, "probes": 1, "errors": []}),
        "check" => check(request),
        other => json!({
            "type": "error", "code": "unknown-request", "retryable": false,
            "message": format!("no request has the type `{other}`"),
        }),
    }
}

fn check(request: &Value) -> Value {
    let all = inspect("healthy");
    let (list, key) = match request["kind"].as_str() {
        Some("probe") => ("probes", "probe"),
        _ => ("integrations", "integration"),
    };
    let entries = all[list].as_array().unwrap();
    match entries
        .iter()
        .find(|entry| entry["name"] == request["name"])
    {
        Some(entry) => json!({"type": "checked", key: entry}),
        None => json!({
            "type": "error", "code": "not-found", "retryable": false,
            "message": format!("no {key} has the name {}", request["name"]),
        }),
    }
}

/// The answer to `status` of a guest with one integration, `my-service`, of that health.
pub fn status(health: &str) -> Value {
    json!({
        "type": "status", "lifecycle": "running", "health": health, "uptime_secs": 93.2,
        "worker": {
            "state": "idle", "since": "2026-11-24T06:00:38.000Z", "last_busy_at": null,
            "because": [], "load1": 0.02, "runnable": 1,
        },
        "integrations": [{
            "name": "my-service", "health": health, "since": "2026-11-24T06:00:39.000Z",
            "consecutive_failures": u8::from(health == "unhealthy"), "checks": 9, "failures": 0,
            "last_check": last_check(i32::from(health == "unhealthy")),
        }],
    })
}

/// The answer to `inspect` of the same guest: it has one probe, `disk-usage`, and one drop-in file
/// that was rejected.
pub fn inspect(health: &str) -> Value {
    let mut all = status(health);
    let more = json!({
        "type": "inspect",
        "probes": [{"name": "disk-usage", "ok": true, "value": "42%", "last_check": last_check(0)}],
        "system": {
            "hostname": "web", "kernel": "6.1.0-31-cloud-amd64", "cpus": 1,
            "memory_total_bytes": 252_706_816, "memory_available_bytes": 201_326_592,
            "load": [0.02, 0.01, 0.0],
        },
        "agent": {
            "version": "0.1.0", "profile": "prod", "pid": 71, "rss_bytes": 1_261_568,
            "started_at": "2026-11-24T06:00:38.000Z",
            "drop_in_errors": [{"file": "/etc/mvm/probes.d/bad.json", "message": "line 3: unknown field `comand`"}],
        },
        "snapshot": {"generation": 0, "last_sleep": null, "last_wake": null},
    });
    let (Value::Object(all_fields), Value::Object(more)) = (&mut all, more) else {
        panic!("both are objects")
    };
    all_fields.extend(more);
    all
}

fn last_check(exit_code: i32) -> Value {
    json!({
        "at": "2026-11-24T06:02:11.123Z", "duration_ms": 11, "exit_code": exit_code, "signal": null,
        "timed_out": false, "output": "ok", "truncated": false,
    })
}
