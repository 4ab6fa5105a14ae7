//! `cargo xtask soak`: a real guest and those who ask it, for as long as is said, and what is more
//! afterwards. `cargo xtask test guest` has two minutes of it.

use crate::build;
use crate::need;
use crate::sh::{Cmd, Failure, Result};

pub(crate) fn run(args: &[&str]) -> Result<()> {
    let minutes = minutes(args)?;
    let parts = need::guest_parts()?;
    let nextest = need::NEXTEST.installed()?;
    let (agent, dev) = (build::static_agent()?, build::static_dev_agent()?);
    // The tests run the `mvmctl` that is built along with them.
    let soak = Cmd::new(nextest).args(["nextest", "run", "--workspace", "--no-capture"]);
    let soak = soak.args(["-E", "package(mvm-guest-tests) and binary(soak)"]);
    let soak = soak.env("MVM_SOAK_MINUTES", minutes.to_string());
    parts.told(soak, &agent, &dev).run()
}

fn minutes(args: &[&str]) -> Result<u32> {
    let usage = || Failure("it is `cargo xtask soak [--minutes N]`".into());
    match args {
        [] => Ok(2),
        ["--minutes", minutes] => match minutes.parse() {
            Ok(minutes @ 1..) => Ok(minutes),
            _ => Err(usage()),
        },
        _ => Err(usage()),
    }
}

#[cfg(test)]
mod tests {
    use super::minutes;

    #[test]
    fn minutes_are_over_none() {
        assert_eq!(minutes(&["--minutes", "60"]).ok(), Some(60));
        assert_eq!(minutes(&[]).ok(), Some(2));
        for wrong in [&["--minutes", "0"][..], &["60"], &["--minutes", "-1"]] {
            assert!(minutes(wrong).is_err(), "{wrong:?}");
        }
    }
}
