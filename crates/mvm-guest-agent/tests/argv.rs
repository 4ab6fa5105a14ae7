//! Commands of drop-ins that are lists of words.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod common;

use common::Agent;
use serde_json::json;
use tempfile::TempDir;

#[test]
fn a_list_of_words_is_run_without_a_shell() {
    let dir = TempDir::new().unwrap();
    let kept = dir.path().join("kept $HOME");
    let touch = |name: &str| json!(["/usr/bin/touch", format!("{}-{name}", kept.display())]);
    let web = json!({
        "name": "web",
        // A shell would say that it is healthy.
        "health_argv": ["/usr/bin/test", "a", "=", "a || true"],
        "checkpoint_argv": touch("checkpoint"),
        "restore_argv": touch("restore"),
    });
    let gone = json!({"name": "gone", "health_argv": ["/no/such/program", "x"]});
    let words = json!({
        "name": "words",
        "command_argv": ["/usr/bin/printf", "%s|", "$HOME", "a b", "*", ""],
    });
    let agent = Agent::start(&[web, gone], &[words]);
    assert_eq!(agent.probe("words")["value"], "$HOME|a b|*||");
    assert_eq!(agent.check("web")["last_check"]["exit_code"], 1);
    let gone = agent.check("gone");
    assert_eq!(gone["health"], "unhealthy");
    let output = gone["last_check"]["output"].as_str().unwrap();
    assert!(output.starts_with("not started: "), "{output}");
    assert!(output.contains("/no/such/program"), "{output}");
    let ready = agent.ask(&json!({"type": "sleep-prep", "token": "t"}));
    assert_eq!(ready["type"], "ready", "{ready}");
    let awake = agent.ask(&json!({"type": "wake", "token": "t", "cause": "aborted"}));
    assert_eq!(awake["type"], "awake", "{awake}");
    let mut left: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["kept $HOME-checkpoint", "kept $HOME-restore"]);
}
