//! `mvmctl vm ls`

use super::Context;
use crate::args::Format;
use crate::fleet::{self, Answered, Fleet};
use crate::render::{data, status};
use crate::report::{ErrorInData, Failure, Outcome};
use crate::vm_name::ByLabel;
use mvm_protocol::status::{Health, Status};
use mvm_registry::{Ending, Labels, VmState};
use serde::Serialize;

/// List VMs: backend, reachable, lifecycle, health, worker
///
/// Of one that does not run, the lifecycle says what it is, and how it ended if nobody stopped it.
/// `-o wide` shows addresses and labels as well.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    by_label: ByLabel,
}

/// What the host knows of a VM, and its status or why there is none.
#[derive(Debug, Serialize)]
struct Listed<'a> {
    vm: &'a str,
    backend: Option<&'a str>,
    /// What it is: `running`, `ended`…
    state: &'static str,
    /// How it ended, if it did by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    ended: Option<Ended>,
    pool: &'a str,
    labels: &'a Labels,
    pinned: bool,
    #[serde(flatten)]
    answer: Answer<'a>,
}

#[derive(Debug, Serialize)]
struct Ended {
    /// `powered-off`, `panicked`…
    how: &'static str,
    message: String,
}

impl From<&Ending> for Ended {
    fn from(ending: &Ending) -> Self {
        Self {
            how: ending.code(),
            message: ending.to_string(),
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Answer<'a> {
    Status(&'a Status),
    Failure { error: ErrorInData<'a> },
}

impl Args {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
        let choice = &self.by_label;
        let asked = fleet::ask(context, choice, async |mut session| session.status().await).await?;
        if let Format::Json | Format::Yaml = context.format {
            let listed: Vec<_> = asked.answers.iter().filter_map(listed).collect();
            data::document(context, &listed)?;
        } else {
            data::fleet(context, &asked, || status::ls(context, &asked))?;
        }
        finish(context, asked)
    }
}

fn finish(context: &Context, fleet: Fleet<Status>) -> Result<Outcome, Failure> {
    fleet.finish(context, |status| status.health == Health::Unhealthy)
}

fn listed(one: &Answered<Status>) -> Option<Listed<'_>> {
    // All of them were found: none was named.
    let vm = one.vm.as_ref()?;
    let ended = match &vm.state {
        VmState::Ended(ending) => Some(ending.into()),
        _ => None,
    };
    Some(Listed {
        vm: &one.name,
        backend: vm.backend.as_deref(),
        state: vm.state.code(),
        ended,
        pool: vm.pool(),
        labels: &vm.labels,
        pinned: vm.pinned,
        answer: match &one.result {
            Ok(status) => Answer::Status(status),
            Err(failure) => Answer::Failure {
                error: failure.into(),
            },
        },
    })
}
