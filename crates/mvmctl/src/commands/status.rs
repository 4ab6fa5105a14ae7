//! `mvmctl vm status`

use super::Context;
use crate::clock::timed;
use crate::fleet;
use crate::render::{data, status};
use crate::report::{Failure, Outcome};
use crate::vm_name;
use mvm_protocol::status::Health;

/// Show worker, health and integrations
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    vms: vm_name::Any,
}

impl Args {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
        let asked = fleet::ask(context, &self.vms, async |mut session| {
            timed(session.status(), |status| status.now).await
        });
        let fleet = asked.await?;
        data::fleet(context, &fleet, || match fleet.only() {
            Some((name, timed)) => status::one(context, name, &timed.answer, timed.skew),
            None => status::several(context, &fleet),
        })?;
        fleet.finish(context, |status| status.answer.health == Health::Unhealthy)
    }
}
