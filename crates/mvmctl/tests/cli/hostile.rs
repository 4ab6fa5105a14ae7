//! A guest chooses its names, outputs and errors: none of them may command the terminal.

use crate::host::{Host, Ran, answering};
use mvm_fake_agent::{Peer, inspect, status};
use serde_json::{Value, json};

/// Clears the screen, sets the title, asks for an answer, turns the direction of writing, hides
/// characters without width.
const EVIL: &str = "\x1b[2J\x1b]0;owned\x07\u{9b}6n\u{7f}\r\n\t\u{202e}\u{2066}\u{200b}\u{ad}\u{feff}\u{e0041}\0evil";

/// The answer with every string in it replaced, other than those that have to be what they are.
fn poisoned(answer: &Value) -> Value {
    filled(answer, EVIL)
}

/// The same with another string.
fn filled(answer: &Value, with: &str) -> Value {
    match answer {
        Value::Object(fields) => {
            let keep = ["type", "at", "since", "started_at", "last_busy_at"];
            let filled = fields.iter().map(|(name, value)| {
                let keep = keep.contains(&name.as_str()) && !value.is_object();
                (
                    name.clone(),
                    if keep {
                        value.clone()
                    } else {
                        filled(value, with)
                    },
                )
            });
            Value::Object(filled.collect())
        }
        Value::Array(items) => items.iter().map(|item| filled(item, with)).collect(),
        Value::String(_) => with.into(),
        other => other.clone(),
    }
}

fn is_harmless(ran: &Ran) {
    for (name, text) in [("stdout", &ran.stdout), ("stderr", &ran.stderr)] {
        let obeyed = |c: char| {
            (c.is_control() && c != '\n')
                || ('\u{200b}'..='\u{200f}').contains(&c)
                || ('\u{202a}'..='\u{202e}').contains(&c)
                || ('\u{2060}'..='\u{2069}').contains(&c)
                || ('\u{e0000}'..='\u{e007f}').contains(&c)
                || ['\u{ad}', '\u{feff}'].contains(&c)
        };
        assert!(!text.contains(obeyed), "{name}: {text:?}");
    }
}

/// A guest whose every word, in every answer, is this one.
fn saying(word: &'static str) -> Host {
    let answers = move |request: &Value| match request["type"].as_str() {
        Some("status" | "watch") => filled(&status("unhealthy"), word),
        Some("check") => json!({
            "type": "checked", "probe": filled(&inspect("healthy")["probes"][0], word),
            "integration": filled(&inspect("healthy")["integrations"][0], word),
        }),
        Some("sleep-prep") => json!({
            "type": "ready", "token": word.get(..200).unwrap_or(word), "steps": [step(word)],
        }),
        Some("wake") => json!({
            "type": "awake", "was_ready": true, "lease_expired": false, "generation": 1,
            "steps": [step(word)],
        }),
        Some("jobs") => json!({"type": "jobs", "jobs": [{
            "job": 1, "argv": [word, word], "pid": 7, "state": word,
            "started_at": "2026-11-24T06:02:11Z", "ended_at": null, "exit_code": null,
            "signal": word, "timed_out": false, "output_bytes": 1,
        }]}),
        _ => filled(&inspect("unhealthy"), word),
    };
    Host::with("web", move |peer: &mut Peer| {
        peer.shake_hands();
        while let Some(request) = peer.request() {
            let mut answer = answers(&request);
            answer["id"] = request["id"].clone();
            peer.answer(&answer);
            if request["type"] == "watch" {
                let event = json!({
                    "type": "event", "at": "2026-11-24T06:02:11Z", "id": request["id"],
                });
                let mut last = event.clone();
                let busy = json!({
                    "state": word, "since": "2026-11-24T06:02:11Z", "last_busy_at": null,
                    "because": [word, word], "load1": 0.02, "runnable": 1,
                });
                let mut ended = filled(&status("healthy")["integrations"][0], word);
                ended["last_check"]["exit_code"] = Value::Null;
                ended["last_check"]["signal"] = word.into();
                for (field, value) in [
                    ("worker", busy),
                    ("integration", ended),
                    ("lifecycle", word.into()),
                    (
                        "drop_ins",
                        json!({"integrations": 1, "probes": 1, "errors": [
                            {"file": word, "message": word},
                        ]}),
                    ),
                ] {
                    let mut event = event.clone();
                    event[field] = value;
                    peer.answer(&event);
                }
                // Ends the watch.
                last["lifecycle"] = "ready".into();
                peer.answer(&last);
            }
        }
    })
}

fn step(word: &str) -> Value {
    json!({
        "step": word, "integration": word, "outcome": word, "duration_ms": 1, "detail": word,
    })
}

/// Every command that shows what a guest said.
const SHOWING: [&str; 11] = [
    "vm ls",
    "vm status",
    "vm status web",
    "vm inspect web",
    "vm ping web",
    "vm check web x --kind probe",
    "vm events web",
    "vm jobs web",
    "vm top --once",
    "vm sleep web",
    "vm wake web",
];

#[test]
fn answers_command_nothing() {
    let host = saying(EVIL);
    for format in ["table", "wide", "json", "yaml", "name"] {
        for command in SHOWING {
            let ran = host.mvmctl(&format!("{command} -v -o {format}"));
            is_harmless(&ran);
            assert!(
                !ran.stdout.is_empty() || command.contains("ping"),
                "{ran:?}"
            );
        }
    }
    let shown = host.mvmctl("vm inspect web").stdout;
    assert!(
        shown.contains(r"\u{1b}[2J\u{1b}]0;owned\u{7}\u{9b}6n"),
        "made visible: {shown}"
    );
}

#[test]
fn data_means_the_same_as_before() {
    let host = Host::with("web", answering(poisoned(&inspect("healthy"))));
    let json = host.mvmctl("vm inspect web --json").exits(0).json();
    assert_eq!(json["system"]["hostname"], EVIL);
}

#[test]
fn errors_command_nothing() {
    let error = json!({"type": "error", "code": "failed", "message": EVIL, "retryable": false});
    let host = Host::with("refuses", answering(error))
        .and("garbage", |peer: &mut Peer| {
            peer.expect_connect();
            peer.send(EVIL.as_bytes());
        })
        .and("old", |peer: &mut Peer| {
            peer.shake_hands();
            while let Some(request) = peer.request() {
                peer.answer(&if request["type"] == "hello" {
                    json!({
                        "type": "hello", "protocol": 1, "agent_version": EVIL, "profile": "prod",
                        "capabilities": [], "boot_id": "", "generation": 0, "id": request["id"],
                    })
                } else {
                    json!({
                        "type": "error", "code": "unknown-request", "message": EVIL,
                        "retryable": false, "id": request["id"],
                    })
                });
            }
        })
        .record(
            "state",
            &json!({"state": EVIL, "backend": EVIL}).to_string(),
        );
    for name in ["refuses", "garbage", "old", "state"] {
        for format in ["table", "json", "yaml"] {
            let ran = host.mvmctl(&format!("vm status {name} -v -o {format}"));
            assert!([1, 3].contains(&ran.code), "{ran:?}");
            is_harmless(&ran);
        }
    }
    is_harmless(&host.mvmctl("vm ls"));
    is_harmless(&host.mvmctl("vm events --json --timeout 2s refuses garbage old state"));
}

#[test]
fn what_is_typed_commands_nothing_either() {
    let host = Host::new();
    let output = host
        .command("vm status")
        .arg(EVIL.replace('\0', ""))
        .output()
        .unwrap();
    let ran = Ran::from(output).exits(2);
    is_harmless(&ran);
}

#[test]
fn a_flood_is_cut() {
    // An error as long as a frame allows.
    let error = json!({
        "type": "error", "code": "failed", "message": "x".repeat(250_000), "retryable": false,
    });
    let host = Host::with("web", answering(error));
    let ran = host.mvmctl("vm status web").exits(1);
    assert!(ran.stderr.len() < 3000, "{} bytes", ran.stderr.len());
    let mut probes = inspect("healthy");
    probes["probes"][0]["value"] = json!({"deep": "x".repeat(100_000)});
    let host = Host::with("web", answering(probes));
    let shown = host.mvmctl("vm inspect web").exits(0).stdout;
    assert!(shown.len() < 5000, "{} bytes", shown.len());
}

#[test]
fn names_fill_no_screens() {
    // As much as fits into a frame, with a dozen words in an answer.
    let host = saying(Box::leak("x".repeat(10_000).into_boxed_str()));
    for format in ["table", "wide"] {
        for command in SHOWING {
            let ran = host.mvmctl(&format!("{command} -o {format}"));
            let longest = ran.stdout.lines().map(str::len).max().unwrap_or(0);
            // What a check printed is shown as far as an agent keeps it.
            let most = if command.contains("check") {
                4100
            } else {
                1200
            };
            assert!(longest < most, "{command}: a line of {longest} bytes");
            assert!(
                ran.stdout.len() < 10_000,
                "{command}: {} bytes",
                ran.stdout.len()
            );
            assert!(
                ran.stderr.len() < 5000,
                "{command}: {} bytes",
                ran.stderr.len()
            );
            assert!(
                !ran.stdout.is_empty() || command.contains("ping"),
                "{ran:?}"
            );
        }
    }
}
