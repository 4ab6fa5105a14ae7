//! No two files of a crate import each other, and no circle of them is longer either.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod graph;

use graph::Graph;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Imports that close circles in code that is being rewritten: crate, from, to. The check fails for
/// one that is not needed any more.
const KNOWN: &[(&str, &str, &str)] = &[];

/// Each target of each crate of the workspace, and its root file.
fn targets() -> Vec<(String, PathBuf)> {
    let cargo = std::env::var("CARGO").unwrap();
    let mut command = Command::new(cargo);
    command.args([
        "metadata",
        "--no-deps",
        "--offline",
        "--format-version",
        "1",
    ]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap().iter();
    let targets = packages.flat_map(|package| package["targets"].as_array().unwrap());
    targets
        .map(|target| {
            let text = |field: &str| target[field].as_str().unwrap().to_owned();
            (text("name"), text("src_path").into())
        })
        .collect()
}

#[test]
fn no_files_import_each_other() {
    let mut found = String::new();
    let mut unused: Vec<_> = KNOWN.to_vec();
    for (name, root) in targets() {
        let mut graph = Graph::read(&root, &|path: &Path| std::fs::read_to_string(path).ok());
        unused.retain(|(krate, from, to)| !(*krate == name && graph.except(from, to)));
        while let Some(circle) = graph.circle() {
            found += &format!(
                "\n{name} ({}):\n    {}\n",
                root.display(),
                circle.join("\n    ")
            );
            let (from, rest) = circle[0].split_once(" uses ").unwrap();
            let to = rest.split(' ').next().unwrap();
            graph.except(from, to);
        }
    }
    assert!(found.is_empty(), "files that import each other:{found}");
    assert!(
        unused.is_empty(),
        "no circles any more, take them off the list: {unused:?}"
    );
}
