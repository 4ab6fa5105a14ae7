//! `mvmctl vm inspect`

use super::Context;
use crate::clock::timed;
use crate::fleet;
use crate::render::data::{self, Named};
use crate::render::inspect;
use crate::render::shown::Shown;
use crate::report::{Failure, Outcome};
use crate::vm_name;
use mvm_protocol::status::Health;

/// Show all that an agent tells: status, probes, system, agent, snapshot history, drop-in errors
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    vm: vm_name::One,
}

impl Args {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
        let names = [self.vm.name];
        let asked = fleet::ask(context, &names, async |mut session| {
            timed(session.inspect(), |inspect| inspect.status.now).await
        });
        let fleet = asked.await?;
        data::fleet(context, &fleet, || {
            let shown = |(vm, answer)| inspect::inspect(context, &Named { vm, answer });
            fleet.only().map_or_else(Shown::new, shown)
        })?;
        fleet.finish(context, |inspect| {
            inspect.answer.status.health == Health::Unhealthy
        })
    }
}
