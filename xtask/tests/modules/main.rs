//! The order of the code: no files of a crate import each other, and the agent's layers import
//! downwards.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod graph;
mod tests;

use graph::Graph;
use std::path::Path;
use std::process::Command;

/// Imports that close a circle and are still to be taken out: crate, from, to. The list only
/// shrinks: one that closes no circle any more fails the check.
const KNOWN: &[(&str, &str, &str)] = &[
    (
        "crates/mvm-vmm/src/lib.rs",
        "crate::driver",
        "crate::cloud_hypervisor",
    ),
    (
        "crates/mvm-vmm/src/lib.rs",
        "crate::driver",
        "crate::firecracker",
    ),
    ("crates/mvm-vmm/src/lib.rs", "crate::driver", "crate::local"),
    ("crates/mvm-vmm/src/lib.rs", "crate::driver", "crate::qemu"),
    (
        "crates/mvm-vmm/src/lib.rs",
        "crate::error",
        "crate::snapshot",
    ),
    (
        "crates/mvmctl/src/main.rs",
        "crate::args",
        "crate::commands",
    ),
    (
        "crates/mvmctl/src/main.rs",
        "crate::commands::mend",
        "crate::commands::wake",
    ),
    (
        "crates/mvmctl/src/main.rs",
        "crate::report",
        "crate::commands",
    ),
    (
        "crates/mvmctl/src/main.rs",
        "crate::report",
        "crate::render::data",
    ),
];

/// The agent's layers, from the lowest. Each may import those before it.
const AGENT_LAYERS: [&str; 5] = ["core", "machine", "serve", "ports", "dev"];

/// The root file of each target of each crate, below the workspace.
fn targets() -> Vec<String> {
    let cargo = std::env::var("CARGO").unwrap();
    let mut command = Command::new(cargo);
    command.args(["metadata", "--no-deps", "--format-version", "1"]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap().iter();
    let targets = packages.flat_map(|package| package["targets"].as_array().unwrap());
    let roots = targets.map(|target| Path::new(target["src_path"].as_str().unwrap()));
    let below = roots.map(|root| root.strip_prefix(workspace()).unwrap());
    below
        .map(|root| root.to_str().unwrap().to_owned())
        .collect()
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn read(root: &str) -> Graph {
    Graph::read(&workspace().join(root), &|path: &Path| {
        std::fs::read_to_string(path).ok()
    })
}

#[test]
fn no_files_import_each_other() {
    let mut found = Vec::new();
    let mut unneeded: Vec<&(&str, &str, &str)> = Vec::new();
    for root in targets() {
        let mut graph = read(&root);
        let known = || KNOWN.iter().filter(|(target, ..)| *target == root);
        for (_, from, to) in known() {
            graph.remove(from, to);
        }
        unneeded.extend(known().filter(|(_, from, to)| !graph.reaches(to, from)));
        if let Some(circle) = graph.circle() {
            let circle = circle.join("\n    ");
            found.push(format!("{root}:\n    {circle}"));
        }
    }
    assert!(
        found.is_empty(),
        "files that import each other:\n{}",
        found.join("\n")
    );
    assert!(
        unneeded.is_empty(),
        "these close no circle any more: take them off the list KNOWN: {unneeded:?}"
    );
}

#[test]
fn the_agents_layers_import_downwards() {
    let graph = read("crates/mvm-guest-agent/src/main.rs");
    let layer = |file: &str| {
        let name = file.split("::").nth(1)?;
        AGENT_LAYERS.iter().position(|layer| *layer == name)
    };
    let mut across = 0;
    for (from, to) in graph.imports() {
        match (layer(from), layer(to)) {
            (Some(upper), Some(lower)) => {
                assert!(lower <= upper, "{from} uses {to}, which is above it");
                across += usize::from(lower < upper);
            }
            (Some(_), None) => panic!("{from} uses {to}, which is above all layers"),
            (None, _) => {}
        }
    }
    assert!(across > 50, "only {across} imports were seen");
}

/// A dev build differs from a prod build where the two are put together, and nowhere else.
#[test]
fn the_feature_dev_is_named_in_two_files() {
    fn named_in(folder: &Path, files: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                named_in(&path, files);
            } else if std::fs::read_to_string(&path)
                .unwrap()
                .contains(r#"feature = "dev""#)
            {
                files.push(path.file_name().unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    let mut files = Vec::new();
    let source = workspace().join("crates/mvm-guest-agent/src");
    named_in(&source, &mut files);
    files.sort();
    assert_eq!(files, ["main.rs", "run.rs"]);
}
