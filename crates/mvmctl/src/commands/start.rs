//! `mvmctl vm start NAME`

use super::Context;
use super::machine::{
    Wanted, blocking, cancelled_by_signals, failure, name, not_of_another, tell_logs, until_raised,
};
use super::mend::mend_if_broken_off;
use super::timings::{self, HostTimes, Timings};
use crate::render::data;
use crate::render::shown::Shown;
use crate::report::{Failure, Outcome};
use crate::vm_name::{Marks, complete};
use clap_complete::engine::ArgValueCompleter;
use mvm_client::{Deadlines, Endpoint};
use mvm_registry::{Home, Labels, Record, Recorded, VmName};
use mvm_vmm::{Deadline, Error, Spec, Starting};
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long a start may take that was given no `--timeout`. Emulated, on a busy machine, a guest
/// takes 10 s.
pub(super) const DEFAULT_TIMEOUT: Duration = Duration::from_mins(1);

/// How long to wait between two tries to reach the agent. It has said by then that it listens.
const BETWEEN_TRIES: Duration = Duration::from_millis(100);

/// Start a VM and wait until its agent answers
///
/// A VM that was started before keeps its image, backend, size and labels; what is given replaces them.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The VM's name: letters, digits, '.', '_' and '-'
    #[arg(add = ArgValueCompleter::new(complete))]
    name: String,

    #[command(flatten)]
    machine: Machine,

    /// Return as soon as the VM runs, whether its agent answers or not
    #[arg(long)]
    no_wait: bool,

    /// Say when what was up, on this host and in the guest, once the guest is ready: its drop-ins loaded,
    /// and each integration that has a check healthy. It waits for that as long as it may take to start
    #[arg(long, conflicts_with = "no_wait")]
    timings: bool,

    /// Boot a VM that is asleep in a snapshot, and give up what it was doing
    #[arg(long)]
    discard_state: bool,

    #[command(flatten)]
    marks: Marks,
}

/// What the VM is made of.
#[derive(Debug, clap::Args)]
pub(super) struct Machine {
    /// The image folder, from `mvmctl image build` or mkGuest
    #[arg(long, value_name = "DIR")]
    pub(super) image: Option<PathBuf>,

    /// Who runs it; `auto` is the first that works here. `local` runs the agent as a plain process
    /// on this machine, without a guest
    #[arg(long, value_name = "BACKEND", value_parser = backends())]
    pub(super) backend: Option<String>,

    /// Virtual CPUs [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(super) cpus: Option<u32>,

    /// Memory in MiB [default: 256]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(64..))]
    pub(super) memory: Option<u32>,

    /// How much is kept of what the guest prints, in MiB: the beginning and the end of this boot and of
    /// the one before [default: 4]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(super) console_limit: Option<u32>,

    /// The agent's program, with --backend local [default: the one beside mvmctl]
    #[arg(long, value_name = "PATH")]
    pub(super) agent: Option<PathBuf>,

    /// A folder with agent.json, integrations.d and probes.d, with --backend local
    #[arg(long, value_name = "DIR")]
    pub(super) etc: Option<PathBuf>,
}

impl Machine {
    /// What is to be started.
    pub(super) fn spec(self, context: &Context, marks: Marks, discard_state: bool) -> Spec {
        Spec {
            image: self.image,
            backend: self.backend,
            cpus: self.cpus,
            memory_mib: self.memory,
            console_limit_mib: self.console_limit,
            console_keeper: Some(context.console_keeper),
            agent: self.agent,
            etc: self.etc,
            pinned: marks.pinned(),
            labels: marks.labels,
            discard_state,
        }
    }
}

fn backends() -> clap::builder::PossibleValuesParser {
    let names = std::iter::once("auto").chain(mvm_vmm::driver::names());
    names.collect::<Vec<_>>().into()
}

/// What came of it, as data.
#[derive(Debug, Serialize)]
struct Report {
    state: Recorded,
    /// Whether its agent has answered; not asked with `--no-wait`.
    answers: bool,
    backend: String,
    accelerator: Option<String>,
    image: Option<PathBuf>,
    cpus: u32,
    memory_mib: u32,
    labels: Labels,
    pinned: bool,
    duration_ms: u64,
    /// With `--timings`: when what was up.
    #[serde(skip_serializing_if = "Option::is_none")]
    timings: Option<Timings>,
}

impl Report {
    fn of(record: &Record, answers: bool, begun: Instant) -> Self {
        Self {
            state: record.state,
            answers,
            backend: record.backend.clone(),
            accelerator: record.accelerator.clone(),
            image: record.image.clone(),
            cpus: record.cpus,
            memory_mib: record.memory_mib,
            labels: record.labels.clone(),
            pinned: record.pinned,
            duration_ms: begun.elapsed().as_millis().try_into().unwrap_or(u64::MAX),
            timings: None,
        }
    }
}

impl Args {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
        let vm = name(&self.name)?;
        let inventory = context.inventory()?;
        not_of_another(&inventory, &self.name, Wanted::Start)?;
        let home = inventory.home().clone();
        let begun = Instant::now();
        if mend_if_broken_off(context, &self.name).await?.is_some() {
            let record = home.vm(&vm).record();
            let record = record.map_err(|error| Failure::registry(&self.name, &error))?;
            let report = Report::of(&record, true, begun);
            data::one(context, &self.name, &report, Shown::new)?;
            return Ok(Outcome::Done);
        }
        let at_most = context.timeout.unwrap_or(DEFAULT_TIMEOUT);
        let progress = context.ui.progress(&format!("starting {vm}"));
        let spec = self.machine.spec(context, self.marks, self.discard_state);
        let wait = !self.no_wait;
        let cancelled = cancelled_by_signals(context);
        let booted = boot(context, &home, &vm, spec, wait, at_most, &cancelled).await?;
        let record = &booted.record;
        let mut report = Report::of(record, wait, begun);
        drop(progress);
        let how = record
            .accelerator
            .as_ref()
            .map_or(String::new(), |name| format!(", {name}"));
        let so_far = if wait { "answers" } else { "runs" };
        context.ui.note(&format!(
            "{} {so_far} after {:.1} s ({}{how})",
            self.name,
            begun.elapsed().as_secs_f64(),
            record.backend
        ));
        if self.timings {
            let _progress = context
                .ui
                .progress(&format!("waiting for {vm} to be ready"));
            let left = at_most.saturating_sub(begun.elapsed());
            let told =
                timings::of_guest(context, &booted.endpoint, left, until_raised(&cancelled)).await;
            report.timings = Some(Timings::of(booted.times, told));
        }
        data::one(context, &self.name, &report, || {
            let timings = report.timings.as_ref();
            timings.map_or_else(Shown::new, |timings| timings.shown(context))
        })?;
        Ok(Outcome::Done)
    }
}

/// A VM that was started.
pub(super) struct Booted {
    pub(super) record: Record,
    /// Where its agent is reached.
    endpoint: Endpoint,
    times: HostTimes,
}

/// Starts a VM and, if so wanted, waits until its agent answers. What was started is ended again if
/// that fails, and when the flag is raised.
pub(super) async fn boot(
    context: &Context,
    home: &Home,
    vm: &VmName,
    spec: Spec,
    wait: bool,
    at_most: Duration,
    cancelled: &Arc<AtomicBool>,
) -> Result<Booted, Failure> {
    let name = vm.as_str();
    let failed = |error: &Error| failure(context, name, Wanted::Start, error);
    let begun = Instant::now();
    let (home, vm, flag) = (home.clone(), vm.clone(), Arc::clone(cancelled));
    let starting = blocking(move || {
        let deadline = Deadline::new(at_most, Some(&flag));
        let starting = mvm_vmm::machine::start(&home, &vm, &spec, deadline)?;
        let mut times = HostTimes::begun(begun);
        if wait {
            starting.wait_for_agent(deadline)?;
            times.agent_listens(begun);
        }
        Ok((starting, times))
    });
    let (starting, mut times) = starting.await.map_err(|error| failed(&error))?;
    if wait {
        let left = at_most.saturating_sub(begun.elapsed());
        if let Err(error) = answer(context, &starting, left, cancelled).await {
            // The guest's side of the story, before it is gone.
            tell_logs(context, &starting.logs());
            let ended = blocking(move || {
                drop(starting);
                Ok(())
            });
            ended.await.map_err(|error| failed(&error))?;
            return Err(error.of(name));
        }
        times.agent_answers(begun);
    }
    let endpoint = Endpoint::unix(starting.socket()).with_port(starting.port());
    let record = starting.confirm().map_err(|error| failed(&error))?;
    Ok(Booted {
        record,
        endpoint,
        times,
    })
}

/// Waits for the first pong. The agent has said on the console that it listens; what can still be
/// in the way is a vsock device that drops a connection or two.
async fn answer(
    context: &Context,
    starting: &Starting,
    at_most: Duration,
    cancelled: &AtomicBool,
) -> Result<(), Failure> {
    let endpoint = Endpoint::unix(starting.socket()).with_port(starting.port());
    let until = Instant::now() + at_most;
    loop {
        let tried = async {
            let mut session = context
                .dialer
                .connect(&endpoint, &Deadlines::default())
                .await?;
            session.ping().await
        };
        let Err(error) = tried.await else {
            return Ok(());
        };
        if let Err(ended) = starting.check_alive() {
            return Err(Failure::failed(ended.to_string()));
        }
        if cancelled.load(Ordering::Relaxed) {
            return Err(Failure::failed(Error::Interrupted.to_string()));
        }
        if Instant::now() >= until {
            return Err(Failure::failed(format!(
                "its agent says that it listens, and does not answer: {error}"
            ))
            .hint("what was started has been ended again; `mvmctl vm logs` has its console"));
        }
        tokio::time::sleep(BETWEEN_TRIES).await;
    }
}
