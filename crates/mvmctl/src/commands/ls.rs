//! `mvmctl vm ls`

use super::Context;
use crate::clock::{Timed, timed};
use crate::fleet;
use crate::render::{data, status};
use crate::report::{Failure, Outcome};
use mvm_protocol::status::{Health, Status};
use serde::Serialize;

/// List all VMs: backend, reachable, lifecycle, health, worker
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// A VM's status, and what the host knows of it.
#[derive(Debug, Serialize)]
struct Listed {
    backend: Option<String>,
    #[serde(flatten)]
    status: Timed<Status>,
}

impl AsRef<Timed<Status>> for Listed {
    fn as_ref(&self) -> &Timed<Status> {
        &self.status
    }
}

impl Args {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
        let asked = fleet::ask(context, &[], async |mut session| {
            timed(session.status(), |status| status.now).await
        });
        let listed = asked.await?.turn(|_, vm, status| {
            Ok(Listed {
                backend: vm.and_then(|vm| vm.backend.clone()),
                status,
            })
        });
        data::fleet(context, &listed, || status::ls(context, &listed))?;
        listed.finish(context, |one| one.status.answer.health == Health::Unhealthy)
    }
}
