//! `mvmctl vm events`

mod later;

use self::later::Later;
use super::Context;
use crate::args::Format;
use crate::backoff::Backoff;
use crate::fleet::{self, Scope, Target};
use crate::render::data::{self, Named};
use crate::render::event;
use crate::render::shown::Shown;
use crate::report::{self, Failure, InData, Outcome};
use crate::vm_name;
use crate::vm_state::{Now, VmState, VmStates};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use mvm_client::{Error, Watcher};
use mvm_protocol::answer::{Change, Event};
use mvm_protocol::status::Status;
use mvm_registry::Vm;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::Instrument as _;

/// Show changes as they happen
///
/// First the status of each VM as it is, then a line for each change, until it is interrupted. With
/// --json each line is an object: a status has `lifecycle` and no `at`, a change has `at`, a VM that
/// was lost has `error`. A VM that cannot be reached at the beginning is given up; one that is lost
/// later is dialled again with growing pauses, and told of by its status when it is back. One that is
/// frozen for a snapshot, put to sleep or stopped is let go of, and followed again once it runs. It
/// ends when all VMs are given up or have ended by themselves. Without names it is also about those that
/// begin to run later.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    vms: vm_name::Any,
}

/// How often a quiet guest says that it is there: three missing ones make it lost.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// The code of an error about a VM that is not there any more.
const REMOVED: &str = "no-such-vm";

/// How long a line may be in characters.
const MOST: usize = 500;

impl Args {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
        let inventory = context.inventory()?;
        let (scope, targets) = fleet::targets(context, &inventory, &self.vms)?;
        let at_once = fleet::at_once(context, targets.len());
        let states = VmStates::new(context);
        let dialling = Semaphore::new(at_once);
        let follow = |target: Target, is_later: bool| {
            let span = tracing::info_span!("vm", name = target.name);
            let follower = Follower {
                context,
                scope,
                dialling: &dialling,
                states: &states,
                name: target.name.clone(),
            };
            let follow = async move {
                let name = follower.name.clone();
                (name, follower.follow(target, is_later).await)
            };
            follow.instrument(span)
        };
        let wanted = targets.into_iter().filter(|target| {
            // Among all VMs, one that is not running is as it should be.
            scope != Scope::All || !target.vm.as_ref().is_ok_and(fleet::is_off)
        });
        let wanted: Vec<_> = wanted.collect();
        let names = wanted.iter().map(|target| target.name.clone());
        let mut later = (scope == Scope::All).then(|| Later::than(names, inventory.clone()));
        let mut watches: FuturesUnordered<_> = wanted
            .into_iter()
            .map(|target| follow(target, false))
            .collect();
        let mut failures = Vec::new();
        while !watches.is_empty() {
            let begun = async {
                match &mut later {
                    Some(later) => later.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                Some((name, end)) = watches.next() => {
                    failures.extend(end.err());
                    if let Some(later) = &mut later {
                        later.is_over(&name);
                    }
                }
                begun = begun => for name in begun {
                    // What is gone again needs nobody.
                    match inventory.find(&name) {
                        Ok(vm) if vm.is_meant_by(&self.vms.by_label.selectors) => {
                            watches.push(follow(Target { name, vm: Ok(vm) }, true));
                        }
                        _ => later.iter_mut().for_each(|later| later.is_over(&name)),
                    }
                },
                () = context.ui.closed() => return Ok(Outcome::Done),
            }
        }
        match scope {
            _ if failures.is_empty() => Ok(Outcome::Done),
            Scope::One => failures.pop().map_or(Ok(Outcome::Done), Err),
            _ => Ok(Outcome::SomeFailed),
        }
    }
}

/// Follows one VM.
struct Follower<'a> {
    context: &'a Context,
    scope: Scope,
    /// Bounds how many VMs are dialled at once, not how many are watched.
    dialling: &'a Semaphore,
    states: &'a VmStates<'a>,
    name: String,
}

/// Why a watch that had begun is over.
enum Over {
    /// Nobody reads any more.
    Unread,
    /// The guest is about to be frozen. Dialling it now could wedge its vsock backend.
    Asleep,
    /// The VM does not run any more.
    NotRunning,
}

impl Follower<'_> {
    /// Until the VM has ended, whatever is being waited for just then. One that has begun to run just now
    /// may have to be told first that it was restored.
    async fn follow(self, target: Target, is_later: bool) -> Result<(), Failure> {
        if let Err(error) = target.vm {
            return self.give_up(&error.into());
        }
        let mut state = self.states.of(&self.name)?;
        if is_later {
            state.until_woken().await;
        }
        let mut was_up = false;
        let mut backoff = Backoff::new();
        loop {
            let vm = match state.now().await {
                Ok(Now::Runs(vm)) => vm,
                Ok(Now::Off(error)) if was_up => {
                    self.tell(&Failure::about(&self.name, &error))?;
                    let mut told = error.to_string();
                    while let Ok(Now::Off(error)) = state.now().await {
                        // As from being snapshotted to being asleep.
                        if error.to_string() != told {
                            self.tell(&Failure::about(&self.name, &error))?;
                            told = error.to_string();
                        }
                        state.changed().await;
                    }
                    continue;
                }
                Ok(Now::Ended(_, failure)) => return self.give_up_for(failure),
                // A VMM that is just ending does not say any more whether it runs.
                Err(error) if was_up && error.is_retryable() => {
                    let _ = timeout(backoff.pause(), state.changed()).await;
                    continue;
                }
                Err(error) if was_up && error.code() == REMOVED => return self.removed(&error),
                Ok(Now::Off(error)) | Err(error) => return self.give_up(&error),
            };
            let mut is_up = false;
            let error = match self.watch(&vm, &mut state, &mut is_up, &mut backoff).await {
                Ok(Over::Unread) => return Ok(()),
                Ok(Over::NotRunning) => {
                    was_up = true;
                    continue;
                }
                Ok(Over::Asleep) if state.is_told() => {
                    was_up = true;
                    state.frozen_or_not().await;
                    continue;
                }
                Ok(Over::Asleep) => {
                    let name = &self.name;
                    self.context
                        .ui
                        .note(&format!("{name}: is put to sleep, no longer watched"));
                    return Ok(());
                }
                Err(Stop::Output(failure)) => return Err(failure),
                Err(Stop::Watch(error)) => error,
            };
            was_up |= is_up;
            match state.now().await {
                Ok(Now::Runs(_)) if was_up && error.is_retryable() => {}
                Err(unknown) if was_up && unknown.is_retryable() => {}
                // What became of it says more than how the connection ended.
                Ok(Now::Off(_)) if was_up => continue,
                Err(gone) if was_up && gone.code() == REMOVED => return self.removed(&gone),
                Ok(Now::Ended(_, failure)) => return self.give_up_for(failure),
                _ => return self.give_up(&error),
            }
            if is_up {
                // Once for each time that it is lost, not for each try in vain.
                self.tell(&Failure::about(&self.name, &error))?;
            }
            let _ = timeout(backoff.pause(), state.changed()).await;
        }
    }

    /// Among all VMs, one that was removed is as it should be.
    fn removed(&self, error: &Error) -> Result<(), Failure> {
        let mut failure = Failure::about(&self.name, error);
        failure.message = format!("it was removed: {}", failure.message);
        // Which name was meant instead is no question.
        failure.hint = None;
        if self.scope != Scope::All {
            return self.give_up_for(failure);
        }
        if matches!(self.context.format, Format::Json | Format::Yaml) {
            data::line(self.context, &InData::from(&failure))?;
        }
        let name = &self.name;
        self.context.ui.note(&format!("{name}: it was removed"));
        Ok(())
    }

    fn give_up(&self, error: &Error) -> Result<(), Failure> {
        self.give_up_for(Failure::about(&self.name, error))
    }

    fn give_up_for(&self, failure: Failure) -> Result<(), Failure> {
        // The one VM's failure is told by the report of the command.
        if self.scope != Scope::One {
            self.tell(&failure)?;
        }
        Err(failure)
    }

    async fn watch(
        &self,
        vm: &Vm,
        state: &mut VmState<'_>,
        is_up: &mut bool,
        backoff: &mut Backoff,
    ) -> Result<Over, Stop> {
        let permit = self.dialling.acquire().await;
        let deadlines = self.context.deadlines();
        let begun = async {
            let session = self.context.connect(vm, &deadlines).await?;
            Watcher::start(session, HEARTBEAT).await
        };
        let (status, mut watcher) = tokio::select! {
            biased;
            begun = begun => begun?,
            _ = state.until_not_running() => return Ok(Over::NotRunning),
        };
        drop(permit);
        *is_up = true;
        backoff.is_up();
        self.show_status(&status)?;
        while !self.context.ui.is_closed() {
            let event = tokio::select! {
                biased;
                event = watcher.next() => event?,
                _ = state.until_not_running() => return Ok(Over::NotRunning),
            };
            match event {
                None => return Ok(Over::Asleep),
                Some(event) => self.show(&event)?,
            }
        }
        Ok(Over::Unread)
    }

    fn show_status(&self, status: &Status) -> Result<(), Failure> {
        let vm = &self.name;
        match self.context.format {
            Format::Json | Format::Yaml => data::line(self.context, &Named { vm, answer: status }),
            _ => self.print(&event::status(status)),
        }
    }

    fn show(&self, event: &Event) -> Result<(), Failure> {
        let vm = &self.name;
        if matches!(event.change, Change::Heartbeat { .. }) {
            return Ok(());
        }
        match self.context.format {
            Format::Json | Format::Yaml => data::line(self.context, &Named { vm, answer: event }),
            _ => match event::change(&event.change) {
                Some(change) => self.print(&format!("{}  {change}", event.at)),
                None => Ok(()),
            },
        }
    }

    fn print(&self, line: &str) -> Result<(), Failure> {
        self.context.ui.print(&match self.context.format {
            Format::Name => Shown::line(&self.name),
            // However many words of a newer agent are in it.
            _ => Shown::short_line(&format!("{}  {line}", self.name), MOST),
        })
    }

    /// Tells that the VM cannot be reached, where those who read will see it.
    fn tell(&self, failure: &Failure) -> Result<(), Failure> {
        if matches!(self.context.format, Format::Json | Format::Yaml) {
            data::line(self.context, &InData::from(failure))?;
        }
        report::tell(self.context, failure);
        Ok(())
    }
}

/// Why a watch could not go on.
enum Stop {
    Watch(Error),
    /// The output cannot be written: no reason to try again.
    Output(Failure),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Watch(error)
    }
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Output(failure)
    }
}
