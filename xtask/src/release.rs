//! `cargo xtask release-check`: what is looked at before a release and not in each run of the tests,
//! since it depends on the day and on a database from outside.

use crate::need;
use crate::sh::{Cmd, Failure, Result, say};
use std::env;
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
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let home = home.ok_or_else(|| Failure("neither CARGO_HOME nor HOME is set".into()))?;
    Ok(home.join("advisory-dbs"))
}
