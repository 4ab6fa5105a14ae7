//! The Debian with systemd that one of the tests' guests is made of.

use super::{Package, Scratch, cache, is_root, packages};
use crate::build;
use crate::sh::{Cmd, Failure, Result, Tried, say};
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

/// Its root file system as an archive, made once and kept in our cache. As another recipe makes
/// another one, its name has the recipe's hash.
pub(crate) fn debian() -> Result<PathBuf> {
    let recipe = build::root().join("examples/debian/root");
    let text = fs::read(&recipe).tried(format!("read {}", recipe.display()))?;
    let cache = cache()?;
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    let archive = cache.join(format!("debian-{:016x}.tar", hasher.finish()));
    packages(&PACKAGES)?;
    if archive.is_file() {
        return Ok(archive);
    }
    if !is_root() {
        return Err(Failure(format!(
            "the guest with systemd is made by root, since the files in it are root's. Run\n\n    \
             sudo {} {}\n\nand try again as root",
            recipe.display(),
            archive.display()
        )));
    }
    say(format!(
        "The Debian of the guest with systemd is missing. Making it in {}, which takes one or two \
         minutes.",
        cache.display()
    ));
    let scratch = Scratch::new(&cache.join(format!("debian-{}", std::process::id())))?;
    let made = scratch.path().join("debian.tar");
    Cmd::new(recipe).arg(&made).run()?;
    // Whole or not at all, should two chores run at once or one be interrupted.
    fs::rename(&made, &archive).tried(format!("move it to {}", archive.display()))?;
    Ok(archive)
}
