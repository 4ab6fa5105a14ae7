//! `cargo xtask engines`: Slurm runs VMs on two hosts, one of which is cut off (`tests/engines`).

use crate::build;
use crate::need;
use crate::sh::{Cmd, Failure, Result, say};

pub(crate) fn run() -> Result<()> {
    if !need::is_root() {
        return Err(Failure(
            "hosts are made as network namespaces, which takes root: run it as root, in a VM if you \
             like"
                .into(),
        ));
    }
    let slurm = need::slurm()?;
    let prometheus = need::prometheus()?;
    let agent = build::static_agent()?;
    let mvmctl = build::debug_program("mvmctl")?;
    let engines = build::debug_program("mvm-engine-tests")?;
    say("Two hosts, one of which is cut off. This takes about four minutes.");
    Cmd::new(engines)
        .env("MVM_TEST_SLURM", slurm)
        .env("MVM_TEST_PROMETHEUS", prometheus.server)
        .env("MVM_TEST_MVMCTL", mvmctl)
        .env("MVM_TEST_AGENT", agent)
        .run()?;
    say("Passed.");
    Ok(())
}
