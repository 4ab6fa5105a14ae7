//! `vm events`, `vm wait` and `vm attach` follow a VM over its sleeps and to its end.

use crate::host::{Host, Ran};
use mvm_fake_agent::{Peer, status, well};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Answers `watch` with a status of that health, and gives the request's number.
fn watched(peer: &mut Peer, health: &str) -> Value {
    peer.shake_hands();
    let id = peer.request().unwrap()["id"].clone();
    let mut first = status(health);
    first["id"] = id.clone();
    peer.answer(&first);
    id
}

/// Says that the guest is ready to be frozen.
fn ready(peer: &mut Peer, id: &Value) {
    peer.answer(&json!({
        "type": "event", "at": "2026-11-24T06:02:11.123Z", "id": id, "lifecycle": "ready",
    }));
}

fn begin(host: &Host, arguments: &str) -> (Child, BufReader<ChildStdout>) {
    let mut command = host.command(arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    (child, stdout)
}

fn line(stdout: &mut BufReader<ChildStdout>) -> Value {
    let mut line = String::new();
    assert!(stdout.read_line(&mut line).unwrap() > 0, "it has ended");
    serde_json::from_str(&line).unwrap()
}

fn interrupt(child: &Child) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
}

#[test]
fn events_go_on_over_a_snapshot_after_which_the_vm_runs_on() {
    let host = Host::with("web", |peer: &mut Peer| {
        let id = watched(peer, "healthy");
        if peer.number == 0 {
            ready(peer, &id);
        }
        peer.until_closed();
    })
    .record("web", r#"{"state":"running"}"#);
    let (mut child, mut stdout) = begin(&host, "vm events web --json");
    assert_eq!(line(&mut stdout)["lifecycle"], "running");
    assert_eq!(line(&mut stdout)["lifecycle"], "ready");
    // It has let go, or will, before it sees this.
    host.write_record("web", r#"{"state":"asleep"}"#);
    assert_eq!(line(&mut stdout)["error"]["code"], "not-running");
    assert_eq!(host.accepted("web"), 1, "a frozen guest is not dialled");
    host.write_record("web", r#"{"state":"running"}"#);
    assert_eq!(line(&mut stdout)["lifecycle"], "running");
    interrupt(&child);
    child.wait().unwrap();
}

#[test]
fn a_guest_that_runs_on_and_is_not_woken_yet_is_waited_for() {
    let host = Host::with("web", |peer: &mut Peer| {
        if (1..4).contains(&peer.number) {
            // The VM runs on, and its host has not said wake yet.
            peer.shake_hands();
            let request = peer.request().unwrap();
            let mut first = status("healthy");
            first["lifecycle"] = "ready".into();
            peer.reply(&request, first);
        } else {
            let id = watched(peer, "healthy");
            if peer.number == 0 {
                ready(peer, &id);
            }
        }
        peer.until_closed();
    })
    .record("web", r#"{"state":"running"}"#);
    let (mut child, mut stdout) = begin(&host, "vm events web --json");
    assert_eq!(line(&mut stdout)["lifecycle"], "running");
    assert_eq!(line(&mut stdout)["lifecycle"], "ready");
    host.write_record("web", r#"{"state":"asleep"}"#);
    assert_eq!(line(&mut stdout)["error"]["code"], "not-running");
    let begun = Instant::now();
    host.write_record("web", r#"{"state":"running"}"#);
    while line(&mut stdout)["lifecycle"] != "running" {}
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    interrupt(&child);
    child.wait().unwrap();
}

#[test]
fn events_go_on_over_stop_and_start() {
    let host = Host::with("web", |peer: &mut Peer| {
        watched(peer, "healthy");
        peer.until_closed();
    })
    .record("web", r#"{"state":"running"}"#);
    let (mut child, mut stdout) = begin(&host, "vm events web --json");
    for _ in 0..3 {
        assert_eq!(line(&mut stdout)["lifecycle"], "running");
        // The record tells first: the connection is still open.
        host.write_record("web", r#"{"state":"stopped"}"#);
        let stopped = line(&mut stdout);
        assert_eq!(stopped["error"]["code"], "not-running");
        assert_eq!(stopped["error"]["retryable"], true);
        host.write_record("web", r#"{"state":"running"}"#);
    }
    assert_eq!(line(&mut stdout)["lifecycle"], "running");
    interrupt(&child);
    child.wait().unwrap();
    assert_eq!(host.accepted("web"), 4);
}

#[test]
fn events_of_all_go_on_with_one_that_wakes_later_once_it_was_told() {
    let watch = |peer: &mut Peer| {
        watched(peer, "healthy");
        peer.until_closed();
    };
    let host = Host::with("web", watch)
        .and("asleep", watch)
        .record("web", r#"{"state":"running"}"#)
        .record("asleep", r#"{"state":"asleep"}"#);
    let (mut child, mut stdout) = begin(&host, "vm events --json");
    assert_eq!(line(&mut stdout)["vm"], "web");
    host.write_record("asleep", r#"{"state":"running"}"#);
    let woken = line(&mut stdout);
    assert_eq!(woken["vm"], "asleep");
    assert_eq!(woken["lifecycle"], "running");
    // Another of its run is none that is not followed yet.
    host.write_record("asleep", r#"{"state":"running","pinned":true}"#);
    host.write_record("web", r#"{"state":"stopped"}"#);
    assert_eq!(line(&mut stdout)["vm"], "web");
    interrupt(&child);
    child.wait().unwrap();
    assert_eq!(host.accepted("asleep"), 1);
}

/// A record of mvmctl's own, of a VM whose VMM is that process.
fn of_mvmctl(pid: u32, start_ticks: u64) -> String {
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    json!({
        "version": 1, "name": "web", "backend": "local", "state": "running", "image": null,
        "cpus": 1, "memory_mib": 64, "port": 52, "accelerator": null, "boot_id": boot_id.trim(),
        "processes": [{"role": "agent", "pid": pid, "start_ticks": start_ticks}],
    })
    .to_string()
}

/// A process in a VMM's place, and the record of its VM.
fn vmm() -> (Child, String) {
    let vmm = std::process::Command::new("sleep")
        .arg("600")
        .spawn()
        .unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", vmm.id())).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let start_ticks = fields.split(' ').nth(19).unwrap().parse().unwrap();
    let record = of_mvmctl(vmm.id(), start_ticks);
    (vmm, record)
}

#[test]
fn a_vm_that_has_ended_by_itself_ends_what_follows_it() {
    for (arguments, code) in [
        ("vm events web --json", 3),
        ("vm wait web --for healthy --json", 3),
    ] {
        let (mut vmm, record) = vmm();
        let (tell, is_watched) = std::sync::mpsc::channel();
        let tell = std::sync::Mutex::new(tell);
        let host = Host::with("web", move |peer: &mut Peer| {
            watched(peer, "starting");
            tell.lock().unwrap().send(()).unwrap();
            peer.until_closed();
        })
        .record("web", &record);
        let mut command = host.command(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        is_watched.recv().unwrap();
        vmm.kill().unwrap();
        vmm.wait().unwrap();
        host.agent("web").hang_up();
        let ran = Ran::from(child.wait_with_output().unwrap()).exits(code);
        let last = ran.stdout.lines().last().unwrap();
        let last: Value = serde_json::from_str(last).unwrap();
        assert_eq!(last["error"]["code"], "vm-ended", "{ran:?}");
        assert_eq!(last["error"]["retryable"], false);
        ran.says("has ended by itself").says("mvmctl vm logs web");
    }
}

#[test]
fn a_wait_goes_on_over_a_snapshot_and_over_stop_and_start() {
    let (tell, is_watched) = std::sync::mpsc::channel();
    let tell = std::sync::Mutex::new(tell);
    let host = Host::with("web", move |peer: &mut Peer| match peer.number {
        0 => {
            let id = watched(peer, "unhealthy");
            ready(peer, &id);
            peer.until_closed();
        }
        1 => {
            watched(peer, "unhealthy");
            tell.lock().unwrap().send(()).unwrap();
            peer.until_closed();
        }
        _ => well(peer),
    })
    .record("web", r#"{"state":"running"}"#);
    let (child, _stdout) = begin(&host, "vm wait web --for healthy --timeout 30s");
    host.agent("web").until_closed(1);
    host.write_record("web", r#"{"state":"asleep"}"#);
    host.write_record("web", r#"{"state":"running"}"#);
    // A connection that is let go of before it has watched is closed as well, and says less.
    is_watched.recv().unwrap();
    host.write_record("web", r#"{"state":"stopped"}"#);
    host.agent("web").until_closed(2);
    assert_eq!(host.accepted("web"), 2, "a stopped VM is not dialled");
    host.write_record("web", r#"{"state":"running"}"#);
    Ran::from(child.wait_with_output().unwrap()).exits(0);
}

#[test]
fn one_of_all_that_is_removed_is_no_failure() {
    for name in ["", "web"] {
        let host = Host::with("web", |peer: &mut Peer| {
            watched(peer, "healthy");
            peer.until_closed();
        })
        .record("web", r#"{"state":"running"}"#);
        let (child, mut stdout) = begin(&host, &format!("vm events {name} --json"));
        assert_eq!(line(&mut stdout)["lifecycle"], "running");
        std::fs::remove_dir_all(host.socket("web").parent().unwrap()).unwrap();
        assert_eq!(line(&mut stdout)["error"]["code"], "no-such-vm");
        Ran::from(child.wait_with_output().unwrap())
            .exits(if name.is_empty() { 0 } else { 3 })
            .says("web: it was removed");
    }
}

#[test]
fn events_of_all_do_not_dial_a_restored_guest_before_it_was_told() {
    let is_told = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&is_told);
    let watch = |peer: &mut Peer| {
        watched(peer, "healthy");
        peer.until_closed();
    };
    let host = Host::with("other", watch)
        .and("later", watch)
        .and("web", move |peer: &mut Peer| {
            let health = if seen.load(Ordering::SeqCst) {
                "healthy"
            } else {
                "unhealthy"
            };
            watched(peer, health);
            peer.until_closed();
        })
        .record("other", r#"{"state":"running"}"#)
        .record("later", r#"{"state":"stopped"}"#)
        .record("web", r#"{"state":"stopped"}"#);
    let (mut child, mut stdout) = begin(&host, "vm events --json");
    assert_eq!(line(&mut stdout)["vm"], "other");
    let (mut vmm, told) = vmm();
    let mut untold: Value = serde_json::from_str(&told).unwrap();
    untold["unwoken"] = json!({"snapshot": "/snapshots/web", "clone": true, "payload": false});
    host.write_record("web", &untold.to_string());
    // When another that runs since is followed, this one was seen.
    host.write_record("later", r#"{"state":"running"}"#);
    assert_eq!(line(&mut stdout)["vm"], "later");
    is_told.store(true, Ordering::SeqCst);
    host.write_record("web", &told);
    let status = line(&mut stdout);
    assert_eq!(
        (&status["vm"], &status["health"]),
        (&"web".into(), &"healthy".into())
    );
    interrupt(&child);
    child.wait().unwrap();
    vmm.kill().unwrap();
    vmm.wait().unwrap();
}
