//! Which crates each program is made of, as CycloneDX.

use super::PACKAGES;
use crate::build::{self, Target};
use crate::need::{self, Scratch};
use crate::sh::{Cmd, Failure, Result, Tried};
use std::fs;
use std::path::Path;

/// Where the sources are said to have been: the same wherever they are.
const SOURCES: &str = "/usr/src/mvm";

/// Writes `NAME.cdx.json` for each package.
pub(super) fn write(dist: &Path, epoch: &str, target: &Target) -> Result<()> {
    // It writes beside each Cargo.toml of the workspace, so it gets a copy of what git has.
    let copy = Scratch::of_process(&build::target_dir()?, "sbom")?;
    Cmd::new("sh")
        .args([
            "-c",
            "git ls-files -z | tar -c --null -T - | tar -x -C \"$1\"",
            "sh",
        ])
        .arg(copy.path())
        .dir(build::root())
        .run()?;
    let path = copy.path().to_str();
    let path = path.ok_or_else(|| Failure("the target folder's path is not UTF-8".into()))?;
    for package in PACKAGES {
        let home = copy.path().join("crates").join(package);
        Cmd::new(need::CYCLONEDX.installed()?)
            .args(["cyclonedx", "--quiet", "--format", "json"])
            .args(["--spec-version", "1.5", "--no-build-deps"])
            .args(["--target", &target.triple()])
            .arg("--manifest-path")
            .arg(home.join("Cargo.toml"))
            .env("SOURCE_DATE_EPOCH", epoch)
            .run()?;
        let name = format!("{package}.cdx.json");
        let text = fs::read_to_string(home.join(&name)).tried(format!("read {name}"))?;
        fs::write(dist.join(&name), text.replace(path, SOURCES)).tried(format!("write {name}"))?;
    }
    Ok(())
}
