//! `cargo xtask bench`: measures the agent as it goes into a guest.
//!
//! With `--against REV` that revision is built in a work tree of its own, both are measured in turn on
//! the same machine, and what is printed is this one's figure to that one's.

use crate::build;
use crate::need::{self, GuestParts};
use crate::sh::{Cmd, Failure, Result, Tried, say};
use std::fs;
use std::path::{Path, PathBuf};

/// What is measured of a revision.
struct Programs {
    agent: PathBuf,
    /// None of a revision that makes no such thing.
    dev: Option<PathBuf>,
    mvmctl: PathBuf,
}

pub(crate) fn run(args: &[&str]) -> Result<()> {
    let against = match args {
        [] => None,
        ["--against", revision] => Some(*revision),
        _ => return Err(Failure("it is `cargo xtask bench [--against REV]`".into())),
    };
    let parts = need::guest_parts()?;
    let own = Programs {
        dev: Some(build::static_dev_agent()?),
        agent: build::static_agent()?,
        mvmctl: build::host_program("mvmctl")?,
    };
    let bench = build::host_program("mvm-benches")?;
    need::socat()?;
    match against {
        None => measuring(Cmd::new(&bench), &parts, &own).run(),
        Some(revision) => compare(&bench, &parts, &own, revision),
    }
}

fn measuring(bench: Cmd, parts: &GuestParts, programs: &Programs) -> Cmd {
    let Programs { agent, dev, mvmctl } = programs;
    let dev_or_not = dev.as_ref().unwrap_or(agent);
    let command = parts.told(bench, agent, dev_or_not).arg(agent);
    command.args(dev).arg(mvmctl)
}

fn compare(bench: &Path, parts: &GuestParts, own: &Programs, revision: &str) -> Result<()> {
    let other = built(revision)?;
    let image = build::target_dir()?.join("bench-image");
    // One that is there is of another revision's agent.
    if image.exists() {
        fs::remove_dir_all(&image).tried(format!("remove {}", image.display()))?;
    }
    let made = Cmd::new(&own.mvmctl)
        .args(["image", "build", "--out"])
        .arg(&image);
    let made = made.arg("--agent").arg(&own.agent);
    let made = made.arg("--kernel").arg(&parts.kernel.image);
    made.arg("--modules").arg(&parts.kernel.modules).run()?;
    let restores = Cmd::new(bench).arg("--clones");
    let restores = restores.args([&own.mvmctl, &other.mvmctl, &image]);
    restores
        .env("MVM_VHOST_DEVICE_VSOCK", &parts.vsock_backend)
        .run()?;

    say(format!(
        "Measuring this revision and {revision}, which takes some ten minutes."
    ));
    let ours = measuring(Cmd::new(bench), parts, own).output()?;
    // Should the other one not be measured to its end, this is not lost.
    println!("{}\n", ours.trim_end());
    let theirs = measuring(Cmd::new(bench).arg("--other"), parts, &other).output()?;
    println!("| what | this | {revision} | this to that |");
    println!("| --- | --- | --- | --- |");
    for ours in ours.lines() {
        let (Some(what), Some(figure)) = (cell(ours, 0), cell(ours, 1)) else {
            continue;
        };
        let same = theirs.lines().find(|line| cell(line, 0) == Some(what));
        let Some(other) = same.and_then(|line| cell(line, 1)) else {
            continue;
        };
        if let (Some(this), Some(that)) = (number(figure), number(other)) {
            println!("| {what} | {figure} | {other} | {:.2} |", this / that);
        }
    }
    Ok(())
}

/// A revision's programs, built by its own `cargo xtask build` in a work tree of its own.
fn built(revision: &str) -> Result<Programs> {
    let id = Cmd::new("git").args(["rev-parse", "--verify", "--quiet"]);
    let id = id.arg(format!("{revision}^{{commit}}")).output()?;
    let tree = build::target_dir()?.join("against").join(&id);
    if !tree.exists() {
        let add = Cmd::new("git").args(["worktree", "add", "--detach"]);
        add.arg(&tree).arg(&id).run()?;
    }
    let building = Cmd::new("cargo").args(["xtask", "build"]).dir(&tree);
    building
        .env("CARGO_TARGET_DIR", tree.join("target"))
        .run()?;
    let bin = tree.join("target/bin");
    let made = |name: &str| Some(bin.join(name)).filter(|program| program.is_file());
    let needed = |name: &str| {
        let lacks = || Failure(format!("`cargo xtask build` of {revision} makes no {name}"));
        made(name).ok_or_else(lacks)
    };
    Ok(Programs {
        agent: needed("mvm-guest-agent")?,
        dev: made("mvm-guest-agent-dev"),
        mvmctl: needed("mvmctl")?,
    })
}

/// A cell of a table's line.
fn cell(line: &str, number: usize) -> Option<&str> {
    let cells = line.strip_prefix('|')?.strip_suffix('|')?;
    cells.split('|').nth(number).map(str::trim)
}

/// The number that a figure begins with.
fn number(figure: &str) -> Option<f64> {
    figure.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_a_table() {
        let line = "| ping, p50 | 15.3 µs (p99 32.8) | 13.8 µs | 1.11 | at most 1.3 |";
        assert_eq!(cell(line, 0), Some("ping, p50"));
        assert_eq!(cell(line, 1).and_then(number), Some(15.3));
        assert_eq!(cell("| --- | --- |", 1).and_then(number), None);
        assert_eq!(cell("no table", 0), None);
    }
}
