//! A restore command has a witness, which tells of its end even if the agent does not live to see it.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod common;

use common::{Agent, As, Settings, children, folder, within};
use rustix::process::{Pid, Signal, WaitOptions, waitpid};
use serde_json::{Value, json};

/// An agent with one integration, asleep. Commands run in the agent's run directory.
fn asleep(restore: &str, user: As) -> Agent {
    let dir = folder(&[], &[]);
    let run = dir.path().join("run").display().to_string();
    let integration = json!({
        "name": "a",
        "checkpoint_cmd": "true",
        "restore_cmd": format!("cd {run}; {restore}"),
        "restore_timeout_secs": 1,
    });
    std::fs::write(
        dir.path().join("integrations.d/a.json"),
        integration.to_string(),
    )
    .unwrap();
    let agent = Agent::launch(dir, Settings::user(user));
    within(|| {
        let answer = agent.ask(&json!({"type": "sleep-prep", "token": "t"}));
        (answer["steps"][1]["step"] == "checkpoint").then_some(())
    });
    agent
}

fn log(agent: &Agent) -> String {
    let text = std::fs::read_to_string(agent.path("run/log")).unwrap_or_default();
    text.lines().collect::<Vec<_>>().join(", ")
}

/// The step of the restore command in an answer to a wake.
fn restored(agent: &Agent) -> Value {
    let awake = agent.ask(&json!({"type": "wake", "token": "t"}));
    let mut steps = awake["steps"].as_array().unwrap().iter();
    steps
        .find(|step| step["step"] == "restore")
        .unwrap()
        .clone()
}

fn is_running(agent: &Agent) {
    within(|| (agent.status()["lifecycle"] == "running").then_some(()));
}

/// The number that a command has written into a file.
fn number(agent: &Agent, file: &str) -> Pid {
    within(|| {
        let text = std::fs::read_to_string(agent.path("run").join(file)).ok()?;
        Pid::from_raw(text.strip_suffix('\n')?.parse().ok()?)
    })
}

/// Whether a process has ended, whoever has taken its status or has not.
fn has_ended(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid()));
    stat.is_ok_and(|stat| stat.contains(") Z "))
        || !std::path::Path::new(&format!("/proc/{}", pid.as_raw_pid())).exists()
}

/// Wakes the guest, and has the agent stand still as soon as the restore command is under way.
fn wake_and_stop(agent: &Agent) -> Pid {
    let mut host = agent.connection();
    host.send(&json!({"type": "wake", "token": "t"}));
    let shell = number(agent, "shell");
    agent.signal(Signal::STOP);
    let stopped = waitpid(Some(Pid::from_child(&agent.process)), WaitOptions::UNTRACED);
    assert!(stopped.unwrap().unwrap().1.stopped());
    shell
}

const WAITS: &str =
    "echo load >> log; mkfifo gate; echo $$ > shell; read go < gate; echo loaded >> log";

#[test]
fn a_restore_that_had_ended_when_the_agent_was_killed_is_not_run_again() {
    for user in [As::Tester, As::Nobody] {
        let agent = asleep(WAITS, user);
        let shell = wake_and_stop(&agent);
        std::fs::write(agent.path("run/gate"), "go\n").unwrap();
        within(|| has_ended(shell).then_some(()));
        let agent = agent.crash_and_restart();
        is_running(&agent);
        assert_eq!(log(&agent), "load, loaded");
        // What was paid pays no later debt.
        let again = json!({"type": "sleep-prep", "token": "t"});
        assert_eq!(agent.ask(&again)["type"], "ready");
        let agent = agent.crash_and_restart();
        within(|| log(&agent).starts_with("load, loaded, load").then_some(()));
    }
}

#[test]
fn a_restore_that_is_cut_short_is_run_again() {
    for user in [As::Tester, As::Nobody] {
        let agent = asleep(
            "echo load >> log; test -e shell && exit; echo $$ > shell; sleep 600",
            user,
        );
        let shell = wake_and_stop(&agent);
        let agent = agent.crash_and_restart();
        assert!(has_ended(shell), "nothing of it is left");
        is_running(&agent);
        assert_eq!(log(&agent), "load, load");
        assert_eq!(children(agent.pid()).len(), 0);
    }
}

#[test]
fn a_witness_ends_as_its_command_did_and_passes_signals_on() {
    for user in [As::Tester, As::Nobody] {
        for (command, outcome, detail) in [
            ("true", "ok", ""),
            ("echo no; exit 7", "failed", "exit code 7"),
            ("kill -SEGV $$", "failed", "ended by SEGV"),
            (
                "trap 'echo term >> log; exit 3' TERM; sleep 600 & wait",
                "timed-out",
                "",
            ),
            (
                "trap '' TERM; sleep 600 & while :; do wait; done",
                "timed-out",
                "",
            ),
        ] {
            let agent = asleep(command, user);
            let step = restored(&agent);
            assert_eq!(step["outcome"], outcome, "{command}: {step}");
            let told = step["detail"].as_str().unwrap_or_default();
            assert!(told.contains(detail), "{command}: {step}");
            assert_eq!(children(agent.pid()).len(), 0, "{command}");
            if command.contains("term") {
                assert_eq!(log(&agent), "term");
            }
            let left = agent.path("run/.restore");
            assert!(!left.exists(), "{command}");
        }
    }
}

#[test]
fn a_service_manager_that_ends_the_agents_processes_pays_no_debt() {
    let agent = asleep(
        "echo load >> log; test -e shell && exit; echo $$ > shell; sleep 600",
        As::Tester,
    );
    let shell = wake_and_stop(&agent);
    // As systemd does it: all that is left in the unit's cgroup.
    let witness = std::fs::read_to_string(format!("/proc/{}/stat", shell.as_raw_pid())).unwrap();
    let witness = witness
        .rsplit_once(") ")
        .unwrap()
        .1
        .split(' ')
        .nth(1)
        .unwrap();
    let witness = Pid::from_raw(witness.parse().unwrap()).unwrap();
    assert_ne!(witness, Pid::from_child(&agent.process));
    let (dir, settings) = agent.crash();
    for pid in [witness, shell] {
        let _ = rustix::process::kill_process(pid, Signal::TERM);
    }
    within(|| has_ended(shell).then_some(()));
    let agent = Agent::launch(dir, settings);
    is_running(&agent);
    assert_eq!(log(&agent), "load, load");
}
