//! The completions that are packed, in the shells that they are for, at a terminal: what is typed begun,
//! and TAB, and what `mvmctl` is then called with.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use mvm_guest_tests::{SOON, Tmux};
use mvm_package_tests::Packages;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Answers a shell by the program that is packed, and else writes down what it was called with.
const MVMCTL: &str = r#"#!/bin/sh
[ -z "$COMPLETE" ] || exec HERE/usr/bin/mvmctl "$@"
printf '%s\n' "$@" >HERE/called.new
mv HERE/called.new HERE/called
"#;

/// VMs.
const NAMES: [&str; 4] = ["db", "Up.per", "under_score", "-dash"];

/// Files whose names mean something to a shell.
const FILES: [&str; 8] = [
    "space d",
    "quo'te\"d",
    "dollar$HOME",
    "amp&semi;colon",
    "star*",
    "#hash",
    "colon:file",
    "new\nline",
];

/// What is typed before TAB, and the arguments that come of it.
const TYPED: [(&str, &[&str]); 22] = [
    // The first one, by which zsh only then reads the file.
    ("vm status U", &["vm", "status", "Up.per"]),
    ("vm insp", &["vm", "inspect"]),
    ("vm status un", &["vm", "status", "under_score"]),
    ("vm status db U", &["vm", "status", "db", "Up.per"]),
    // It is an option to whoever reads it.
    ("vm status -da", &["vm", "status", "-da"]),
    ("vm status -- -da", &["vm", "status", "--", "-dash"]),
    ("--color ne", &["--color", "never"]),
    (
        "vm wait db --for hea",
        &["vm", "wait", "db", "--for", "healthy"],
    ),
    (
        "vm wait db --for=hea",
        &["vm", "wait", "db", "--for=healthy"],
    ),
    (
        "vm wait db --for=integ",
        &["vm", "wait", "db", "--for=integration:"],
    ),
    ("vm cp db", &["vm", "cp", "db:/"]),
    ("vm cp sp", &["vm", "cp", "space d"]),
    ("vm cp \"sp", &["vm", "cp", "space d"]),
    ("vm cp 'space ", &["vm", "cp", "space d"]),
    ("vm cp space\\ ", &["vm", "cp", "space d"]),
    ("vm cp qu", &["vm", "cp", "quo'te\"d"]),
    ("vm cp do", &["vm", "cp", "dollar$HOME"]),
    ("vm cp am", &["vm", "cp", "amp&semi;colon"]),
    ("vm cp st", &["vm", "cp", "star*"]),
    ("vm cp colon:f", &["vm", "cp", "colon:file"]),
    // Of a folder its files.
    (
        "vm start x --image \"a folder/",
        &["vm", "start", "x", "--image", "a folder/it em"],
    ),
    // A line for each candidate has no room for it.
    ("vm cp new", &["vm", "cp", "new"]),
];

/// A shell with our completions, at a terminal.
struct Shell {
    terminal: Tmux,
    folder: TempDir,
}

impl Shell {
    /// `begin` is what is typed first: it makes the completions known and sets the prompt to `ready>`.
    fn start(packages: &Packages, program: &str, begin: &str) -> Self {
        let folder = packages.unpacked_mvmctl();
        let here = folder.path().to_str().unwrap();
        let put = |path: &str, text: &str| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            path
        };
        let mvmctl = put("bin/mvmctl", &MVMCTL.replace("HERE", here));
        fs::set_permissions(mvmctl, fs::Permissions::from_mode(0o755)).unwrap();
        for name in NAMES {
            put(&format!("vms/{name}/vm.json"), r#"{"state":"stopped"}"#);
        }
        for file in FILES {
            put(&format!("work/{file}"), "");
        }
        put("work/a folder/it em", "");
        put("home/at home", "");
        put("none.toml", "");
        let path = std::env::var("PATH").unwrap();
        let run = format!(
            "cd {here}/work && exec env PATH={here}/bin:{path} MVM_HOME={here} HOME={here}/home \
             MVM_CONFIG={here}/none.toml XDG_DATA_DIRS={here}/usr/share {program}"
        );
        let terminal = Tmux::start((150, 50), &run);
        terminal.type_in(&begin.replace("HERE", here));
        terminal.press(&["Enter"]);
        terminal.expect_last("ready>");
        Self { terminal, folder }
    }

    fn file(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    /// What mvmctl is called with when this is typed, TAB is pressed, and the line is run.
    fn completed(&self, typed: &str) -> Vec<String> {
        self.terminal.type_in(&format!("mvmctl {typed}"));
        self.terminal.press(&["Tab", "Enter"]);
        let called = self.file("called");
        let until = Instant::now() + SOON;
        let words = loop {
            match fs::read_to_string(&called) {
                Ok(words) => break words,
                Err(error) if Instant::now() > until => {
                    panic!("{typed}: {error}\n{}", self.terminal.screen())
                }
                // tmux has no event for it.
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        self.terminal.expect_last("ready>");
        fs::remove_file(&called).unwrap();
        words.lines().map(str::to_owned).collect()
    }

    fn completes_all(&self) {
        for (typed, words) in TYPED {
            assert_eq!(self.completed(typed), words, "{typed}");
        }
        let at_home = self.file("home/at home").display().to_string();
        assert_eq!(self.completed("vm cp ~/at"), ["vm", "cp", &at_home]);
    }
}

#[test]
fn bash_completes() {
    let Some(packages) = Packages::find() else {
        return;
    };
    let begin = "PS1='ready> '; . HERE/usr/share/bash-completion/completions/mvmctl; clear";
    Shell::start(&packages, "bash --noprofile --norc -i", begin).completes_all();
}

#[test]
fn zsh_completes() {
    let Some(packages) = Packages::find() else {
        return;
    };
    let begin = "PS1='ready> '; fpath=(HERE/usr/share/zsh/vendor-completions $fpath); \
                 autoload -U compinit; compinit -u -D; clear";
    Shell::start(&packages, "zsh -f -i", begin).completes_all();
}

#[test]
fn fish_completes() {
    let Some(packages) = Packages::find() else {
        return;
    };
    // It suggests what was typed before.
    let begin =
        "set fish_autosuggestion_enabled 0; function fish_prompt; echo 'ready> '; end; clear";
    Shell::start(&packages, "fish -i", begin).completes_all();
}
