//! The licences of what is linked into a program, which have to go where the program goes.

use crate::build::{self, Target};
use crate::sh::{Cmd, Failure, Result, Tried};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What is in each program beside crates.
const HEAD: &str = "What is linked into this program, and under which licences.\n\n\
    The Rust standard library: MIT OR Apache-2.0.\n\
    glibc, the C library: LGPL-2.1-or-later. The program's own sources are published, and it can be \
    linked anew\nwith another one.\n";

/// How the files are called that have them.
const FILES: [&str; 5] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE"];

/// Those of all crates that a package is built with: each text once, below whose it is.
pub(super) fn of(package: &str, features: &[&str], target: &Target) -> Result<String> {
    let tree = Cmd::new("cargo")
        .args(["tree", "--locked", "--package", package])
        .args(features)
        .args(["--edges", "normal", "--prefix", "none", "--no-dedupe"])
        .args(["--format", "{p}|{l}", "--target", &target.triple()])
        .output()?;
    let crates: BTreeSet<&str> = tree.lines().collect();
    let sources = sources()?;
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut named = String::new();
    for line in crates {
        let (name, licence) = line.split_once('|').unwrap_or((line, ""));
        let mut words = name.split(' ');
        let (Some(name), Some(version)) = (words.next(), words.next()) else {
            continue;
        };
        // Those of this workspace, which are under the program's own.
        if words.any(|word| word.starts_with("(/")) {
            continue;
        }
        let crate_name = format!("{name} {}", version.trim_start_matches('v'));
        named.extend([&crate_name, ": ", licence, "\n"]);
        let folder = format!("{name}-{}", version.trim_start_matches('v'));
        let folder = sources.iter().map(|source| source.join(&folder));
        let folder = folder.into_iter().find(|folder| folder.is_dir());
        let folder =
            folder.ok_or_else(|| Failure(format!("the sources of {crate_name} are not there")))?;
        for text in texts_in(&folder)? {
            texts.entry(text).or_default().push(crate_name.clone());
        }
    }
    let rule = "-".repeat(80);
    let texts = texts.into_iter().map(|(text, whose)| {
        let whose = whose.join(", ");
        format!("\n{rule}\n{whose}\n{rule}\n\n{}\n", text.trim())
    });
    Ok(format!("{HEAD}\n{named}{}", texts.collect::<String>()))
}

/// The licences in a crate's folder, in the order of their files' names.
fn texts_in(folder: &Path) -> Result<Vec<String>> {
    let listing = fs::read_dir(folder).tried(format!("list {}", folder.display()))?;
    let mut files: Vec<PathBuf> = listing
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let name = name.to_ascii_uppercase();
            path.is_file() && FILES.iter().any(|file| name.starts_with(file))
        })
        .collect();
    files.sort();
    files
        .iter()
        .map(|file| {
            let bytes = fs::read(file).tried(format!("read {}", file.display()))?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        })
        .collect()
}

/// Where cargo has unpacked crates, one folder a registry.
fn sources() -> Result<Vec<PathBuf>> {
    let folder = build::cargo_home()?.join("registry/src");
    let listing = fs::read_dir(&folder).tried(format!("list {}", folder.display()))?;
    Ok(listing
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect())
}
