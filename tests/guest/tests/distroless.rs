//! The guest of `examples/distroless`: no shell, a static init, checks without one.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use mvm_guest_tests::{Mvmctl, Parts};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// Builds the example as a user does, with one drop-in more.
fn image(parts: &Parts, mvmctl: &Mvmctl, folder: &TempDir) -> PathBuf {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let example = folder.path().join("distroless");
    let copied = Command::new("cp")
        .arg("-r")
        .arg(examples.join("distroless"))
        .arg(&example)
        .status();
    assert!(copied.unwrap().success());
    let shell = r#"{"name": "shell", "command": "true"}"#;
    fs::write(example.join("etc/probes.d/shell.json"), shell).unwrap();
    let image = folder.path().join("image");
    let built = Command::new(example.join("image"))
        .arg("--out")
        .arg(&image)
        .args(parts.arguments(&parts.agent))
        .env("MVMCTL", mvmctl.program())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "{said}");
    // The compiler warns of nothing.
    assert!(!said.contains("warning"), "{said}");
    image
}

#[test]
fn a_guest_without_a_shell_is_checked_put_to_sleep_and_stopped() {
    let Some(parts) = Parts::find() else { return };
    let mvmctl = Mvmctl::new();
    let folder = tempfile::tempdir().unwrap();
    let image = image(&parts, &mvmctl, &folder);
    let image = image.to_str().unwrap();
    mvmctl.ok(&[
        "vm",
        "start",
        "hello",
        "--image",
        image,
        "--backend",
        "qemu",
    ]);
    let wait = ["vm", "wait", "hello", "--for", "integration:hello"];
    mvmctl.ok(&[&wait[..], &["--timeout", "60s"]].concat());

    let check = |name: &str| -> Value {
        let checked = mvmctl.run(&["vm", "check", "hello", name, "--json"]);
        serde_json::from_str(&checked.stdout).unwrap()
    };
    let line = check("line");
    assert_eq!(line["probe"]["value"], "hello", "{line}");
    // There is none indeed.
    let shell = check("shell");
    let output = shell["probe"]["last_check"]["output"].as_str().unwrap();
    assert!(
        output.starts_with("not started: /bin/sh: No such file"),
        "{output}"
    );
    let inspect = mvmctl.ok(&["vm", "inspect", "hello", "--json"]);
    let inspect: Value = serde_json::from_str(&inspect.stdout).unwrap();
    assert_ne!(inspect["agent"]["pid"], 1);
    assert_eq!(inspect["system"]["hostname"], "mvm");

    let sleep = [
        "vm",
        "sleep",
        "hello",
        "--token",
        "t",
        "--require-freeze",
        "--json",
    ];
    let slept: Value = serde_json::from_str(&mvmctl.ok(&sleep).stdout).unwrap();
    let steps = slept["steps"].as_array().unwrap();
    let step = |name: &str| steps.iter().find(|step| step["step"] == name).unwrap();
    assert_eq!(step("checkpoint")["detail"], "hello", "{slept}");
    assert_eq!(step("freeze")["outcome"], "ok", "{slept}");
    mvmctl.ok(&["vm", "wake", "hello", "--token", "t", "--aborted"]);
    mvmctl.ok(&[&wait[..], &["--timeout", "60s"]].concat());

    // Its init powers off when it is asked to.
    let stopped = mvmctl.ok(&["vm", "stop", "hello", "--json"]);
    let stopped: Value = serde_json::from_str(&stopped.stdout).unwrap();
    assert_eq!(stopped["stopped"], "clean", "{stopped}");
}
