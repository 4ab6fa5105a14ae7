//! `cargo xtask bench`: measures the agent as it goes into a guest.

use crate::build;
use crate::need;
use crate::sh::{Cmd, Result};

pub(crate) fn run() -> Result<()> {
    let parts = need::guest_parts()?;
    let dev = build::static_dev_agent()?;
    let agent = build::static_agent()?;
    let bench = build::host_program("mvm-benches")?;
    parts
        .told(Cmd::new(bench), &agent)
        .arg(&agent)
        .arg(dev)
        .run()
}
