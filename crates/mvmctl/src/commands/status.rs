//! `mvmctl vm status`

use super::Context;
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
            session.status().await
        });
        let fleet = asked.await?;
        data::fleet(context, &fleet, || match fleet.only() {
            Some((name, status)) => status::one(context, name, status),
            None => status::several(context, &fleet),
        })?;
        fleet.finish(context, |status| status.health == Health::Unhealthy)
    }
}
