//! Completion and manual pages.

use crate::host::{Host, Ran, silent};

/// What bash is offered for a line that ends so, of which it would replace the last word.
fn offered(host: &Host, line: &str) -> Vec<String> {
    let last = line.rsplit([' ', '=', ':']).next().unwrap_or_default();
    offered_for(host, line, last)
}

/// The same with what it would replace.
fn offered_for(host: &Host, line: &str, replaced: &str) -> Vec<String> {
    let output = host
        .command("--")
        .args([line, replaced])
        .env("COMPLETE", "bash")
        .output()
        .unwrap();
    let ran = Ran::from(output).exits(0);
    ran.stdout
        .lines()
        .map(|line| line.trim().to_owned())
        .collect()
}

#[test]
fn names_of_vms_complete_without_dialling() {
    let host = Host::with("web-1", silent)
        .and("web-2", silent)
        .and("db", silent)
        .record("old", r#"{"state":"stopped"}"#);
    assert_eq!(offered(&host, "mvmctl vm status w"), ["web-1", "web-2"]);
    assert_eq!(offered(&host, "mvmctl vm inspect o"), ["old"]);
    let both = offered(&host, "mvmctl vm ping db w");
    assert_eq!(both, ["web-1", "web-2"]);
    for name in ["web-1", "web-2", "db"] {
        assert_eq!(host.accepted(name), 0);
    }
}

#[test]
fn a_copys_ends_complete() {
    let host = Host::with("web", silent);
    let file = host.path().join("website");
    std::fs::write(&file, "").unwrap();
    assert_eq!(offered(&host, "mvmctl vm cp we"), ["web:/"]);
    let begun = file.display().to_string();
    let begun = begun.strip_suffix("site").unwrap();
    let both = offered(&host, &format!("mvmctl vm cp {begun}"));
    assert_eq!(both, [file.display().to_string()]);
    assert_eq!(host.accepted("web"), 0);
}

#[test]
fn commands_and_values_complete() {
    let host = Host::new();
    let commands = offered(&host, "mvmctl vm i");
    assert_eq!(commands, ["inspect"]);
    assert_eq!(offered(&host, "mvmctl vm wait web --for h"), ["healthy"]);
    let all = offered(&host, "mvmctl vm wait web --for ");
    assert!(all.contains(&"integration:".to_owned()), "{all:?}");
}

#[test]
fn completion_scripts() {
    let host = Host::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = host
            .mvmctl(&format!("completion {shell}"))
            .exits(0)
            .silently()
            .stdout;
        assert!(script.contains("mvmctl"), "{shell}");
        // It is installed once, and the program may move.
        assert!(!script.contains(env!("CARGO_BIN_EXE_mvmctl")), "{shell}");
    }
}

#[test]
fn manual_pages() {
    let host = Host::new();
    let page = host.mvmctl("man").exits(0).silently().stdout;
    assert!(page.contains(".TH mvmctl 1"), "{page}");
    let out = host.path().join("man");
    host.mvmctl(&format!("man --out {}", out.display()))
        .exits(0)
        .says("manual pages written to");
    for page in [
        "mvmctl.1",
        "mvmctl-vm.1",
        "mvmctl-vm-status.1",
        "mvmctl-vm-wait.1",
    ] {
        let text = std::fs::read_to_string(out.join(page)).unwrap();
        assert!(text.contains(".SH SYNOPSIS"), "{page}");
    }
    host.mvmctl("man --out /dev/null/x").exits(1).says("--out");
}

#[test]
fn every_command_has_help() {
    let host = Host::new();
    let help = host.mvmctl("vm --help").exits(0).silently().stdout;
    for command in ["ls", "ping", "status", "inspect", "check", "wait", "events"] {
        assert!(
            help.contains(&format!("\n  {command} ")),
            "{command} not in\n{help}"
        );
        let own = host.mvmctl(&format!("vm {command} --help")).exits(0).stdout;
        assert!(own.contains("Usage: mvmctl vm"), "{own}");
    }
    let help = host.mvmctl("--help").exits(0).stdout;
    assert!(help.contains("Exit codes:"), "{help}");
}
