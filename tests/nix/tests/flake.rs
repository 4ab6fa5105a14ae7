//! The flake, its template and who consumes it, with a stand-in for nixpkgs. What Rust would build is
//! there already: that the packages compile with nixpkgs' Rust is not shown here.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use mvm_nix_tests::{Nix, repository};
use mvm_vmm::image::Image;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// The files of the repository that the flake consists of, without what builds leave in it.
fn flake() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for part in ["flake.nix", "nix", "packaging", "Cargo.toml", "Cargo.lock"] {
        let copied = Command::new("cp")
            .arg("-r")
            .arg(repository().join(part))
            .arg(folder.path())
            .status();
        assert!(copied.unwrap().success(), "{part}");
    }
    folder
}

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}\n{said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// `nix flake …` on the flake, with the stand-in for nixpkgs.
fn on_flake(nix: &Nix, verb: &str, flake: &Path, more: &[&str]) -> String {
    let nixpkgs = format!("path:{}", nix.nixpkgs().display());
    let mut command = nix.flakes();
    command
        .args(["flake", verb, &format!("path:{}", flake.display())])
        .args([
            "--no-write-lock-file",
            "--override-input",
            "nixpkgs",
            &nixpkgs,
        ])
        .args(more);
    output(&mut command)
}

#[test]
fn the_flake_passes_its_check() {
    let Some(nix) = Nix::find() else { return };
    let flake = flake();
    on_flake(&nix, "check", flake.path(), &[]);
    let shown = on_flake(&nix, "show", flake.path(), &["--json"]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    for system in ["x86_64-linux", "aarch64-linux"] {
        let packages = shown["packages"][system].as_object().unwrap();
        let names: Vec<_> = packages.keys().collect();
        assert_eq!(names, ["mvm-guest-agent", "mvm-guest-agent-dev", "mvmctl"]);
    }
    for output in ["lib", "nixosModules", "overlays", "templates", "checks"] {
        assert!(shown.get(output).is_some(), "{output} in {shown}");
    }
}

/// `nix flake init -t` and `nix build`, as somebody does who starts with it.
#[test]
fn the_template_builds_a_guest() {
    let Some(nix) = Nix::find() else { return };
    let mvm = flake();
    // `flake init` takes no other input in place of one.
    let file = mvm.path().join("flake.nix");
    let nixpkgs = format!("path:{}", nix.nixpkgs().display());
    let text = fs::read_to_string(&file).unwrap();
    let there = text.replace("github:NixOS/nixpkgs/nixos-unstable", &nixpkgs);
    assert_ne!(text, there);
    fs::write(&file, there).unwrap();

    let mvm = format!("path:{}", mvm.path().display());
    let consumer = tempfile::tempdir().unwrap();
    let mut init = nix.flakes();
    init.args(["flake", "init", "--template", &mvm]);
    output(init.current_dir(consumer.path()));

    let mut build = nix.flakes();
    build
        .args([
            "build",
            "--no-write-lock-file",
            "--override-input",
            "nixpkgs",
            &nixpkgs,
        ])
        .args(["--override-input", "mvm", &mvm])
        .arg(format!("path:{}", consumer.path().display()))
        .current_dir(consumer.path());
    output(&mut build);
    let image = Image::open(&consumer.path().join("result")).unwrap();
    assert_eq!(image.manifest.agent.profile, "prod");
}
