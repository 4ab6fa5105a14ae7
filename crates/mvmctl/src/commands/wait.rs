//! `mvmctl vm wait`

use super::Context;
use crate::args::Format;
use crate::backoff::Backoff;
use crate::render::data::{self, Named};
use crate::render::{event, text::clean};
use crate::report::{Failure, Kind, Outcome};
use crate::vm_name;
use crate::vm_states::VmStates;
use clap::ValueEnum;
use mvm_client::watch::{Applied, apply};
use mvm_client::{Deadlines, Error, Session, Watcher};
use mvm_protocol::status::{Health, Lifecycle, Status, WorkerState};
use mvm_registry::Inventory;
use std::fmt;
use std::time::Duration;
use tokio::time::{sleep, timeout};
use tracing::Instrument as _;

/// Wait until a VM is as asked for
///
/// It watches the agent: nothing is polled. While the VM is not up yet it is dialled again and
/// again, with growing pauses; a VM that mvmctl has stopped or put to sleep is not dialled. Without
/// --timeout it waits as long as it takes. A name that does not exist ends it at once.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    vm: vm_name::One,

    /// What to wait for
    #[arg(long = "for", value_enum, value_name = "STATE")]
    state: Goal,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Goal {
    /// The agent answers, and the guest is running
    Ready,
    /// Every integration is healthy
    Healthy,
    /// The worker is idle
    Idle,
    /// The worker is busy
    Busy,
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Ready => "ready",
            Self::Healthy => "healthy",
            Self::Idle => "idle",
            Self::Busy => "busy",
        })
    }
}

impl Goal {
    fn is_met(self, status: &Status) -> bool {
        status.lifecycle == Lifecycle::Running
            && match self {
                Self::Ready => true,
                Self::Healthy => status.health == Health::Healthy,
                Self::Idle => status.worker.state == WorkerState::Idle,
                Self::Busy => status.worker.state == WorkerState::Busy,
            }
    }
}

/// How often a quiet guest says that it is there: three missing ones make it lost.
const HEARTBEAT: Duration = Duration::from_secs(5);

impl Args {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
        let name = &self.vm.name;
        let mut seen = None;
        let progress = context
            .ui
            .progress(&format!("waiting for {name} to be {}", self.state));
        let vm = VmStates::new(context, context.inventory()?.home(), Some(name));
        let waiting = async {
            tokio::select! {
                met = self.until_met(context, &mut seen) => met,
                failure = vm.until_ended(name) => Err(failure),
                failure = vm.follow() => Err(failure),
            }
        };
        let waiting = waiting.instrument(tracing::info_span!("vm", name));
        let waited = match context.timeout {
            Some(limit) => timeout(limit, waiting).await.map_err(|_| limit),
            None => Ok(waiting.await),
        };
        drop(progress);
        let status = match waited {
            Ok(result) => result?,
            Err(limit) => return Err(self.late(seen, limit)),
        };
        match context.format {
            // Nothing but success was asked for.
            Format::Table | Format::Wide => {}
            Format::Name => context.ui.print(&format!("{}\n", clean(name)))?,
            Format::Json | Format::Yaml => {
                let answer = &status;
                data::document(context, &Named { vm: name, answer })?;
            }
        }
        Ok(Outcome::Done)
    }

    /// Watches until the goal is met, through the VM's start and restarts.
    async fn until_met(
        &self,
        context: &Context,
        seen: &mut Option<Seen>,
    ) -> Result<Status, Failure> {
        let mut backoff = Backoff::new();
        loop {
            // Its state may have changed, and by that whether it may be dialled.
            let inventory = context.inventory()?;
            match self.watch(&inventory, seen, &mut backoff).await {
                Ok(Watched::Met(status)) => return Ok(*status),
                Ok(Watched::Stale) => {}
                Ok(Watched::AboutToBeFrozen) => {
                    let vm = &self.vm.name;
                    return Err(Failure {
                        vm: Some(vm.clone()),
                        retryable: true,
                        ..Failure::failed("the guest is being put to sleep").hint(format!(
                            "it is about to be frozen; wait again when it has woken (mvmctl vm wake \
                             {vm} wakes it)"
                        ))
                    });
                }
                Err(error) if error.is_retryable() => {
                    *seen = Some(Seen::Error(Failure::about(&self.vm.name, &error)));
                    sleep(backoff.pause()).await;
                }
                Err(error) => return Err(Failure::about(&self.vm.name, &error)),
            }
        }
    }

    async fn watch(
        &self,
        inventory: &Inventory,
        seen: &mut Option<Seen>,
        backoff: &mut Backoff,
    ) -> Result<Watched, Error> {
        let deadlines = Deadlines::default();
        let vm = inventory.now(&self.vm.name, deadlines.connect).await?;
        // `--timeout` is for the whole wait; each try has the usual deadlines.
        let session = Session::connect(vm.endpoint()?, &deadlines).await?;
        let (mut status, mut watcher) = Watcher::start(session, HEARTBEAT).await?;
        *backoff = Backoff::new();
        loop {
            if self.state.is_met(&status) {
                return Ok(Watched::Met(Box::new(status)));
            }
            *seen = Some(Seen::Status(event::status(&status)));
            match watcher.next().await? {
                None => return Ok(Watched::AboutToBeFrozen),
                Some(event) => {
                    if apply(&mut status, &event.change) == Applied::Stale {
                        return Ok(Watched::Stale);
                    }
                }
            }
        }
    }

    /// The failure to get there in time.
    fn late(&self, seen: Option<Seen>, limit: Duration) -> Failure {
        let goal = self.state;
        let failure = Failure {
            vm: Some(self.vm.name.clone()),
            code: "timed-out".into(),
            retryable: true,
            ..Failure::failed("")
        };
        match seen {
            Some(Seen::Status(status)) => Failure {
                message: format!("not {goal} within {limit:?}: it is {status}"),
                hint: Some(format!("mvmctl vm inspect {} shows more", self.vm.name)),
                ..failure
            },
            Some(Seen::Error(error)) => Failure {
                kind: Kind::Unreachable,
                message: format!("not {goal} within {limit:?}: {}", error.message),
                hint: Some(match &*error.code {
                    "not-running" => error.hint.unwrap_or_default(),
                    _ => format!(
                        "allow longer with --timeout, or look at the guest's console: mvmctl vm \
                         logs {}",
                        self.vm.name
                    ),
                }),
                ..failure
            },
            None => Failure {
                kind: Kind::Unreachable,
                message: format!("not {goal} within {limit:?}: it has not answered yet"),
                hint: Some("allow longer with --timeout".into()),
                ..failure
            },
        }
    }
}

/// How one connection's watch ended.
enum Watched {
    Met(Box<Status>),
    /// Integrations may have come or gone: the status has to be had anew.
    Stale,
    AboutToBeFrozen,
}

/// What was seen last.
enum Seen {
    Status(String),
    Error(Failure),
}
