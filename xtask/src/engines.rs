//! `cargo xtask engines`: Slurm runs VMs on two hosts, one of which is cut off (`tests/engines`). With
//! `guests` they are real ones. Without, docs/slurm.svg is drawn anew.

use crate::build;
use crate::need;
use crate::sh::{Cmd, Failure, Result, say};

pub(crate) fn run(guests: bool) -> Result<()> {
    if !need::is_root() {
        return Err(Failure(
            "hosts are made as network namespaces, which takes root: run it as root, in a VM if you \
             like"
                .into(),
        ));
    }
    let parts = guests.then(need::guest_parts).transpose()?;
    let slurm = need::slurm()?;
    let prometheus = need::prometheus()?;
    let agent = build::static_agent()?;
    let mvmctl = build::debug_program("mvmctl")?;
    let engines = build::debug_program("mvm-engine-tests")?;
    let time = if guests { "fifteen" } else { "five" };
    say(format!(
        "Two hosts, one of which is cut off. This takes about {time} minutes."
    ));
    let mut engines = Cmd::new(engines);
    if let Some(parts) = parts {
        engines = parts
            .told(engines, &agent, &agent)
            .env("MVM_TEST_REAL_GUESTS", "1");
    } else {
        engines = engines.env("MVM_TEST_PICTURE", "docs/slurm.svg");
    }
    engines
        .env("MVM_TEST_SLURM", slurm)
        .env("MVM_TEST_PROMETHEUS", prometheus.server)
        .env("MVM_TEST_MVMCTL", mvmctl)
        .env("MVM_TEST_AGENT", agent)
        .run()?;
    say("Passed.");
    Ok(())
}
