//! Prometheus' own tool reads what is written, with hostile guests in it, and has nothing to say.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests are allowed to; clippy does not see helpers as tests"
)]

use mvm_fleet::metrics::{Exposition, Format, Process};
use mvm_fleet::{
    ActionLog, AgentEvent, Effect, Facts, Now, Policy, Registered, RegistryEvent, RunState,
    Settings, View,
};
use mvm_protocol::answer::{Answer, AnswerFrame};
use mvm_protocol::{Timestamp, status::Inspect};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

/// An inspect as it comes over the wire, from a guest whose names are made to break things.
fn inspect(name: &str) -> Inspect {
    let name = serde_json::to_string(name).unwrap();
    let check = r#"{"at":"2026-11-24T06:02:11Z","duration_ms":11,"exit_code":0,"signal":null,"timed_out":false,"output":"","truncated":false}"#;
    let text = format!(
        r#"{{"type":"inspect","lifecycle":"running","health":"healthy","uptime_secs":93.2,
        "worker":{{"state":"busy","since":"2026-11-24T06:02:11Z","last_busy_at":null,"because":["loadavg","gpu"],"load1":0.5,"runnable":1}},
        "integrations":[{{"name":{name},"health":"healthy","since":"2026-11-24T06:02:11Z","consecutive_failures":0,"checks":9,"failures":0,"last_check":{check}}}],
        "probes":[{{"name":{name},"ok":true,"value":"42%","last_check":{check}}}],
        "system":{{"hostname":{name},"kernel":"6.1","cpus":1,"memory_total_bytes":1,"memory_available_bytes":1,"load":[0,0,0]}},
        "agent":{{"version":{name},"profile":"odd","pid":1,"rss_bytes":1,"started_at":"2026-11-24T06:02:11Z","drop_in_errors":[]}},
        "snapshot":{{"generation":0,"last_sleep":null,"last_wake":null}}}}"#
    );
    match AnswerFrame::read(text.as_bytes()).unwrap().answer {
        Answer::Inspect(inspect) => *inspect,
        other => panic!("{other:?}"),
    }
}

fn text(format: Format) -> String {
    let now = Now {
        monotonic: Duration::from_secs(5),
        boottime: Duration::from_secs(5),
        wall: Timestamp(1_795_000_000_000),
    };
    let hostile = [
        "plain",
        "quote\" } 1\nmvm_fleet_vms{pool=\"web\"} 0",
        "\\",
        "\u{202e}\u{1b}[2J\u{0}",
        "名前",
        "",
    ];
    let names = (0..hostile.len()).map(|number| format!("web-{number}"));
    let vms = names.map(|name| Registered {
        pool: Some("w\"e\\b\n".into()),
        ..Registered::new(name, RunState::Running)
    });
    let vms = vms
        .chain([Registered::new("db-1", RunState::Asleep)])
        .collect();
    let mut view = View::new(Settings::default());
    let effects = view.registry(RegistryEvent::Listed { vms, whole: true }, &now);
    for (effect, name) in effects.into_iter().zip(hostile) {
        let Effect::Watch { ticket, .. } = effect else {
            panic!("{effect:?}");
        };
        view.agent(ticket, AgentEvent::Inspect(&inspect(name)), &now);
    }
    let policy = Policy::parse("[[pool]]\nname = \"db\"\nmin = 1", "fleet.toml").unwrap();
    let process = Process {
        cpu_seconds: 0.5,
        open_fds: 7,
        max_fds: 1024,
        virtual_bytes: 1,
        resident_bytes: 1,
        started_seconds: 1_795_000_000.0,
    };
    let exposition = Exposition {
        view: &view,
        policy: &policy,
        facts: &Facts::default(),
        log: &ActionLog::default(),
        now: &now,
        process: Some(&process),
        per_vm: true,
    };
    exposition.render(format).concat()
}

fn promtool() -> Option<PathBuf> {
    if let Some(program) = std::env::var_os("MVM_TEST_PROMTOOL") {
        return Some(program.into());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join("promtool"))
        .find(|program| program.is_file())
}

/// What promtool says of a text, and whether it takes it.
fn check(promtool: &PathBuf, text: &str) -> (bool, String) {
    let mut child = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

#[test]
fn promtool_has_nothing_to_say() {
    let Some(promtool) = promtool() else {
        eprintln!("skipped: there is no promtool. `cargo xtask test unit` brings one");
        return;
    };
    let text = text(Format::Text);
    assert_eq!(check(&promtool, &text), (true, String::new()), "{text}");
    // That it would say something.
    let (is_taken, said) = check(&promtool, &text.replace("mvm_agent_up{", "mvm_agent_up{,"));
    assert!(!is_taken && said.contains("error while linting"), "{said}");
    let (is_taken, said) = check(
        &promtool,
        &text.replace("# HELP mvm_fleet_wanted", "# WANT"),
    );
    assert!(
        !is_taken && said.contains("mvm_fleet_wanted no help text"),
        "{said}"
    );
}
