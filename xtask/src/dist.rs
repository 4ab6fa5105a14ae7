//! `cargo xtask dist`: Debian packages, tarballs of the same files, lists of what the programs are made
//! of, and checksums, in `target/dist`, or in `target/dist-ARCH` for another target than this machine.
//! The same programs of the same commit give the same bytes.

mod licences;
mod sbom;
mod stage;

use crate::build::{self, Target};
use crate::need;
use crate::sh::{Cmd, Failure, Result, Tried, say};
use stage::Programs;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// The packages, each by the name of its crate.
pub(super) const PACKAGES: [&str; 2] = ["mvm-guest-agent", "mvmctl"];

/// Their version, and the least revision of it.
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");
const REVISION: &str = "1";

/// Who answers for the packages. The address is nobody's: who publishes them gives one of their own.
const MAINTAINER: &str = "The mvm authors <maintainers@users.noreply.github.com>";
const MAINTAINER_GIVEN: &str = "MVM_MAINTAINER";

pub(crate) fn run(args: &[&str]) -> Result<()> {
    let target = match args {
        [] => Target::own(),
        ["--target", triple] => need::target(triple)?,
        _ => {
            return Err(Failure("it is `cargo xtask dist [--target TRIPLE]`".into()));
        }
    };
    need::DEB.installed()?;
    need::CYCLONEDX.installed()?;
    need::lintian()?;
    let epoch = epoch()?;
    let dist = target.folder("dist")?;
    if dist.exists() {
        fs::remove_dir_all(&dist).tried(format!("remove {}", dist.display()))?;
    }
    let programs = Programs {
        agent: target.agent()?,
        dev_agent: target.dev_agent()?,
        mvmctl: target.mvmctl()?,
        target,
    };
    let target = &programs.target;
    for package in PACKAGES {
        let deb = package_of(&programs, package, REVISION, &epoch, &dist, &[])?;
        Cmd::new("lintian")
            .args(["--allow-root", "--fail-on", "error,warning"])
            .arg(&deb)
            .run()?;
        unpacked(&deb, &dist.join(tarball(package, target)))?;
    }
    sbom::write(&dist, &epoch, target)?;
    checksums(&dist)?;
    say(format!("In {}:", dist.display()));
    Cmd::new("ls").arg("-l").arg(&dist).status()?;
    Ok(())
}

/// What the tests install: the packages with a debug build of `mvmctl`, which takes no time to build,
/// and the agent's in three revisions, so that there is something to upgrade to.
pub(crate) fn for_tests(agent: &Path, dev_agent: &Path) -> Result<PathBuf> {
    need::DEB.installed()?;
    let folder = build::target_dir()?.join("test-packages");
    if folder.exists() {
        fs::remove_dir_all(&folder).tried(format!("remove {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).tried(format!("create {}", folder.display()))?;
    let mvmctl = folder.join("mvmctl");
    // Its symbols are most of it.
    Cmd::new("strip")
        .arg("-o")
        .args([&mvmctl, &build::debug_program("mvmctl")?])
        .run()?;
    let programs = Programs {
        agent: agent.to_owned(),
        dev_agent: dev_agent.to_owned(),
        mvmctl,
        target: Target::own(),
    };
    let epoch = epoch()?;
    for (package, revision) in [
        ("mvm-guest-agent", "1"),
        ("mvm-guest-agent", "2"),
        ("mvm-guest-agent", "3"),
        ("mvmctl", "1"),
        ("mvmctl", "2"),
    ] {
        package_of(&programs, package, revision, &epoch, &folder, &["--fast"])?;
    }
    Ok(folder)
}

/// The moment that all times in the packages are: the last commit's, in seconds since 1970.
fn epoch() -> Result<String> {
    if let Ok(given) = env::var("SOURCE_DATE_EPOCH") {
        return Ok(given);
    }
    Cmd::new("git")
        .args(["log", "-1", "--format=%ct"])
        .output()
        .map_err(|failure| {
            Failure(format!(
                "when was this made? {failure}. Where there is no git, SOURCE_DATE_EPOCH says it"
            ))
        })
}

/// Who answers for the packages, as `MVM_MAINTAINER` says.
fn maintainer() -> Result<String> {
    match env::var(MAINTAINER_GIVEN) {
        Ok(given) => a_maintainer(given),
        Err(env::VarError::NotPresent) => Ok(MAINTAINER.into()),
        Err(error) => Err(Failure(format!("{MAINTAINER_GIVEN}: {error}"))),
    }
}

/// It goes into files whose lines mean something.
fn a_maintainer(given: String) -> Result<String> {
    let address = given
        .split_once(" <")
        .and_then(|(name, rest)| Some((name, rest.strip_suffix('>')?)));
    match address {
        Some((name, address))
            if !name.trim().is_empty()
                && address.contains('@')
                && !address.contains(['<', '>', ' '])
                && !given.contains(char::is_control) =>
        {
            Ok(given)
        }
        _ => Err(Failure(format!(
            "{MAINTAINER_GIVEN} is `{}`, and has to be `NAME <ADDRESS>`",
            given.escape_debug()
        ))),
    }
}

/// Packs one package into a folder, as its crate's `package.metadata.deb` says.
fn package_of(
    programs: &Programs,
    package: &str,
    revision: &str,
    epoch: &str,
    folder: &Path,
    options: &[&str],
) -> Result<PathBuf> {
    let scratch = need::Scratch::of_process(&build::target_dir()?, "stage")?;
    // Where cargo-deb looks if it is told for which target it packs.
    let triple = programs.target.triple();
    let built = scratch.path().join(&triple).join("release");
    programs.stage(&built, package, revision, epoch)?;
    let arch = arch(&programs.target);
    let deb = folder.join(format!("{package}_{VERSION}-{revision}_{arch}.deb"));
    Cmd::new(need::DEB.installed()?)
        .args(["--no-build", "--no-strip", "--quiet", "--locked"])
        .args(["--package", package, "--deb-revision", revision])
        .args(["--maintainer", &maintainer()?])
        .args(["--target", &triple])
        .args(options)
        .arg("--output")
        .arg(&deb)
        .env("CARGO_TARGET_DIR", scratch.path())
        .env("SOURCE_DATE_EPOCH", epoch)
        .run()?;
    Ok(deb)
}

/// What Debian calls the target's kind of CPU.
fn arch(target: &Target) -> &'static str {
    match target.arch {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn tarball(package: &str, target: &Target) -> String {
    format!("{package}-{VERSION}-{}-linux.tar.gz", target.arch)
}

/// The files of a package as a tarball, for systems that have no dpkg.
fn unpacked(deb: &Path, tarball: &Path) -> Result<()> {
    Cmd::new("sh")
        .args([
            "-c",
            "dpkg-deb --fsys-tarfile \"$1\" | gzip -9n >\"$2\"",
            "sh",
        ])
        .args([deb, tarball])
        .run()
}

/// `SHA256SUMS`, which `sha256sum --check` reads.
fn checksums(dist: &Path) -> Result<()> {
    let listing = fs::read_dir(dist).tried(format!("list {}", dist.display()))?;
    let mut files: Vec<_> = listing
        .filter_map(|entry| Some(entry.ok()?.file_name()))
        .collect();
    files.sort();
    let sums = Cmd::new("sha256sum").args(files).dir(dist).output()?;
    fs::write(dist.join("SHA256SUMS"), sums + "\n").tried("write SHA256SUMS")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_maintainer_has_a_name_and_an_address() {
        for given in [MAINTAINER, "Jo Doe <jo@example.org>"] {
            assert_eq!(a_maintainer(given.into()).ok().as_deref(), Some(given));
        }
        for not in [
            "",
            "jo@example.org",
            "<jo@example.org>",
            " <jo@example.org>",
            "Jo <jo>",
            "Jo <jo@example.org> and <others@example.org>",
            "Jo <jo@example.org>\nDepends: more",
            "Jo\n <jo@example.org>",
        ] {
            assert!(a_maintainer(not.into()).is_err(), "{not}");
        }
    }
}
