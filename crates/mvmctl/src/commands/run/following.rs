//! Following a guest and its VM, and telling the supervisor of it.

use super::supervisor::Supervisor;
use crate::backoff::Backoff;
use crate::commands::Context;
use crate::commands::wait::Goal;
use crate::render::event;
use crate::render::words;
use crate::report::Failure;
use crate::vm_state::{Now, VmState};
use mvm_client::watch::{Applied, apply};
use mvm_client::{Deadlines, Error, Watcher};
use mvm_protocol::status::Status;
use mvm_registry::{Ending, Error as RegistryError, Vm, VmState as Registered};
use std::fmt;
use tokio::time::timeout;

/// Why there is nothing more to follow.
pub(super) enum Over {
    /// Another `mvmctl` has put it to sleep or stopped it.
    PutAway(Registered),
    /// It has ended by itself.
    Ended(Ending, Failure),
}

impl fmt::Display for Over {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::PutAway(state) => write!(f, "it is {state}: something else has seen to that"),
            Self::Ended(how, _) => how.fmt(f),
        }
    }
}

/// How the connection to a guest is no more.
enum Watched {
    /// What there is in it may be something else: it is to be asked anew.
    Stale,
    AboutToBeFrozen,
    NotRunning,
}

pub(super) struct Follower<'a> {
    pub(super) context: &'a Context,
    pub(super) supervisor: &'a Supervisor,
    pub(super) notify: Goal,
}

impl Follower<'_> {
    /// Until the VM does not run any more, through snapshots and pauses.
    pub(super) async fn follow(&self, state: &mut VmState<'_>) -> Result<Over, Failure> {
        let mut backoff = Backoff::new();
        loop {
            let error = match state.now().await {
                Ok(Now::Runs(vm)) => match self.watch(&vm, state, &mut backoff).await {
                    Ok(Watched::Stale | Watched::NotRunning) => continue,
                    Ok(Watched::AboutToBeFrozen) => {
                        // It has said so itself, and is not to be dialled now.
                        self.stands_still_in_order("its guest is ready to be frozen");
                        state.frozen_or_not().await;
                        continue;
                    }
                    Err(error) => error,
                },
                Ok(Now::Ended(how, failure)) => return Ok(Over::Ended(how, failure)),
                Ok(Now::Off(Error::Registry(RegistryError::NotRunning { state: now }))) => {
                    if let Registered::Asleep { .. } | Registered::Stopped = now {
                        return Ok(Over::PutAway(now));
                    }
                    if now == Registered::StartBrokenOff {
                        let error = RegistryError::NotRunning { state: now };
                        return Err(Failure::registry(state.name(), &error));
                    }
                    self.stands_still_in_order(&now.to_string());
                    state.changed().await;
                    continue;
                }
                // Such as that its folder was removed.
                Err(error) if !error.is_retryable() => {
                    return Err(Failure::about(state.name(), &error));
                }
                Ok(Now::Off(error)) | Err(error) => error,
            };
            self.supervisor.set_well(false);
            self.supervisor
                .status(&format!("the guest does not answer: {error}"));
            let _ = timeout(backoff.pause(), state.changed()).await;
        }
    }

    /// It does not answer, and nobody is to be alarmed.
    fn stands_still_in_order(&self, how: &str) {
        self.supervisor.set_well(true);
        self.supervisor.status(how);
    }

    async fn watch(
        &self,
        vm: &Vm,
        state: &mut VmState<'_>,
        backoff: &mut Backoff,
    ) -> Result<Watched, Error> {
        let begun = async {
            // `--timeout` is for the beginning and the end.
            let session = self.context.connect(vm, &Deadlines::default()).await?;
            Watcher::start(session, self.supervisor.heartbeat()).await
        };
        let (mut status, mut watcher) = tokio::select! {
            biased;
            begun = begun => begun?,
            _ = state.until_not_running() => return Ok(Watched::NotRunning),
        };
        *backoff = Backoff::new();
        self.supervisor.set_well(true);
        let mut told = None;
        loop {
            self.tell(&status, &mut told, state.name());
            let event = tokio::select! {
                biased;
                event = watcher.next() => event?,
                _ = state.until_not_running() => return Ok(Watched::NotRunning),
            };
            let Some(event) = event else {
                return Ok(Watched::AboutToBeFrozen);
            };
            if apply(&mut status, &event.change) == Applied::Stale {
                return Ok(Watched::Stale);
            }
        }
    }

    /// Tells the supervisor; a change of health goes to the log as well.
    fn tell(&self, status: &Status, told: &mut Option<String>, vm: &str) {
        let health = words::health(status.health).1;
        if told.as_ref().is_some_and(|told| *told != health) {
            self.context
                .ui
                .note(&format!("{vm}: {}", event::status(status)));
        }
        told.replace(health);
        self.supervisor.status(&event::status(status));
        if self.notify.is_met(status) {
            self.supervisor.ready();
        }
    }
}
