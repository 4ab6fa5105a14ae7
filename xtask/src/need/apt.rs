//! Debian packages that are only unpacked, into our cache: it takes no root, and the machine's package
//! sources stay as they are.

use super::{Scratch, cache, is_root};
use crate::sh::{Cmd, Failure, Result, Tried};
use std::fs;
use std::path::Path;

/// Asks apt for packages: after `apt-get update` if its lists do not know them, or name versions
/// that are no longer there. Only root can update them.
pub(super) fn with_fresh_lists(names: &[&str], ask: impl Fn() -> Result<()>) -> Result<()> {
    let known = |name: &&str| {
        let policy = Cmd::new("apt-cache").args(["policy", name]).output();
        policy.is_ok_and(|text| text.contains("Candidate:") && !text.contains("Candidate: (none)"))
    };
    if names.iter().all(known) {
        match ask() {
            Err(_) if is_root() => {}
            asked => return asked,
        }
    }
    if is_root() {
        Cmd::new("apt-get").args(["update", "--quiet=2"]).run()?;
    }
    ask()
}

/// Has apt read these suites' packages for these architectures, the first of which is this machine's,
/// and nothing else, in a folder. Gives the options by which it does.
pub(super) fn lists_of(
    folder: &Path,
    suites: &[(&str, &str)],
    architectures: &[&str],
) -> Result<Vec<String>> {
    let source = |(uri, suite): &(&str, &str)| {
        format!(
            "Types: deb\nURIs: {uri}\nSuites: {suite}\nComponents: main\n\
             Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
        )
    };
    let source: Vec<String> = suites.iter().map(source).collect();
    let sources = folder.join("debian.sources");
    fs::write(&sources, source.join("\n")).tried(format!("write {}", sources.display()))?;
    for lists in ["apt/lists/partial", "apt/archives/partial"] {
        let lists = folder.join(lists);
        fs::create_dir_all(&lists).tried(format!("create {}", lists.display()))?;
    }
    let apt = folder.join("apt");
    let mut options = vec![
        format!("Dir::Etc::SourceList={}", sources.display()),
        "Dir::Etc::SourceParts=/dev/null".to_owned(),
        format!("Dir::State={}", apt.display()),
        "Dir::State::status=/dev/null".to_owned(),
        format!("Dir::Cache={}", apt.display()),
        format!(
            "APT::Architecture={}",
            architectures.first().unwrap_or(&"amd64")
        ),
        "APT::Sandbox::User=root".to_owned(),
        // What describes programs to people is as large as all the rest.
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
    ];
    let each = |name: &&str| format!("APT::Architectures::={name}");
    options.extend(architectures.iter().map(each));
    let flag = |option| ["-o".to_owned(), option];
    let options: Vec<String> = options.into_iter().flat_map(flag).collect();
    Cmd::new("apt-get")
        .args(["update", "--quiet=2"])
        .args(&options)
        .run()?;
    Ok(options)
}

/// That package which another one depends on whose name begins so and goes on with a version.
pub(super) fn dependency(package: &str, prefix: &str, apt: &[String]) -> Result<String> {
    let depends = Cmd::new("apt-cache")
        .args(["depends", package])
        .args(apt)
        .output()?;
    depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with(prefix))
        .map(str::to_owned)
        .ok_or_else(|| {
            Failure(format!(
                "apt knows no {prefix}… that {package} depends on. Run `sudo apt-get update` and try again"
            ))
        })
}

/// Downloads a package and unpacks it into a folder of our cache. `find` names the package once apt
/// knows `known`. It takes no root.
pub(super) fn unpack(known: &str, home: &Path, find: impl Fn() -> Result<String>) -> Result<()> {
    let scratch = cache()?.join(format!("{known}-{}", std::process::id()));
    let scratch = Scratch::new(&scratch)?;
    with_fresh_lists(&[known], || download(&scratch, &[&find()?], &[]))?;
    unpack_into(home, &scratch)
}

/// Downloads packages into a folder.
pub(super) fn download(folder: &Scratch, packages: &[&str], options: &[String]) -> Result<()> {
    Cmd::new("apt-get")
        .args(["download", "--quiet=2"])
        .args(packages)
        // As root, apt downloads as a user who may not be allowed into this folder.
        .args(["-o", "APT::Sandbox::User=root"])
        .args(options)
        .dir(&folder.0)
        .run()
}

/// Unpacks the packages that were downloaded into a folder of our cache.
pub(super) fn unpack_into(home: &Path, scratch: &Scratch) -> Result<()> {
    let listing = fs::read_dir(&scratch.0).tried("list the download")?;
    let unpacked = scratch.0.join("unpacked");
    let files = listing.filter_map(|entry| Some(entry.ok()?.path()));
    for archive in files.filter(|path| path.extension().is_some_and(|it| it == "deb")) {
        Cmd::new("dpkg-deb")
            .arg("-x")
            .args([&archive, &unpacked])
            .run()?;
    }
    if !unpacked.is_dir() {
        let home = home.display();
        return Err(Failure(format!("apt downloaded nothing for {home}")));
    }
    // Whole or not at all, should two chores run at once or one be interrupted.
    fs::rename(&unpacked, home)
        .or_else(|error| if home.exists() { Ok(()) } else { Err(error) })
        .tried(format!("move it to {}", home.display()))
}
