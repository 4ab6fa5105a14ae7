//! The Debian with systemd that one of the tests' guests is made of.

use super::{Package, Scratch, cache, is_root, packages};
use crate::build;
use crate::sh::{Cmd, Result, Tried, say};
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::PathBuf;

/// What makes it, and an image of it.
const PACKAGES: [Package; 2] = [
    Package {
        name: "mmdebstrap",
        program: "mmdebstrap",
        why: "makes the Debian of the guest with systemd",
    },
    Package {
        name: "e2fsprogs",
        program: "mke2fs",
        why: "writes that guest's root file system",
    },
];

/// By which those who are not root make files that are.
const UIDMAP: Package = Package {
    name: "uidmap",
    program: "newuidmap",
    why: "lets you make the root file system of the guest with systemd without being root",
};

/// What the tests want in it besides: what `packaging/systemd/mvm-follow` runs.
const MORE: &str = "curl,jq";

/// Its root file system as an archive, made once and kept in our cache. As another recipe makes
/// another one, its name has the recipe's hash.
pub(crate) fn debian() -> Result<PathBuf> {
    packages(&PACKAGES)?;
    if !is_root() {
        packages(&[UIDMAP])?;
    }
    let recipe = build::root().join("examples/debian/root");
    let text = fs::read(&recipe).tried(format!("read {}", recipe.display()))?;
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    MORE.hash(&mut hasher);
    let cache = cache()?;
    let archive = cache.join(format!("debian-{:016x}.tar", hasher.finish()));
    if archive.is_file() {
        return Ok(archive);
    }
    say(format!(
        "The Debian of the guest with systemd is missing. Making it in {}, which takes one or two \
         minutes.",
        cache.display()
    ));
    let scratch = Scratch::new(&cache.join(format!("debian-{}", std::process::id())))?;
    let made = scratch.path().join("debian.tar");
    Cmd::new(recipe).arg(&made).env("PACKAGES", MORE).run()?;
    // Whole or not at all, should two chores run at once or one be interrupted.
    fs::rename(&made, &archive).tried(format!("move it to {}", archive.display()))?;
    Ok(archive)
}
