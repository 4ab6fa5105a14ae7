//! Several at once, and what is told of them.

use super::{Home, START};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Each is ended by the other: only if both are asked at once does either go by itself.
#[test]
fn several_are_stopped_at_once_and_told_in_name_order() {
    let home = Home::new();
    let agent = home.agent(
        "vm=$(basename $PWD); other=../$([ $vm = a ] && echo b || echo a)/asked\n\
         trap 'echo >asked; while [ ! -e $other ]; do sleep 0.1; done; exit' TERM\n\
         echo ready; while :; do sleep 0.1; done",
    );
    for vm in ["b", "a"] {
        home.ok(&format!(
            "vm start {vm} --backend local --agent {agent} --no-wait"
        ));
        let until = Instant::now() + Duration::from_secs(10);
        while home.ok(&format!("vm logs {vm}")).stdout != "ready\n" {
            assert!(Instant::now() < until, "the agent does not start");
        }
    }
    let stopped = home.ok("vm stop b a b --timeout 60s --json");
    // Before it there may be what is being waited for.
    let told = &stopped.stderr;
    assert!(told.ends_with("a has stopped\nb has stopped\n"), "{told}");
    let report: Value = serde_json::from_str(&stopped.stdout).unwrap();
    let expected = serde_json::json!([
        {"vm": "a", "stopped": "clean"},
        {"vm": "b", "stopped": "clean"},
    ]);
    assert_eq!(report, expected);
}

#[test]
fn with_a_name_that_is_none_nothing_is_done_to_any() {
    let home = Home::new();
    home.ok(START);
    let spoil = |command: &str| {
        let mut words: Vec<_> = command.split(' ').collect();
        words.extend(["web", "b b"]);
        let output = Command::new(env!("CARGO_BIN_EXE_mvmctl"))
            .args(words)
            .env("MVM_HOME", home.0.path())
            .output()
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{command}: {stderr}");
        assert!(
            stderr.contains("b b: this cannot be a VM's name"),
            "{stderr}"
        );
        home.ok("vm ping web");
    };
    for command in ["vm stop", "vm stop --force", "vm rm --force"] {
        spoil(command);
    }
    let address = home.run("vm stop web unix:/tmp/x");
    assert_eq!(address.code, Some(2));
    assert!(
        address.stderr.contains("an address will not do here"),
        "{}",
        address.stderr
    );
}

/// What `--json` prints, as JSON, of a run that ends with that code.
fn json(home: &Home, line: &str, code: i32) -> Value {
    let run = home.run(&format!("{line} --json"));
    assert_eq!(run.code, Some(code), "{line}: {}", run.stderr);
    serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{line}: {error}"))
}

#[test]
fn what_came_of_it_as_data() {
    let home = Home::new();
    let started = json(&home, START, 0);
    assert_eq!(started["vm"], "web");
    assert_eq!(started["state"], "running");
    assert_eq!(started["answers"], true);
    assert_eq!(started["backend"], "local");
    assert!(started["duration_ms"].is_u64(), "{started}");
    let again = json(&home, START, 1);
    assert_eq!(
        (&again["vm"], &again["error"]["code"]),
        (&"web".into(), &"failed".into())
    );
    assert_eq!(
        json(&home, "vm start db --backend local --no-wait", 0)["answers"],
        false
    );
    assert_eq!(
        json(&home, "vm stop web", 0),
        serde_json::json!({"vm": "web", "stopped": "clean"})
    );
    let several = json(&home, "vm stop web mail", 4);
    assert_eq!(several[0]["vm"], "mail");
    assert_eq!(several[0]["error"]["code"], "no-such-vm");
    assert_eq!(
        several[1],
        serde_json::json!({"vm": "web", "stopped": "already"})
    );
    let removed = json(&home, "vm rm --force web db", 0);
    assert_eq!(
        removed,
        serde_json::json!([{"vm": "db", "removed": true}, {"vm": "web", "removed": true}])
    );
    assert_eq!(home.ok(&format!("{START} -o name")).stdout, "web\n");
}

#[test]
fn one_that_was_never_booted_has_no_console() {
    let home = Home::new();
    home.ok(START);
    home.ok("vm stop web");
    let previous = home.run("vm logs --previous web");
    assert_eq!(previous.code, Some(1));
    let hint = "`mvmctl vm logs web` has that of its last run";
    assert!(previous.stderr.contains(hint), "{}", previous.stderr);
    fs::remove_file(home.file("web/console.log")).unwrap();
    let logs = home.run("vm logs web");
    assert_eq!(logs.code, Some(1));
    assert!(
        logs.stderr.contains("has written no console yet"),
        "{}",
        logs.stderr
    );
    assert!(
        logs.stderr.contains("mvmctl vm start web"),
        "{}",
        logs.stderr
    );
}

#[test]
fn refusals_say_what_is_wrong() {
    let home = Home::new();
    home.fails("vm stop web", 3, "no VM has that name in");
    home.ok("vm start web-1 --backend local");
    home.fails("vm logs wbe-1", 3, "web-1");
    home.fails("vm logs web", 3, "no VM has that name in");
    home.fails(
        "vm start ../web --backend local",
        2,
        "cannot be a VM's name",
    );
    home.fails("vm start .. --backend local", 2, "cannot be a VM's name");
    home.fails("vm start web --backend xen", 2, "xen");
    home.fails(
        "vm start web --backend local --image /nonexistent",
        1,
        "is no image folder",
    );
    home.fails(&format!("{START} --agent /nonexistent"), 1, "/nonexistent");
    home.fails("vm rm web", 3, "no VM has that name in");
    home.ok("vm stop web-1");
    home.ok("vm rm web-1");
    home.fails("image build --out /tmp/x --add a:b", 2, "FILE:DEST");
    home.fails("image build --out /tmp/x --service web", 2, "NAME=COMMAND");
    assert!(!Path::new("/tmp/x").exists());
}

#[test]
fn who_can_open_the_socket_is_its_owner() {
    let home = Home::new();
    home.ok(START);
    for folder in ["", "web"] {
        let mode = fs::metadata(home.file(folder))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o700, "{folder:?}");
    }
}
