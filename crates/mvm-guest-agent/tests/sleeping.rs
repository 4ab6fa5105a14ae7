//! Sleep and wake with real commands, and an agent that is killed at every point.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod common;

use common::{Agent, Settings, assert_refused, children, descriptors, folder, within};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

/// What each step of a wake comes to, for an agent that is to leave the machine alone.
const AWAKE: [&str; 8] = [
    "reseed skipped",
    "clock skipped",
    "identity skipped",
    "payload ok",
    "restore a ok",
    "restore b ok",
    "restore c ok",
    "resume ok",
];

/// An integration that writes down when its commands run, in the folder's file `log`.
fn logged(name: &str, dir: &Path, checkpoint: &str) -> Value {
    let log = dir.join("run/log").display().to_string();
    json!({
        "name": name,
        "checkpoint_cmd": format!("echo save {name} >> {log}; {checkpoint}"),
        "restore_cmd": format!("echo load {name} >> {log}"),
    })
}

fn add(dir: &Path, integration: &Value) {
    let file = format!(
        "integrations.d/{}.json",
        integration["name"].as_str().unwrap()
    );
    std::fs::write(dir.join(file), integration.to_string()).unwrap();
}

/// An agent with integrations a, b and c; `commands` adds to a checkpoint.
fn agent(commands: &[(&str, &str)]) -> Agent {
    let dir = folder(&[], &[]);
    for name in ["a", "b", "c"] {
        let more = commands
            .iter()
            .find(|(of, _)| *of == name)
            .map_or("true", |(_, more)| more);
        add(dir.path(), &logged(name, dir.path(), more));
    }
    Agent::launch(dir, Settings::default())
}

fn log(agent: &Agent) -> String {
    let text = std::fs::read_to_string(agent.path("run/log")).unwrap_or_default();
    text.lines().collect::<Vec<_>>().join(", ")
}

fn sleep(agent: &Agent, token: &str) -> Value {
    // The first drop-ins have to be loaded, as they are a moment after the agent listens.
    within(|| {
        let answer = agent.ask(&json!({"type": "sleep-prep", "token": token}));
        (answer["code"] != "busy" || !log(agent).is_empty()).then_some(answer)
    })
}

fn wake(agent: &Agent, token: &str) -> Value {
    agent.ask(&json!({"type": "wake", "token": token}))
}

/// The names of the steps, with outcome and integration.
fn steps(answer: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let steps = answer["steps"].as_array().unwrap();
    steps
        .iter()
        .map(|step| {
            let all = [&step["step"], &step["integration"], &step["outcome"]];
            let all: Vec<_> = all
                .into_iter()
                .map(text)
                .filter(|it| !it.is_empty())
                .collect();
            all.join(" ")
        })
        .collect()
}

#[test]
fn checkpoints_run_in_reverse_restores_in_order_and_each_step_is_reported() {
    let agent = agent(&[]);
    let ready = sleep(&agent, "t");
    assert_eq!(
        (&ready["type"], &ready["token"]),
        (&json!("ready"), &json!("t"))
    );
    assert_eq!(
        steps(&ready),
        [
            "drain ok",
            "checkpoint c ok",
            "checkpoint b ok",
            "checkpoint a ok",
            "sync skipped",
            "freeze skipped",
            "sync skipped",
            "drop-caches skipped"
        ]
    );
    assert_eq!(agent.status()["lifecycle"], "ready");
    let awake = wake(&agent, "t");
    assert_eq!(
        (&awake["type"], &awake["was_ready"]),
        (&json!("awake"), &json!(true))
    );
    assert_eq!(
        (&awake["generation"], &awake["lease_expired"]),
        (&json!(1), &json!(false))
    );
    assert_eq!(steps(&awake), AWAKE);
    assert_eq!(
        log(&agent),
        "save c, save b, save a, load a, load b, load c"
    );
    let generation = std::fs::read_to_string(agent.path("run/generation")).unwrap();
    assert_eq!(generation, "1\n");
    let snapshot = agent.inspect()["snapshot"].take();
    assert_eq!(snapshot["generation"], 1);
    assert!(
        snapshot["last_sleep"].is_string() && snapshot["last_wake"].is_string(),
        "{snapshot}"
    );
    assert_eq!(agent.ask(&json!({"type": "hello"}))["generation"], 1);
}

#[test]
fn a_failed_checkpoint_rolls_back_exactly_what_was_begun() {
    for (failing, expected) in [
        ("c", "save c, load c"),
        ("b", "save c, save b, load b, load c"),
        ("a", "save c, save b, save a, load a, load b, load c"),
    ] {
        let agent = agent(&[(failing, "echo disk on fire >&2; exit 3")]);
        let answer = sleep(&agent, "t");
        assert_eq!(answer["code"], "sleep-prep-failed", "{answer}");
        let message = answer["message"].as_str().unwrap();
        let expected_message =
            format!("the checkpoint of `{failing}` failed: exit code 3: disk on fire");
        assert!(message.starts_with(&expected_message), "{message}");
        assert_eq!(log(&agent), expected);
        assert!(
            steps(&answer).contains(&format!("checkpoint {failing} failed")),
            "{answer}"
        );
        assert_eq!(agent.status()["lifecycle"], "running");
        let again = agent.ask(&json!({"type": "wake", "cause": "aborted"}));
        assert_eq!(
            (&again["was_ready"], steps(&again).len()),
            (&json!(false), 0)
        );
    }
}

#[test]
fn one_that_is_not_critical_is_reported_and_the_sleep_goes_on() {
    let dir = folder(&[], &[]);
    let mut optional = logged("a", dir.path(), "exit 1");
    optional["critical"] = json!(false);
    add(dir.path(), &optional);
    let agent = Agent::launch(dir, Settings::default());
    let ready = sleep(&agent, "t");
    assert_eq!(ready["type"], "ready");
    assert!(
        steps(&ready).contains(&"checkpoint a failed".to_owned()),
        "{ready}"
    );
    wake(&agent, "t");
    assert_eq!(log(&agent), "save a, load a");
}

/// An agent that is to leave the machine alone freezes nothing.
#[test]
fn a_host_that_requires_a_freeze_is_refused_where_there_is_none() {
    let agent = agent(&[]);
    let request = json!({"type": "sleep-prep", "token": "t", "require_freeze": true});
    let answer = within(|| Some(agent.ask(&request)).filter(|answer| answer["code"] != "busy"));
    let why = "the freeze was not possible: --no-system-effects; the guest was rolled back";
    assert_refused(&answer, "sleep-prep-failed", why);
    let steps = steps(&answer);
    assert_eq!(
        steps[4..6],
        ["sync skipped", "freeze skipped"],
        "{steps:?}: nothing after it, and no thaw"
    );
    assert!(!steps.contains(&"thaw ok".to_owned()), "{steps:?}");
    let all = "save c, save b, save a, load a, load b, load c";
    assert_eq!(log(&agent), all);
    assert_eq!(agent.status()["lifecycle"], "running");
}

/// Nothing is frozen here, so that nothing is held; the host is told that the guest runs as it is.
#[test]
fn a_personalize_command_is_ended_at_its_own_timeout_and_the_wake_fails() {
    let dir = folder(&[], &[]);
    let mut hung = logged("a", dir.path(), "true");
    hung["personalize_cmd"] = json!("sleep 600");
    hung["personalize_timeout_secs"] = json!(0.2);
    add(dir.path(), &hung);
    let agent = Agent::launch(dir, Settings::default());
    sleep(&agent, "t");
    let awake = wake(&agent, "t");
    assert_refused(
        &awake,
        "failed",
        "the guest's work was not frozen, and runs",
    );
    assert_eq!(agent.status()["lifecycle"], "running");
    let steps = steps(&awake);
    let at = |step: &str| steps.iter().position(|it| it == step);
    let ended = at("personalize a timed-out");
    assert!(
        ended.is_some() && ended < at("restore a ok"),
        "{steps:?}: it is told, and not waited for"
    );
}

#[test]
fn a_passed_deadline_ends_the_command_and_rolls_back() {
    let agent = agent(&[("b", "sleep 600")]);
    let request = json!({"type": "sleep-prep", "token": "t", "deadline_secs": 0.4});
    let answer = within(|| Some(agent.ask(&request)).filter(|answer| answer["code"] != "busy"));
    assert_eq!(answer["code"], "sleep-prep-failed");
    assert!(
        steps(&answer).contains(&"checkpoint b timed-out".to_owned()),
        "{answer}"
    );
    assert_eq!(log(&agent), "save c, save b, load b, load c");
    assert_eq!(children(agent.pid()).len(), 0);
}

#[test]
fn an_agent_killed_while_preparing_runs_owed_restores_when_restarted() {
    let agent = agent(&[("b", "sleep 600")]);
    let mut host = agent.connection();
    within(|| {
        host.send(&json!({"type": "sleep-prep", "token": "t"}));
        (agent.status()["lifecycle"] == "preparing").then_some(())
    });
    within(|| log(&agent).contains("save b").then_some(()));
    let agent = agent.crash_and_restart();
    within(|| (agent.status()["lifecycle"] == "running").then_some(()));
    assert_eq!(log(&agent), "save c, save b, load b, load c");
    let agent = agent.crash_and_restart();
    within(|| (agent.status()["lifecycle"] == "running").then_some(()));
    assert_eq!(
        log(&agent),
        "save c, save b, load b, load c",
        "once and no more"
    );
}

#[test]
fn an_agent_killed_while_ready_runs_owed_restores_when_restarted() {
    let agent = agent(&[]);
    sleep(&agent, "t");
    let agent = agent.crash_and_restart();
    within(|| (agent.status()["lifecycle"] == "running").then_some(()));
    assert_eq!(
        log(&agent),
        "save c, save b, save a, load a, load b, load c"
    );
    let awake = wake(&agent, "t");
    assert_eq!(awake["was_ready"], false, "{awake}");
    assert_eq!(
        log(&agent),
        "save c, save b, save a, load a, load b, load c"
    );
}

#[test]
fn an_agent_killed_while_waking_repeats_only_the_interrupted_restore() {
    let dir = folder(&[], &[]);
    let gate = dir.path().join("run/gate");
    for name in ["a", "b"] {
        add(dir.path(), &logged(name, dir.path(), "true"));
    }
    let mut slow = logged("b", dir.path(), "true");
    let restore = slow["restore_cmd"].as_str().unwrap().to_owned();
    let waits = format!(
        "test -e {} || {{ echo stuck >> {}; sleep 600; }}; {restore}",
        gate.display(),
        dir.path().join("run/stuck").display()
    );
    slow["restore_cmd"] = json!(waits);
    add(dir.path(), &slow);
    let agent = Agent::launch(dir, Settings::default());
    sleep(&agent, "t");
    let mut host = agent.connection();
    host.send(&json!({"type": "wake", "token": "t"}));
    within(|| agent.path("run/stuck").exists().then_some(()));
    assert_eq!(agent.status()["lifecycle"], "waking");
    std::fs::write(&gate, "").unwrap();
    let agent = agent.crash_and_restart();
    within(|| (agent.status()["lifecycle"] == "running").then_some(()));
    assert_eq!(log(&agent), "save b, save a, load a, load b");
    assert_eq!(
        agent.inspect()["snapshot"]["generation"],
        1,
        "what was counted stays counted"
    );
}

#[test]
fn a_lease_ends_the_sleep_and_a_later_wake_says_so() {
    let agent = agent(&[]);
    let request = json!({"type": "sleep-prep", "token": "t", "lease_secs": 0.8});
    let mut watch = agent.connection();
    watch.ask(&json!({"type": "watch"}));
    within(|| Some(agent.ask(&request)).filter(|answer| answer["type"] == "ready"));
    while watch.event("lifecycle")["lifecycle"] != "running" {}
    assert_eq!(
        log(&agent),
        "save c, save b, save a, load a, load b, load c"
    );
    let awake = wake(&agent, "t");
    assert_eq!(
        (&awake["was_ready"], &awake["lease_expired"]),
        (&json!(false), &json!(true))
    );
}

#[test]
fn one_of_two_hosts_wins_and_a_lost_answer_is_repeated() {
    let agent = agent(&[]);
    let first = sleep(&agent, "one");
    assert_eq!(
        agent.ask(&json!({"type": "sleep-prep", "token": "two"}))["code"],
        "busy"
    );
    assert_eq!(agent.ask(&json!({"type": "sleep-prep"}))["code"], "busy");
    assert_eq!(wake(&agent, "two")["code"], "wrong-token");
    assert_eq!(sleep(&agent, "one"), first);
    let awake = wake(&agent, "one");
    assert_eq!(wake(&agent, "one"), awake);
    assert_eq!(
        log(&agent),
        "save c, save b, save a, load a, load b, load c"
    );
}

#[test]
fn a_sleep_without_a_token_gets_one() {
    let agent = agent(&[]);
    within(|| Some(agent.ask(&json!({"type": "reload"}))).filter(|it| it["type"] == "reloaded"));
    let ready = agent.ask(&json!({"type": "sleep-prep"}));
    let token = ready["token"].as_str().unwrap();
    assert_eq!(wake(&agent, token)["was_ready"], true);
}

#[test]
fn no_check_runs_while_asleep_and_a_wake_causes_no_burst() {
    let dir = folder(&[], &[]);
    let runs = dir.path().join("run/runs");
    let failing = format!("echo >> {}; false", runs.display());
    let it = json!({"name": "it", "health_cmd": failing, "health_interval_secs": 0.1});
    add(dir.path(), &it);
    add(
        dir.path(),
        &json!({"name": "slow", "health_cmd": "sleep 600", "health_interval_secs": 1}),
    );
    let agent = Agent::launch(dir, Settings::default());
    within(|| (agent.status()["integrations"][0]["checks"].as_u64()? > 3).then_some(()));
    let ready = sleep(&agent, "t");
    assert_eq!(steps(&ready).first().map(String::as_str), Some("drain ok"));
    let detail = ready["steps"][0]["detail"].as_str().unwrap();
    assert!(
        detail.starts_with("ended "),
        "the slow check was ended: {detail}"
    );
    let count = || std::fs::read_to_string(&runs).unwrap().len();
    let (before, status) = (count(), agent.status());
    let refused = agent.ask(&json!({"type": "check", "kind": "integration", "name": "it"}));
    assert_eq!(refused["code"], "busy");
    assert_eq!(agent.ask(&json!({"type": "reload"}))["code"], "busy");
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(count(), before, "a check ran while the guest was ready");
    assert_eq!(agent.status()["integrations"], status["integrations"]);
    assert_eq!(
        status["integrations"][1]["failures"], 0,
        "an ended check is no failure"
    );
    wake(&agent, "t");
    within(|| (count() > before + 3).then_some(()));
}

#[test]
fn a_hundred_sleeps_leak_nothing() {
    let agent = agent(&[]);
    sleep(&agent, "warm");
    wake(&agent, "warm");
    let before = descriptors(agent.pid());
    for round in 0..100 {
        let token = format!("t{round}");
        assert_eq!(
            agent.ask(&json!({"type": "sleep-prep", "token": token}))["type"],
            "ready"
        );
        assert_eq!(wake(&agent, &token)["was_ready"], true);
    }
    within(|| (descriptors(agent.pid()) <= before).then_some(()));
    assert_eq!(children(agent.pid()).len(), 0);
    assert_eq!(agent.inspect()["snapshot"]["generation"], 101);
}

#[test]
fn an_unwritable_journal_starts_no_checkpoint() {
    let agent = agent(&[]);
    within(|| Some(agent.ask(&json!({"type": "reload"}))).filter(|it| it["type"] == "reloaded"));
    // A folder in its place cannot be replaced by a file.
    std::fs::create_dir(agent.path("run/journal.json")).unwrap();
    let answer = agent.ask(&json!({"type": "sleep-prep"}));
    assert_refused(&answer, "sleep-prep-failed", "the journal cannot be kept");
    assert_eq!(log(&agent), "", "nothing was begun, and nothing is owed");
    assert_eq!(agent.status()["lifecycle"], "running");
}

/// A debt is paid whether or not that can be written down, and is written down when it can be.
#[test]
fn an_unwritable_journal_does_not_stop_a_wake() {
    let agent = agent(&[]);
    sleep(&agent, "t");
    let journal = agent.path("run/journal.json");
    std::fs::remove_file(&journal).unwrap();
    std::fs::create_dir(&journal).unwrap();
    let awake = wake(&agent, "t");
    assert_eq!(steps(&awake), AWAKE);
    let all = "save c, save b, save a, load a, load b, load c";
    assert_eq!(log(&agent), all);
    std::fs::remove_dir(&journal).unwrap();
    within(|| std::fs::read(&journal).ok());
    let agent = agent.crash_and_restart();
    within(|| (agent.status()["lifecycle"] == "running").then_some(()));
    assert_eq!(log(&agent), all, "nothing is owed any more");
}
