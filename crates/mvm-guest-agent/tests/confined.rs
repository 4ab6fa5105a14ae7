//! What the agent starts can open no `AF_VSOCK` socket. Nothing here tries to: whether a process is kept
//! from it is seen by its filters (proc_pid_status(5)); what those say is tested where they are, and in
//! a guest.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod common;

use common::{Agent, As, Settings, folder, within};
use serde_json::{Value, json};
use std::path::Path;

/// What a process tells of itself.
const TELL: &str = "grep -E '^(NoNewPrivs|Seccomp_filters):' /proc/self/status";

/// The number of filters, and whether there are no new privileges.
fn told(status: &str) -> (u32, bool) {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let value = line.unwrap_or_else(|| panic!("no {name} in {status:?}"));
        value.trim().parse::<u32>().unwrap()
    };
    (field("Seccomp_filters:"), field("NoNewPrivs:") == 1)
}

/// Those of this process, which all that it starts inherits.
fn own() -> (u32, bool) {
    told(&std::fs::read_to_string("/proc/self/status").unwrap())
}

fn agent(dir: tempfile::TempDir, settings: Settings) -> Agent {
    let run = dir.path().join("run");
    let into = |file: &str| format!("{TELL} > {}", run.join(file).display());
    let integrations = [
        json!({
            "name": "own", "health_cmd": TELL, "health_interval_secs": 86_400,
            "checkpoint_cmd": into("checkpoint"), "restore_cmd": into("restore"),
        }),
        // A descendant, wherever it goes.
        json!({
            "name": "grandchild", "health_interval_secs": 86_400,
            "health_cmd": format!("setsid sh -c \"({TELL})\""),
        }),
    ];
    let probe = json!({"name": "probe", "command": TELL, "interval_secs": 86_400});
    for (kind, drop_in) in [
        ("integrations.d", &integrations[0]),
        ("integrations.d", &integrations[1]),
        ("probes.d", &probe),
    ] {
        let file = format!("{kind}/{}.json", drop_in["name"].as_str().unwrap());
        std::fs::write(dir.path().join(file), drop_in.to_string()).unwrap();
    }
    Agent::launch(dir, settings)
}

fn read(path: &Path) -> (u32, bool) {
    within(|| {
        let text = std::fs::read_to_string(path).ok()?;
        (text.lines().count() == 2).then(|| told(&text))
    })
}

/// What each kind of command that every build runs tells.
fn all(agent: &Agent) -> Vec<(u32, bool)> {
    let text = |value: &Value| told(value.as_str().unwrap());
    let mut all = vec![
        text(&agent.check("own")["last_check"]["output"]),
        text(&agent.check("grandchild")["last_check"]["output"]),
        text(&agent.probe("probe")["value"]),
    ];
    let ready = agent.ask(&json!({"type": "sleep-prep", "token": "t"}));
    assert_eq!(ready["type"], "ready", "{ready}");
    agent.ask(&json!({"type": "wake", "token": "t"}));
    all.extend(["run/checkpoint", "run/restore"].map(|file| read(&agent.path(file))));
    all
}

#[test]
fn every_command_has_the_filter_and_root_keeps_its_rights() {
    let (filters, no_new_privs) = own();
    let root = agent(folder(&[], &[]), Settings::default());
    for told in all(&root) {
        assert_eq!(told, (filters + 1, no_new_privs));
    }
}

/// It may filter nothing but for that price.
#[test]
fn an_agent_that_is_not_root_gives_up_set_user_id_for_it() {
    let (filters, _) = own();
    let nobody = agent(folder(&[], &[]), Settings::user(As::Nobody));
    for told in all(&nobody) {
        assert_eq!(told, (filters + 1, true));
    }
}

#[test]
fn the_setting_leaves_everything_as_it_is() {
    for user in [As::Tester, As::Nobody] {
        let dir = folder(&[], &[]);
        std::fs::write(dir.path().join("agent.json"), r#"{"allow_vsock":true}"#).unwrap();
        for told in all(&agent(dir, Settings::user(user))) {
            assert_eq!(told, own(), "{user:?}");
        }
    }
}

#[cfg(feature = "dev")]
#[test]
fn commands_of_hosts_have_the_filter_too() {
    use common::dev::{shell, with};
    let (filters, no_new_privs) = own();
    let agent = agent(folder(&[], &[]), Settings::default());
    let ran = agent.exec(&shell(TELL));
    assert_eq!(told(&ran.text()), (filters + 1, no_new_privs));
    let as_nobody = with(shell(TELL), json!({"user": "nobody"}));
    assert_eq!(told(&agent.exec(&as_nobody).text()), (filters + 1, true));
    let on_terminal = with(shell(TELL), json!({"tty": {"rows": 24, "cols": 80}}));
    assert_eq!(
        told(&agent.exec(&on_terminal).text()),
        (filters + 1, no_new_privs)
    );
}
