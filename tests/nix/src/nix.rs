//! Nix with a store of its own: nothing of it is outside of one folder, and nothing of this machine
//! but what the tests hand in reaches a build, since Nix's sandbox is on.

use crate::{parts, repository};
use mvm_guest_tests::{Parts, required};
use serde_json::Value;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Never asks a cache, which could not be reached; builds as the user who runs it.
const CONFIG: &str = "substitute = false
build-users-group =
sandbox = true
sandbox-paths = /bin/sh=/bin/bash-static
experimental-features = nix-command flakes
";

/// Nix, with everything that the tests hand in.
#[derive(Debug)]
pub struct Nix {
    root: PathBuf,
    /// What guests are made of without Nix.
    pub parts: Parts,
}

impl Nix {
    /// Nix in the folder `MVM_TEST_NIX`, or `None` with a loud line. Where a VM is required, it
    /// panics instead.
    pub fn find() -> Option<Self> {
        let parts = Parts::find()?;
        // It is made where it is not.
        let root = std::env::var_os("MVM_TEST_NIX").map(PathBuf::from);
        let root = required(root.ok_or_else(|| "MVM_TEST_NIX is not set".into()), "nix")?;
        let nix = Self { root, parts };
        nix.fill();
        Some(nix)
    }

    /// The stand-in for nixpkgs' flake, and the stores, made by whichever test comes first.
    fn fill(&self) {
        fs::create_dir_all(&self.root).expect("make a folder");
        let lock = File::create(self.root.join("lock")).expect("make a lock");
        lock.lock().expect("lock");
        let ready = self.nixpkgs();
        if ready.exists() {
            return;
        }
        let draft = self.root.join("draft");
        if draft.exists() {
            fs::remove_dir_all(&draft).expect("remove what an interrupted run left");
        }
        fs::create_dir(&draft).expect("make a folder");
        let stand_in = repository().join("tests/nix/stand-in");
        for file in ["flake.nix", "lib.nix", "pkgs.nix"] {
            fs::copy(stand_in.join(file), draft.join(file)).expect("copy the stand-in");
        }
        parts::fill(&draft.join("parts"), &self.parts);
        // Two that make a store at once trip over each other's links.
        let (mut store, mut flakes) = (self.command("nix-store"), self.flakes());
        for command in [store.arg("--gc"), flakes.args(["store", "gc"])] {
            let made = run(command);
            assert!(made.status.success(), "{made:?}");
        }
        fs::rename(&draft, &ready).expect("put the stand-in in its place");
    }

    /// The folder of the stand-in for nixpkgs' flake.
    pub fn nixpkgs(&self) -> PathBuf {
        self.root.join("nixpkgs")
    }

    /// One of Nix's programs, with a store that is laid out as `/nix` below the folder.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        self.isolate(&mut command);
        command.arg("--store").arg(&self.root);
        command
    }

    /// The `nix` command, with a store that is where its paths say: Nix 2.8 does not find a flake's
    /// template in one that is below a folder.
    pub fn flakes(&self) -> Command {
        let mut command = Command::new("nix");
        self.isolate(&mut command);
        let store = self.root.join("flakes");
        command
            .env("NIX_STORE_DIR", store.join("store"))
            .env("NIX_STATE_DIR", store.join("var"))
            .env("NIX_LOG_DIR", store.join("log"));
        command
    }

    /// Leaves the machine's and the user's Nix alone.
    fn isolate(&self, command: &mut Command) {
        command
            .env("NIX_CONFIG", CONFIG)
            .env("NIX_CONF_DIR", self.root.join("etc"))
            .env("HOME", self.root.join("home"))
            .env("XDG_CACHE_HOME", self.root.join("cache"))
            .env_remove("NIX_PATH")
            .env_remove("NIX_REMOTE");
    }

    /// An expression, with the names of `stand-in/scope.nix` at hand.
    fn scoped(&self, expression: &str) -> String {
        let repository = repository();
        format!(
            "with import {0}/tests/nix/stand-in/scope.nix {{ repository = {0}; parts = {1}/parts; }};\n{expression}",
            repository.display(),
            self.nixpkgs().display()
        )
    }

    /// What an expression is, or the message of its `throw`.
    pub fn eval(&self, expression: &str) -> Result<Value, String> {
        let mut command = self.command("nix-instantiate");
        command.args(["--eval", "--strict", "--json", "--expr"]);
        let output = run(command.arg(self.scoped(expression)));
        if output.status.success() {
            Ok(serde_json::from_slice(&output.stdout).expect("JSON"))
        } else {
            Err(message(&output))
        }
    }

    /// Builds what an expression is, and gives where that is on this machine.
    pub fn build(&self, expression: &str) -> PathBuf {
        self.try_build(expression, &[])
            .unwrap_or_else(|said| panic!("{expression}\n{said}"))
    }

    /// Builds again what is built already, and fails if it is not the same bytes.
    pub fn build_again(&self, expression: &str) -> Result<PathBuf, String> {
        self.build(expression);
        self.try_build(expression, &["--check"])
    }

    /// Builds, with flags, or gives what Nix said.
    pub fn try_build(&self, expression: &str, flags: &[&str]) -> Result<PathBuf, String> {
        let mut command = self.command("nix-build");
        command.args(["--no-out-link", "--expr"]);
        let output = run(command.arg(self.scoped(expression)).args(flags));
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let path = String::from_utf8_lossy(&output.stdout);
        Ok(self.physical(path.trim()))
    }

    /// Where a file of this machine that an expression takes into the store is there.
    pub fn taken(&self, expression: &str) -> PathBuf {
        let mut command = self.command("nix-instantiate");
        command.args(["--eval", "--read-write-mode", "--json", "--expr"]);
        let output = run(command.arg(self.scoped(expression)));
        assert!(
            output.status.success(),
            "{expression}\n{}",
            message(&output)
        );
        let path: String = serde_json::from_slice(&output.stdout).expect("a path");
        self.physical(&path)
    }

    /// Where a store path is on this machine.
    fn physical(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }
}

fn run(command: &mut Command) -> Output {
    command
        .output()
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"))
}

/// Nix's message, without `error:`, the indent that this gives its lines, and the trace.
fn message(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.split_once("error: ").map_or(&*said, |(_, rest)| rest);
    let lines = said
        .lines()
        .take_while(|line| !line.is_empty() && !line.starts_with("(use '--show-trace'"))
        .map(|line| line.strip_prefix("       ").unwrap_or(line));
    lines.collect::<Vec<_>>().join("\n")
}

/// A file's SHA-256 in hexadecimal.
pub fn sha256(file: &Path) -> String {
    use sha2::{Digest as _, Sha256};
    use std::fmt::Write as _;
    let content = fs::read(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    Sha256::digest(content)
        .iter()
        .fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}
