//! `vm check`: which of the two kinds it is, and what the run was worth.

use crate::host::Host;
use mvm_fake_agent::{Peer, inspect, well};
use serde_json::{Value, json};

/// An agent that answers `inspect` with this, and each `check` with what `checked` makes of it.
fn checking(
    inspect: Value,
    checked: impl Fn(&Value) -> Value + Send + Sync + 'static,
) -> impl Fn(&mut Peer) + Send + Sync + 'static {
    move |peer| {
        peer.shake_hands();
        while let Some(request) = peer.request() {
            let mut answer = match request["type"].as_str() {
                Some("inspect") => inspect.clone(),
                _ => checked(&request),
            };
            answer["id"] = request["id"].clone();
            peer.answer(&answer);
        }
    }
}

fn probe() -> Value {
    json!({"type": "checked", "probe": inspect("healthy")["probes"][0]})
}

fn not_found() -> Value {
    json!({"type": "error", "code": "not-found", "message": "no such thing", "retryable": false})
}

#[test]
fn the_kind_is_found() {
    let host = Host::with("web", well);
    let ran = host
        .mvmctl("vm check web my-service --json")
        .exits(0)
        .silently();
    let mut expected = json!({"vm": "web"});
    expected["integration"] = inspect("healthy")["integrations"][0].clone();
    assert_eq!(ran.json(), expected);
    let shown = host
        .mvmctl("vm check web disk-usage")
        .exits(0)
        .silently()
        .stdout;
    assert!(
        shown.starts_with("PROBE       OK   VALUE  LAST CHECK     RUN\ndisk-usage  yes  42%"),
        "{shown}"
    );
    assert!(
        shown.ends_with("\n\nok\n"),
        "what it printed, whole: {shown}"
    );
}

#[test]
fn a_typo_gets_the_nearest_check() {
    let host = Host::with("web", well);
    let ran = host
        .mvmctl("vm check web my-servcie --json")
        .exits(1)
        .says("did you mean `my-service`?");
    assert_eq!(ran.json()["error"]["code"], "not-found");
    host.mvmctl("vm check web backup")
        .exits(1)
        .says("mvmctl vm inspect web");
}

#[test]
fn one_name_for_both_has_to_be_told_apart() {
    let mut both = inspect("healthy");
    both["probes"][0]["name"] = "my-service".into();
    let host = Host::with(
        "web",
        checking(both, |request| {
            assert_eq!(request["kind"], "probe");
            probe()
        }),
    );
    host.mvmctl("vm check web my-service")
        .exits(2)
        .says("--kind integration or --kind probe");
    host.mvmctl("vm check web my-service --kind probe").exits(0);
}

#[test]
fn with_a_kind_nothing_else_is_asked() {
    let host = Host::with("web", |peer: &mut Peer| {
        peer.shake_hands();
        let request = peer.request().unwrap();
        assert_eq!(request["type"], "check");
        let mut answer = not_found();
        answer["id"] = request["id"].clone();
        peer.answer(&answer);
        peer.until_closed();
    });
    host.mvmctl("vm check web nothing --kind integration")
        .exits(1)
        .says("no such thing");
}

#[test]
fn a_check_beyond_those_that_are_listed_is_found() {
    let mut crowded = inspect("healthy");
    crowded["probes_omitted"] = 500.into();
    let host = Host::with(
        "web",
        checking(crowded, |request| {
            if request["kind"] == "probe" && request["name"] == "beyond" {
                probe()
            } else {
                not_found()
            }
        }),
    );
    host.mvmctl("vm check web beyond").exits(0);
    host.mvmctl("vm check web nowhere")
        .exits(1)
        .says("neither an integration nor a probe");
}

#[test]
fn a_failed_run_is_bad_whatever_the_verdict() {
    let run = |name: &str, change: fn(&mut Value)| {
        let mut entry = inspect("healthy")["integrations"][0].clone();
        change(&mut entry);
        let name = name.to_owned();
        let checked = move |_: &Value| json!({"type": "checked", "integration": entry});
        let host = Host::with(&name, checking(inspect("healthy"), checked));
        host.mvmctl(&format!("vm check {name} my-service"))
    };
    // One failure of three that it takes to be unhealthy.
    let ran = run("web", |entry| entry["last_check"]["exit_code"] = 7.into()).exits(1);
    assert!(ran.stdout.contains("exit 7 after 11ms"), "{}", ran.stdout);
    let ran = run("web", |entry| {
        entry["last_check"]["timed_out"] = true.into();
    })
    .exits(1);
    assert!(
        ran.stdout.contains("timed out after 11ms"),
        "{}",
        ran.stdout
    );
    let ran = run("web", |entry| {
        entry["last_check"]["exit_code"] = Value::Null;
        entry["last_check"]["signal"] = "SEGV".into();
        entry["last_check"]["truncated"] = true.into();
    });
    let shown = ran.exits(1).stdout;
    assert!(shown.contains("signal SEGV after 11ms"), "{shown}");
    assert!(
        shown.ends_with("\n\n…\nok\n"),
        "that it was cut is shown: {shown}"
    );
    // A success that is not enough yet.
    run("web", |entry| entry["health"] = "unhealthy".into()).exits(1);
    run("web", |entry| entry["health"] = "starting".into()).exits(0);
}
