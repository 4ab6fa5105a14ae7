//! The flake, its template and who consumes it, with a stand-in for nixpkgs. What Rust would build is
//! there already: that the packages compile with nixpkgs' Rust is not shown here; that cargo gets all of
//! their source is.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use mvm_guest_tests::Mvmctl;
use mvm_nix_tests::{Nix, repository};
use mvm_vmm::image::Image;
use serde_json::Value;
use std::collections::BTreeSet;
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

/// The source that nixpkgs' cargo gets: it is a whole workspace, and all that the programs were
/// compiled of is in it, as rustc has noted it down.
#[test]
fn the_packages_have_all_of_their_source() {
    let Some(nix) = Nix::find() else { return };
    let source = nix.taken("packages.mvmctl.src");
    let metadata = output(
        Command::new("cargo")
            .args(["metadata", "--locked", "--offline", "--format-version", "1"])
            // What is for other systems need not have been downloaded.
            .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
            .current_dir(&source),
    );
    let metadata: Value = serde_json::from_str(&metadata).unwrap();
    let members = metadata["workspace_members"].as_array().unwrap();
    assert!(
        members
            .iter()
            .any(|member| member.as_str().unwrap().contains("tests/nix"))
    );

    // `TARGET: FILE FILE` for each crate. What is not there any more was part of an earlier build.
    let repository = fs::canonicalize(repository()).unwrap();
    let mvmctl = Mvmctl::new();
    let folder = mvmctl.program().with_file_name("deps");
    let mut included = 0;
    for krate in ["mvm_protocol", "mvm_client", "mvm_vmm", "mvmctl"] {
        let mut sources = BTreeSet::new();
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            let is_list = path.extension().is_some_and(|extension| extension == "d");
            if !is_list || !name.starts_with(&format!("{krate}-")) {
                continue;
            }
            let noted = fs::read_to_string(&path).unwrap();
            let (_, files) = noted.lines().next().unwrap().split_once(": ").unwrap();
            let files = files.split_whitespace();
            let there = files.filter_map(|file| fs::canonicalize(repository.join(file)).ok());
            sources.extend(
                there.filter_map(|file| Some(file.strip_prefix(&repository).ok()?.to_owned())),
            );
        }
        assert!(sources.len() > 5, "{krate} is made of {sources:?}");
        // Clippy notes down its settings as well.
        sources.remove(Path::new("clippy.toml"));
        for file in sources {
            assert!(source.join(&file).is_file(), "{krate} is made of {file:?}");
            included += usize::from(!file.starts_with("crates"));
        }
    }
    assert!(included > 0, "the guest's scripts are part of mvmctl");
    // Nothing that would make each commit another source.
    for without in [".git", "docs", "nix", "flake.nix", "target"] {
        assert!(!source.join(without).exists(), "{without}");
    }
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
