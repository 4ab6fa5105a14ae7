//! What cargo-deb packs as if cargo had built it: programs, pages, completions, changelogs.

use super::{VERSION, licences, maintainer};
use crate::build::{self, Target};
use crate::sh::{Cmd, Result, Tried};
use std::fs;
use std::path::{Path, PathBuf};

/// The shells that there are completions for.
const SHELLS: [&str; 3] = ["bash", "fish", "zsh"];

/// The programs that are packed, each a file.
pub(super) struct Programs {
    pub(super) agent: PathBuf,
    pub(super) dev_agent: PathBuf,
    pub(super) mvmctl: PathBuf,
    /// What they were built for.
    pub(super) target: Target,
}

impl Programs {
    /// Puts all that a package needs into a folder.
    pub(super) fn stage(
        &self,
        folder: &Path,
        package: &str,
        revision: &str,
        epoch: &str,
    ) -> Result<()> {
        let man = folder.join("man");
        let completions = folder.join("completions");
        fs::create_dir_all(&completions).tried(format!("create {}", completions.display()))?;
        for (program, name) in [
            (&self.agent, "mvm-guest-agent"),
            (&self.dev_agent, "mvm-guest-agent-dev"),
            (&self.mvmctl, "mvmctl"),
        ] {
            build::place(program, &folder.join(name))?;
        }
        let mvmctl = || self.target.run(&self.mvmctl);
        mvmctl().args(["man", "--out"]).arg(&man).output()?;
        for shell in SHELLS {
            let script = mvmctl().args(["completion", shell]).output()? + "\n";
            write(&completions.join(shell), &script)?;
        }
        let root = build::root();
        for (from, to) in [
            ("packaging/mvm-guest-agent.8", "mvm-guest-agent.8"),
            ("CHANGELOG.md", "changelog"),
        ] {
            let to = folder.join(to);
            fs::copy(root.join(from), &to).tried(format!("copy {from}"))?;
        }
        let changelog = folder.join(format!("{package}.changelog"));
        write(&changelog, &debian_changelog(package, revision, epoch)?)?;
        // `mvmctl` brings the agent's dev build along.
        let features: &[&str] = match package {
            "mvmctl" => &[
                "--package",
                "mvm-guest-agent",
                "--features",
                "mvm-guest-agent/dev",
            ],
            _ => &[],
        };
        let licences = licences::of(package, features, &self.target)?;
        write(&folder.join("third-party"), &licences)?;
        // Without the file's name and time.
        Cmd::new("sh")
            .args([
                "-c",
                "exec gzip -9n man/* changelog third-party ./*.changelog ./*.8",
            ])
            .dir(folder)
            .output()?;
        Ok(())
    }
}

/// Debian's changelog tells how it was packed, and what is in it is in the project's own.
fn debian_changelog(package: &str, revision: &str, epoch: &str) -> Result<String> {
    let date = Cmd::new("date")
        .args(["--utc", "--rfc-email", "--date", &format!("@{epoch}")])
        .env("LC_ALL", "C")
        .output()?;
    Ok(format!(
        "{package} ({VERSION}-{revision}) unstable; urgency=medium\n\n  \
         * What is new in this version is in changelog.gz.\n\n \
         -- {}  {date}\n",
        maintainer()?
    ))
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).tried(format!("write {}", file.display()))
}
