//! Drop-ins that come and go, and hosts that watch.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod common;

use common::{Agent, Settings, folder, within};
use serde_json::{Value, json};
use std::process::Command;

fn hello(name: &str) -> Value {
    json!({"name": name, "health_cmd": "true", "health_interval_secs": 86400})
}

fn add(agent: &Agent, file: &str, content: &str) {
    // As a careful writer does it: beside, then renamed.
    std::fs::write(agent.path("new"), content).unwrap();
    std::fs::rename(agent.path("new"), agent.path(file)).unwrap();
}

#[test]
fn a_changed_folder_is_reloaded_and_unchanged_checks_keep_their_state() {
    let agent = Agent::start(&[hello("a")], &[]);
    let before = agent.check("a");
    let mut watch = agent.connection();
    assert_eq!(
        watch.ask(&json!({"type": "watch", "id": 9}))["type"],
        "status"
    );
    add(&agent, "integrations.d/b.json", &hello("b").to_string());
    let event = watch.event("drop_ins");
    assert_eq!(
        (&event["id"], &event["drop_ins"]["integrations"]),
        (&json!(9), &json!(2))
    );
    assert_eq!(watch.event("integration")["integration"]["name"], "b");
    assert_eq!(agent.status()["integrations"][0], before);
    // What changed begins anew.
    let changed = json!({"name": "a", "health_cmd": "false", "health_interval_secs": 86400});
    add(&agent, "integrations.d/a.json", &changed.to_string());
    let event = watch.event("integration");
    assert_eq!(
        (
            &event["integration"]["name"],
            &event["integration"]["checks"]
        ),
        (&json!("a"), &json!(1))
    );
    assert_eq!(event["integration"]["health"], "unhealthy");
    assert_eq!(agent.status()["health"], "unhealthy");
}

/// A deployment's `current` link: rewritten where it leads, and led elsewhere.
#[test]
fn a_drop_in_behind_a_link_is_read_again_when_its_file_changes() {
    let dir = folder(&[], &[]);
    let at = |name: &str| dir.path().join(name);
    for (version, name) in [("v1", "one"), ("v2", "two")] {
        std::fs::create_dir_all(at(version)).unwrap();
        std::fs::write(at(&format!("{version}/it.json")), hello(name).to_string()).unwrap();
    }
    std::os::unix::fs::symlink("v1", at("current")).unwrap();
    std::os::unix::fs::symlink("../current/it.json", at("integrations.d/it.json")).unwrap();
    let agent = Agent::launch(dir, Settings::default());
    let at = |name: &str| agent.path(name);
    let named = |name: &str| {
        let changed = std::time::Instant::now();
        within(|| (agent.status()["integrations"][0]["name"] == name).then_some(()));
        changed.elapsed()
    };
    named("one");
    std::fs::write(at("v1/it.json"), hello("rewritten").to_string()).unwrap();
    let took = named("rewritten");
    assert!(
        took.as_secs_f64() < 3.0,
        "a quarter of a second, and no poll: {took:?}"
    );
    std::os::unix::fs::symlink("v2", at("next")).unwrap();
    std::fs::rename(at("next"), at("current")).unwrap();
    named("two");
    std::fs::write(at("v2/it.json"), hello("again").to_string()).unwrap();
    named("again");
}

#[test]
fn a_rejected_file_is_listed_with_its_reason() {
    let agent = Agent::start(&[hello("a")], &[]);
    add(&agent, "integrations.d/z.json", "{\n\"name\": 7}");
    let reloaded = agent.ask(&json!({"type": "reload"}));
    assert_eq!(reloaded["integrations"], 1);
    let errors = agent.inspect()["agent"]["drop_in_errors"].take();
    assert_eq!(errors, reloaded["errors"]);
    assert_eq!(errors[0]["file"], "integrations.d/z.json");
    assert!(
        errors[0]["message"]
            .as_str()
            .unwrap()
            .starts_with("line 2: field `name`"),
        "{errors}"
    );
}

#[test]
fn hangup_reloads() {
    let agent = Agent::start(&[], &[]);
    let mut watch = agent.connection();
    watch.ask(&json!({"type": "watch"}));
    agent.signal(rustix::process::Signal::HUP);
    assert_eq!(watch.event("drop_ins")["drop_ins"]["integrations"], 0);
}

#[test]
fn a_check_that_is_not_loaded_is_not_found() {
    let agent = Agent::start(&[json!({"name": "quiet"})], &[]);
    let ask = |kind, name| agent.ask(&json!({"type": "check", "kind": kind, "name": name}));
    let quiet = ask("integration", "quiet");
    assert_eq!(quiet["code"], "not-found");
    assert!(
        quiet["message"]
            .as_str()
            .unwrap()
            .contains("neither health_cmd nor health_argv"),
        "{quiet}"
    );
    let missing = ask("probe", "quiet");
    assert!(
        missing["message"]
            .as_str()
            .unwrap()
            .contains("probe `quiet` is not loaded"),
        "{missing}"
    );
    let status = agent.status();
    assert_eq!(status["integrations"][0]["health"], "unchecked");
    assert_eq!(status["health"], "healthy");
}

#[test]
fn a_waiter_for_a_removed_check_is_answered() {
    let slow = json!({"name": "slow", "command": "sleep 600", "timeout_secs": 600});
    let agent = Agent::start(&[], &[slow]);
    let mut connection = agent.connection();
    connection.send(&json!({"type": "check", "kind": "probe", "name": "slow"}));
    // The request is in once one that came later on is answered.
    agent.ask(&json!({"type": "status"}));
    std::fs::remove_file(agent.path("probes.d/slow.json")).unwrap();
    agent.ask(&json!({"type": "reload"}));
    let answer = connection.answer().unwrap();
    assert_eq!(answer["code"], "not-found", "{answer}");
}

#[test]
fn only_a_changed_verdict_is_an_event() {
    let dir = folder(&[], &[]);
    let flag = dir.path().join("run/flag");
    let it = json!({"name": "it", "health_cmd": format!("test -e {}", flag.display()),
                    "health_interval_secs": 0.05, "startup_grace_secs": 0});
    std::fs::write(dir.path().join("integrations.d/it.json"), it.to_string()).unwrap();
    let agent = Agent::launch(dir, Settings::flags(&["--busy-signals", "session"]));
    within(|| (agent.status()["health"] == "unhealthy").then_some(()));
    let mut watch = agent.connection();
    watch.ask(&json!({"type": "watch", "heartbeat_secs": 0.2}));
    // Several checks end between two heartbeats, and none is news.
    assert_eq!(watch.answer().unwrap()["heartbeat"], true);
    assert_eq!(watch.answer().unwrap()["heartbeat"], true);
    std::fs::write(&flag, "").unwrap();
    let event = watch.event("integration");
    assert_eq!(event["integration"]["health"], "healthy", "{event}");
    std::fs::remove_file(&flag).unwrap();
    assert_eq!(
        watch.event("integration")["integration"]["health"],
        "unhealthy"
    );
}

#[test]
fn a_file_in_busy_d_makes_the_guest_busy() {
    let flags = [
        "--busy-signals",
        "inhibit",
        "--sample-interval-secs",
        "0.05",
    ];
    let agent = Agent::launch(folder(&[], &[]), Settings::flags(&flags));
    let mut watch = agent.connection();
    assert_eq!(
        watch.ask(&json!({"type": "watch"}))["worker"]["state"],
        "idle"
    );
    std::fs::write(agent.path("run/busy.d/job"), std::process::id().to_string()).unwrap();
    let worker = watch.event("worker")["worker"].take();
    assert_eq!(
        (&worker["state"], &worker["because"]),
        (&json!("busy"), &json!(["inhibit"]))
    );
    std::fs::remove_file(agent.path("run/busy.d/job")).unwrap();
    let worker = watch.event("worker")["worker"].take();
    assert_eq!(worker["state"], "idle");
    assert!(worker["last_busy_at"].is_string());
}

#[test]
fn a_watching_connection_takes_no_other_request() {
    let agent = Agent::start(&[], &[]);
    let mut watch = agent.connection();
    watch.ask(&json!({"type": "watch", "heartbeat_secs": 60}));
    watch.send(&json!({"type": "ping", "id": 5}));
    let answer = loop {
        let answer = watch.answer().unwrap();
        if answer["type"] != "event" {
            break answer;
        }
    };
    assert_eq!(
        (&answer["code"], &answer["id"]),
        (&json!("bad-request"), &json!(5))
    );
}

#[test]
fn ten_thousand_drop_ins_are_loaded_and_fit_into_an_answer() {
    let dir = folder(&[], &[]);
    for n in 0..10_000 {
        let file = dir.path().join(format!("integrations.d/{n:05}.json"));
        std::fs::write(file, json!({"name": format!("n{n}")}).to_string()).unwrap();
    }
    let agent = Agent::launch(dir, Settings::default());
    assert_eq!(
        agent.ask(&json!({"type": "reload"}))["integrations"],
        10_000
    );
    let status = agent.status();
    let shown = status["integrations"].as_array().unwrap().len();
    assert!(shown >= 500, "{shown}");
    assert_eq!(
        shown as u64 + status["integrations_omitted"].as_u64().unwrap(),
        10_000
    );
}

#[test]
fn check_config_prints_every_problem_and_exits_1() {
    let dir = folder(&[hello("a")], &[json!({"name": "p", "command": "df"})]);
    let check = || {
        let output = Command::new(env!("CARGO_BIN_EXE_mvm-guest-agent"))
            .arg("--check-config")
            .arg(dir.path())
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
        )
    };
    assert_eq!(
        check(),
        (
            Some(0),
            "1 integrations and 1 probes, no problem\n".to_owned()
        )
    );
    let write = |file: &str, content: &str| std::fs::write(dir.path().join(file), content).unwrap();
    write(
        "integrations.d/b.json",
        "{\"name\": \"b\",\n\"helth_cmd\": \"x\"}",
    );
    write("probes.d/q.json", "{\"name\": \"q\"}");
    write("agent.json", "{\n\n\"lissen\": 1}");
    let (code, text) = check();
    assert_eq!(code, Some(1));
    for expected in [
        "integrations.d/b.json:2: unknown field `helth_cmd`",
        "probes.d/q.json:1: missing field `command`",
        "agent.json:3: unknown field `lissen`",
    ] {
        assert!(text.contains(expected), "{text}");
    }
    assert_eq!(text.lines().count(), 3, "{text}");
    for number in ["1e300", "-1e300", &"9".repeat(300)] {
        for field in [
            "health_interval_secs",
            "startup_grace_secs",
            "failure_threshold",
        ] {
            let file = format!("{{\"name\": \"b\", \"{field}\": {number}}}");
            write("integrations.d/b.json", &file);
            write(
                "agent.json",
                &format!("{{\"busy_threshold\": -{number}}}").replace("--", "-"),
            );
            let (_, text) = check();
            let longest = text
                .split(|c: char| !c.is_ascii_digit())
                .map(str::len)
                .max();
            assert!(longest < Some(30), "{text}");
        }
    }
}

#[test]
fn a_second_agent_with_the_same_run_directory_is_refused() {
    let agent = Agent::start(&[], &[]);
    let output = Command::new(env!("CARGO_BIN_EXE_mvm-guest-agent"))
        .args([
            "--no-system-effects",
            "--listen",
            "unix:run/other.sock",
            "--run-dir",
            "run",
        ])
        .current_dir(agent.dir.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("another agent uses it"), "{text}");
    assert_eq!(agent.ask(&json!({"type": "ping"}))["type"], "pong");
}

/// It may be frozen at any moment, and sends nothing more.
#[test]
fn a_guest_that_is_ready_sends_no_heartbeat() {
    let agent = Agent::start(&[], &[]);
    let mut watch = agent.connection();
    watch.ask(&json!({"type": "watch", "heartbeat_secs": 0.05}));
    watch.event("heartbeat");
    let ready = within(|| {
        let answer = agent.ask(&json!({"type": "sleep-prep", "token": "t"}));
        (answer["type"] == "ready").then_some(answer)
    });
    assert_eq!(ready["token"], "t");
    while watch.event("lifecycle")["lifecycle"] != "ready" {}
    // As long as five heartbeats.
    std::thread::sleep(std::time::Duration::from_millis(250));
    assert!(watch.is_silent());
    let awake = agent.ask(&json!({"type": "wake", "token": "t", "cause": "aborted"}));
    assert_eq!(awake["type"], "awake");
    watch.event("heartbeat");
}
