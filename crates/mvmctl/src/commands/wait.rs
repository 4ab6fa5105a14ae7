//! `mvmctl vm wait`

use super::Context;
use crate::args::Format;
use crate::backoff::Backoff;
use crate::render::data::{self, Named};
use crate::render::event;
use crate::render::shown::Shown;
use crate::report::{Failure, Kind, Outcome};
use crate::vm_name;
use crate::vm_state::{Now, VmState, VmStates};
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};
use mvm_client::watch::{Applied, apply};
use mvm_client::{Deadlines, Error, Vm, Watcher};
use mvm_protocol::status::{Health, Lifecycle, Status};
use std::fmt;
use std::time::Duration;
use tokio::time::timeout;
use tracing::Instrument as _;

/// Wait until a VM is as asked for
///
/// It watches the agent: nothing is polled. While the VM is not up yet it is dialled again and
/// again, with growing pauses; a VM that was stopped or put to sleep is not dialled, and waited for
/// until it runs again. Without --timeout it waits as long as it takes. A name that does not exist
/// ends it at once, and so does a VM that has ended by itself.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    vm: vm_name::One,

    /// What to wait for: `ready` (the agent answers, and the guest is running), `healthy` (no integration
    /// is unhealthy or has no verdict yet; one without integrations is), `all-healthy` (it has
    /// integrations, and each that has a check is healthy), `integration:NAME` (that one is healthy,
    /// once it is there), `idle` (it has no work: no signal makes its worker busy, and no open command and
    /// no file that inhibits holds it) or `busy` (it has)
    #[arg(
        long = "for",
        value_name = "STATE",
        value_parser = goal,
        add = ArgValueCandidates::new(candidates)
    )]
    state: Goal,
}

/// How a guest is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Goal {
    /// The agent answers, and the guest is running.
    Ready,
    /// The guest's verdict is healthy.
    Healthy,
    /// It has integrations, and each that has a check is healthy.
    AllHealthy,
    /// That integration is healthy.
    Integration(String),
    /// The guest has no work: its worker is idle, and nothing holds it.
    Idle,
    /// It has.
    Busy,
}

/// The goals that are one word.
const WORDS: [(&str, Goal); 5] = [
    ("ready", Goal::Ready),
    ("healthy", Goal::Healthy),
    ("all-healthy", Goal::AllHealthy),
    ("idle", Goal::Idle),
    ("busy", Goal::Busy),
];

/// What the name of an integration follows.
const INTEGRATION: &str = "integration:";

fn goal(text: &str) -> Result<Goal, String> {
    if let Some((_, goal)) = WORDS.into_iter().find(|(word, _)| *word == text) {
        return Ok(goal);
    }
    match text.strip_prefix(INTEGRATION) {
        Some(name) if !name.is_empty() => Ok(Goal::Integration(name.to_owned())),
        _ => {
            let words = WORDS.map(|(word, _)| word).join(", ");
            Err(format!("one of {words} or {INTEGRATION}NAME is asked for"))
        }
    }
}

fn candidates() -> Vec<CompletionCandidate> {
    let words = WORDS.iter().map(|(word, _)| *word);
    words
        .chain([INTEGRATION])
        .map(CompletionCandidate::new)
        .collect()
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Integration(name) => write!(f, "healthy in its integration {name}"),
            Self::AllHealthy => f.write_str("healthy in all its integrations"),
            Self::Ready => f.write_str("ready"),
            Self::Healthy => f.write_str("healthy"),
            Self::Idle => f.write_str("idle"),
            Self::Busy => f.write_str("busy"),
        }
    }
}

impl Goal {
    /// Whether a guest of that status is as it is to be.
    pub(super) fn is_met(&self, status: &Status) -> bool {
        let mut integrations = status.integrations.iter();
        status.lifecycle == Lifecycle::Running
            && match self {
                Self::Ready => true,
                Self::Healthy => status.health == Health::Healthy,
                // Before its drop-ins are loaded a guest has none, and is healthy.
                Self::AllHealthy => {
                    status.health == Health::Healthy
                        && integrations.any(|one| one.health == Health::Healthy)
                }
                Self::Integration(name) => {
                    integrations.any(|one| one.name == *name && one.health == Health::Healthy)
                }
                Self::Idle => !status.worker.is_at_work(),
                Self::Busy => status.worker.is_at_work(),
            }
    }

    /// Why that will never be, as the guest is now.
    fn is_in_vain(&self, status: &Status) -> Option<String> {
        let Self::Integration(name) = self else {
            return None;
        };
        let mut integrations = status.integrations.iter();
        integrations
            .any(|one| one.name == *name && one.health == Health::Unchecked)
            .then(|| format!("the integration {name} has no health check"))
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
        let waiting = self
            .until_met(context, &mut seen)
            .instrument(tracing::info_span!("vm", name));
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
            Format::Name => context.ui.print(&Shown::line(name))?,
            Format::Json | Format::Yaml => {
                let answer = &status;
                data::document(context, &Named { vm: name, answer })?;
            }
        }
        Ok(Outcome::Done)
    }

    /// Watches until the goal is met, through the VM's start and restarts, and through its sleeps.
    async fn until_met(
        &self,
        context: &Context,
        seen: &mut Option<Seen>,
    ) -> Result<Status, Failure> {
        let name = &self.vm.name;
        let followed = VmStates::new(context);
        let mut vm_state = followed.of(name)?;
        let mut backoff = Backoff::new();
        loop {
            let about = |error: &Error| Failure::about(name, error);
            let vm = match vm_state.now().await {
                Ok(Now::Runs(vm)) => vm,
                Ok(Now::Off(error)) => {
                    *seen = Some(Seen::Error(about(&error)));
                    vm_state.changed().await;
                    continue;
                }
                Ok(Now::Ended(_, failure)) => return Err(failure),
                // A VMM that is just ending, or very busy, does not say whether it runs.
                Err(error) if error.is_retryable() => {
                    *seen = Some(Seen::Error(about(&error)));
                    let _ = timeout(backoff.pause(), vm_state.changed()).await;
                    continue;
                }
                Err(error) => return Err(about(&error)),
            };
            match self
                .watch(context, &vm, &mut vm_state, seen, &mut backoff)
                .await
            {
                Ok(Watched::Met(status)) => return Ok(*status),
                Ok(Watched::InVain(why)) => {
                    let hint = "give it a health_cmd or a health_argv, or wait for another state";
                    return Err(Failure::failed(why).hint(hint).of(name));
                }
                Ok(Watched::NotRunning) => {}
                // A guest that says so over and over is not dialled as often.
                Ok(Watched::Stale) => {
                    let _ = timeout(backoff.pause(), vm_state.changed()).await;
                }
                Ok(Watched::AboutToBeFrozen) if vm_state.is_told() => {
                    vm_state.frozen_or_not().await;
                }
                Ok(Watched::AboutToBeFrozen) => {
                    return Err(Failure {
                        vm: Some(name.clone()),
                        retryable: true,
                        ..Failure::failed("the guest is being put to sleep").hint(format!(
                            "it is about to be frozen; wait again when it has woken (mvmctl vm wake \
                             {name} wakes it)"
                        ))
                    });
                }
                Err(error) if error.is_retryable() => {
                    *seen = Some(Seen::Error(about(&error)));
                    let _ = timeout(backoff.pause(), vm_state.changed()).await;
                }
                Err(error) => return Err(about(&error)),
            }
        }
    }

    async fn watch(
        &self,
        context: &Context,
        vm: &Vm,
        state: &mut VmState<'_>,
        seen: &mut Option<Seen>,
        backoff: &mut Backoff,
    ) -> Result<Watched, Error> {
        // `--timeout` is for the whole wait; each try has the usual deadlines.
        let deadlines = Deadlines::default();
        let begun = async {
            let session = context.connect(vm, &deadlines).await?;
            Watcher::start(session, HEARTBEAT).await
        };
        let (mut status, mut watcher) = tokio::select! {
            biased;
            begun = begun => begun?,
            _ = state.until_not_running() => return Ok(Watched::NotRunning),
        };
        backoff.is_up();
        loop {
            if self.state.is_met(&status) {
                return Ok(Watched::Met(Box::new(status)));
            }
            if let Some(why) = self.state.is_in_vain(&status) {
                return Ok(Watched::InVain(why));
            }
            *seen = Some(Seen::Status(event::status(&status)));
            let event = tokio::select! {
                biased;
                event = watcher.next() => event?,
                _ = state.until_not_running() => return Ok(Watched::NotRunning),
            };
            match event {
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
        let goal = &self.state;
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
    /// It will never be met, and why.
    InVain(String),
    /// Integrations may have come or gone: the status has to be had anew.
    Stale,
    AboutToBeFrozen,
    /// The VM does not run any more.
    NotRunning,
}

/// What was seen last.
enum Seen {
    Status(String),
    Error(Failure),
}
