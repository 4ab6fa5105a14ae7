//! `vm wait`: it watches, through starts and restarts, and ends at its deadline.

use crate::host::{Host, Ran, answering, silent};
use mvm_fake_agent::{FakeAgent, Peer, ever_new_drop_ins, ever_new_names, status, well};
use serde_json::json;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::Stdio;

/// Answers `watch` with a status of that health, and gives the request's number.
fn first(peer: &mut Peer, health: &str) -> serde_json::Value {
    peer.shake_hands();
    let request = peer.request().unwrap();
    assert_eq!(request["type"], "watch");
    let mut first = status(health);
    first["id"] = request["id"].clone();
    peer.answer(&first);
    request["id"].clone()
}

#[test]
fn what_is_so_already_is_not_waited_for() {
    let host = Host::with("web", well);
    for state in ["ready", "healthy", "idle"] {
        let ran = host
            .mvmctl(&format!("vm wait web --for {state}"))
            .exits(0)
            .silently();
        assert_eq!(ran.stdout, "");
    }
    let ran = host.mvmctl("vm wait web --for ready --json").exits(0);
    assert_eq!(ran.json()["vm"], "web");
    assert_eq!(ran.json()["health"], "healthy");
}

#[test]
fn a_change_ends_it() {
    let host = Host::with("web", |peer: &mut Peer| {
        let id = first(peer, "unhealthy");
        peer.answer(&json!({
            "type": "event", "at": "2026-11-24T06:02:11Z", "id": id,
            "integration": status("healthy")["integrations"][0],
        }));
        peer.until_closed();
    });
    let ran = host
        .mvmctl("vm wait web --for healthy --json --timeout 30s")
        .exits(0);
    assert_eq!(ran.json()["health"], "healthy");
    assert_eq!(host.accepted("web"), 1, "it watched, and did not ask again");
}

#[test]
fn a_reload_has_the_status_read_anew() {
    let host = Host::with("web", |peer: &mut Peer| {
        if peer.number > 0 {
            return well(peer);
        }
        let id = first(peer, "unhealthy");
        // The sick integration may be gone now: only a new status can tell.
        peer.answer(&json!({
            "type": "event", "at": "2026-11-24T06:02:11Z", "id": id,
            "drop_ins": {"integrations": 1, "probes": 0, "errors": []},
        }));
        peer.until_closed();
    });
    // Sooner than missing heartbeats would have it dialled again.
    host.mvmctl("vm wait web --for healthy --timeout 10s")
        .exits(0);
}

#[test]
fn a_restart_is_waited_through() {
    let host = Host::with("web", |peer: &mut Peer| match peer.number {
        0 => {
            first(peer, "starting");
        }
        1..5 => peer.expect_connect(),
        _ => well(peer),
    });
    host.mvmctl("vm wait web --for healthy --timeout 30s")
        .exits(0);
}

#[test]
fn a_vm_that_is_not_up_yet_is_waited_for() {
    let host = Host::new().record("web", "{}");
    let mut child = host
        .command("vm wait web --for ready --timeout 30s -v")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    assert!(line.contains("dialling"), "{line}");
    // It has looked for the socket in vain at least once by the time of its second try.
    let mut tries = 1;
    while tries < 3 {
        line.clear();
        assert!(stderr.read_line(&mut line).unwrap() > 0);
        tries += usize::from(line.contains("dialling"));
    }
    let agent = FakeAgent::at(&host.socket("web"), well);
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    assert!(child.wait().unwrap().success(), "{rest}");
    assert_eq!(agent.accepted(), 1);
}

#[test]
fn time_runs_out() {
    let host = Host::with("sick", answering(status("unhealthy")))
        .and("silent", silent)
        .record("off", r#"{"state":"stopped"}"#)
        .record("socketless", "{}");
    let sick = host
        .mvmctl("vm wait sick --for healthy --timeout 500ms --json")
        .exits(1);
    let sick = sick
        .says("not healthy within 500ms: it is running, unhealthy")
        .says("(my-service)");
    assert_eq!(sick.json()["error"]["code"], "timed-out");
    host.mvmctl("vm wait sick --for busy --timeout 500ms")
        .exits(1)
        .says("worker idle");
    host.mvmctl("vm wait silent --for ready --timeout 300ms")
        .exits(3)
        .says("not answered yet");
    host.mvmctl("vm wait socketless --for ready --timeout 300ms")
        .exits(3)
        .says("no socket at");
    host.mvmctl("vm wait off --for ready --timeout 300ms")
        .exits(3)
        .says("the VM is stopped");
}

#[test]
fn a_vm_that_is_off_is_not_dialled_while_it_is_waited_for() {
    let host = Host::with("web", well).record("web", r#"{"state":"asleep"}"#);
    host.mvmctl("vm wait web --for ready --timeout 500ms")
        .exits(3);
    assert_eq!(host.accepted("web"), 0);
}

#[test]
fn what_will_not_mend_itself_ends_it_at_once() {
    let host = Host::with("http", |peer: &mut Peer| {
        peer.expect_connect();
        peer.send(b"HTTP/1.1 400\r\n");
    });
    host.mvmctl("vm wait nope --for ready")
        .exits(3)
        .says("no VM has that name");
    host.mvmctl("vm wait http --for ready")
        .exits(3)
        .says("is no agent");
    host.mvmctl("vm wait we!rd --for ready").exits(2);
}

#[test]
fn a_guest_about_to_be_frozen_is_let_go() {
    let host = Host::with("web", |peer: &mut Peer| {
        let id = first(peer, "unhealthy");
        peer.answer(&json!({
            "type": "event", "at": "2026-11-24T06:02:11Z", "id": id, "lifecycle": "ready",
        }));
        peer.until_closed();
    });
    host.mvmctl("vm wait web --for healthy")
        .exits(1)
        .says("put to sleep");
    assert_eq!(
        host.accepted("web"),
        1,
        "dialling a frozen guest can wedge its vsock backend"
    );
}

#[test]
fn a_guest_that_is_ready_already_is_let_go() {
    let mut ready = status("healthy");
    ready["lifecycle"] = "ready".into();
    let host = Host::with("web", answering(ready));
    host.mvmctl("vm wait web --for healthy")
        .exits(1)
        .says("put to sleep")
        .says("mvmctl vm wake web");
    let ran = host
        .mvmctl("vm events web")
        .exits(0)
        .says("web: is put to sleep, no longer watched");
    assert!(ran.stdout.starts_with("web  ready, healthy"), "{ran:?}");
    assert_eq!(host.accepted("web"), 2, "neither has dialled again");
}

#[test]
fn progress_is_told_after_a_second() {
    let host = Host::with("web", answering(status("unhealthy")));
    let ran: Ran = host.mvmctl("vm wait web --for healthy --timeout 1500ms");
    ran.exits(1).says("waiting for web to be healthy…\n");
}

#[test]
fn a_guest_that_wakes_is_not_healthy_before_its_first_check() {
    let event = |id: &serde_json::Value, field: &str, value: serde_json::Value| {
        let mut event = json!({"type": "event", "at": "2026-11-24T06:02:11Z", "id": id});
        event[field] = value;
        event
    };
    let host = Host::with("web", move |peer: &mut Peer| {
        peer.shake_hands();
        let request = peer.request().unwrap();
        let id = &request["id"];
        let mut waking = status("healthy");
        waking["id"] = id.clone();
        waking["lifecycle"] = "waking".into();
        peer.answer(&waking);
        let entry = |health: &str| status(health)["integrations"][0].clone();
        peer.answer(&event(id, "integration", entry("starting")));
        peer.answer(&event(id, "lifecycle", "running".into()));
        peer.answer(&event(id, "integration", entry("unhealthy")));
        peer.until_closed();
    });
    let late = host
        .mvmctl("vm wait web --for healthy --timeout 2s")
        .exits(1);
    late.says("not healthy within 2s: it is running, unhealthy");
}

#[test]
fn a_flood_does_not_make_it_dial_without_pause() {
    let host = Host::with("rereads", ever_new_drop_ins)
        .and("names", |peer: &mut Peer| ever_new_names(peer, 200_000))
        .and("closes", |peer: &mut Peer| {
            first(peer, "unhealthy");
        });
    for name in ["rereads", "names", "closes"] {
        let ran = host.mvmctl(&format!("vm wait {name} --for healthy --timeout 3s"));
        assert!([1, 3].contains(&ran.code), "{ran:?}");
        // Pauses that double from 50 to 100 ms, up to one or two seconds.
        let dialled = host.accepted(name);
        assert!((2..=9).contains(&dialled), "{name}: {dialled}");
    }
}

#[test]
fn one_integration_is_waited_for_and_all_of_them() {
    // As a guest comes up: without any before its drop-ins are loaded, and healthy for that.
    let host = Host::with("web", |peer: &mut Peer| {
        let health = status("healthy")["integrations"][0].clone();
        let loaded = peer.number > 0;
        peer.shake_hands();
        let request = peer.request().unwrap();
        let mut first = status(if loaded { "starting" } else { "healthy" });
        if !loaded {
            first["integrations"] = json!([]);
        }
        first["id"] = request["id"].clone();
        peer.answer(&first);
        let mut event = json!({"type": "event", "at": "2026-11-24T06:02:11Z", "id": request["id"]});
        if loaded {
            event["integration"] = health;
        } else {
            event["drop_ins"] = json!({"integrations": 1, "probes": 0, "errors": []});
        }
        peer.answer(&event);
        peer.until_closed();
    });
    for (state, connections) in [
        // Told that the drop-ins were read, it asks for the list anew.
        ("all-healthy", 2),
        ("integration:my-service", 3),
        ("healthy", 4),
    ] {
        let ran = host.mvmctl(&format!("vm wait web --for {state} --json --timeout 30s"));
        assert_eq!(ran.exits(0).json()["integrations"][0]["name"], "my-service");
        assert_eq!(host.accepted("web"), connections, "{state}");
    }
}

#[test]
fn an_integration_that_never_will_be_healthy_is_not_waited_for() {
    let host = Host::with("web", answering(status("unchecked")));
    host.mvmctl("vm wait web --for integration:my-service")
        .exits(1)
        .says("the integration my-service has no health check");
    // One that is not there may come yet.
    host.mvmctl("vm wait web --for integration:other --timeout 300ms")
        .exits(1)
        .says("not healthy in its integration other within 300ms");
    for wrong in ["integration:", "integration", "well"] {
        host.mvmctl(&format!("vm wait web --for {wrong}"))
            .exits(2)
            .says("integration:NAME");
    }
}
