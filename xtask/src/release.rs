//! `cargo xtask release-check`: what is looked at before a release and not in each run of the tests,
//! since it depends on the day and on a database from outside.

use crate::build;
use crate::need;
use crate::sh::{Cmd, Failure, Result, say};
use std::path::PathBuf;

pub(crate) fn run() -> Result<()> {
    let deny = need::DENY.installed()?;
    let databases = databases()?;
    if !databases.is_dir() {
        return Err(Failure(format!(
            "no advisories were looked at: there is no database of them in {}. `cargo deny fetch db` \
             brings it where the network allows that",
            databases.display()
        )));
    }
    // The one that is there, however old: whoever releases brings a new one first.
    Cmd::new(deny)
        .args(["--workspace", "--offline", "check", "advisories"])
        .run()?;
    say("No advisory is about what we depend on, by the database that is there.");
    Ok(())
}

/// Where cargo-deny keeps its databases.
fn databases() -> Result<PathBuf> {
    Ok(build::cargo_home()?.join("advisory-dbs"))
}
