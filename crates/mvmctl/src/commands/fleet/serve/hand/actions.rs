//! What each action does to a VM: the same as the command of that name, by the same code.
//!
//! Between the decision and the action the VM may have become another. What is found out before
//! anything is done is a skip, and no failure: the next look at the VM decides anew.

use crate::commands::Context;
use crate::commands::machine::blocking;
use crate::commands::payload::PayloadArg;
use crate::commands::restore::{Restoration, restore_vm};
use crate::commands::snapshot::{NOT_IDLE, Taking, refuse_busy, snapshot_vm};
use crate::report::{Failure, INTERRUPTED};
use mvm_fleet::policy::PoolPolicy;
use mvm_fleet::policy::{Action, Reason};
use mvm_fleet::{ActionKind, Outcome};
use mvm_protocol::Timestamp;
use mvm_protocol::lifecycle::SleepPrep;
use mvm_registry::notes::{FailedAction, FleetNotes};
use mvm_registry::{Error as RegistryError, Home, VmFolder, VmName, VmState};
use mvm_vmm::pause::By;
use mvm_vmm::suspend::RestoreSpec;
use mvm_vmm::{Deadline, Error, Stop, Verify};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// How long a VMM may take to have a VM stand still, or run on.
const PAUSE: Duration = Duration::from_secs(30);

/// How long a guest may take to power off.
const POWER_OFF: Duration = Duration::from_secs(20);

/// The snapshots that the fleet makes, in a VM's folder `snapshots`. They are its own to remove.
const OWN: &str = "fleet-";

/// What an action is done with.
pub(super) struct Job<'a> {
    pub(super) context: &'a Context,
    pub(super) home: Home,
    pub(super) action: Action,
    /// What the policy says of the VM's pool.
    pub(super) policy: PoolPolicy,
    /// Raised when this program is to end: what can be undone is.
    pub(super) cancelled: Arc<AtomicBool>,
}

/// Why an action was not done.
enum NotDone {
    /// The VM was another than it was taken for.
    Skipped(String),
    Failed(Failure),
}

impl From<Failure> for NotDone {
    fn from(failure: Failure) -> Self {
        // That this program was to end is no failure of the action either.
        let skipped = [NOT_IDLE, "not-running", "locked", INTERRUPTED];
        if skipped.contains(&&*failure.code) {
            Self::Skipped(failure.message)
        } else {
            Self::Failed(failure)
        }
    }
}

impl Job<'_> {
    /// Does it. A failure is noted in the VM's folder, so that the next start waits as long for it as
    /// this program would have.
    pub(super) async fn perform(&self) -> (Outcome, Option<String>) {
        let Ok(vm) = VmName::new(&self.action.vm) else {
            return (Outcome::Failed, Some("its name is none".into()));
        };
        let folder = self.home.vm(&vm);
        let done = match self.action.kind {
            ActionKind::Wake => self.wake(&folder).await,
            ActionKind::Resume => self.resume(&vm).await,
            ActionKind::Clone => self.clone_golden(&vm, &folder).await,
            ActionKind::Remove => self.remove(&vm, &folder).await,
            ActionKind::Pause => self.pause(&vm).await,
            ActionKind::Sleep => self.sleep(&vm, &folder).await,
            ActionKind::Stop => self.stop(&vm).await,
        };
        match done {
            Ok(()) => {
                note(&folder, self.action.kind, None);
                (Outcome::Ok, None)
            }
            Err(NotDone::Skipped(why)) => (Outcome::Skipped, Some(why)),
            Err(NotDone::Failed(failure)) => {
                let problem = match &failure.hint {
                    Some(hint) => format!("{} ({hint})", failure.message),
                    None => failure.message,
                };
                note(&folder, self.action.kind, Some(&problem));
                (Outcome::Failed, Some(problem))
            }
        }
    }

    async fn block<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Home, &VmName) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, NotDone> {
        let vm = VmName::new(&self.action.vm)
            .map_err(|error| Failure::registry(&self.action.vm, &error))?;
        let home = self.home.clone();
        let done = blocking(move || work(&home, &vm)).await;
        done.map_err(|error| not_done(&self.action.vm, &error))
    }

    /// Asks the guest once more whether it is idle: it may have begun to work since it last said so.
    async fn ask_whether_idle(&self, vm: &VmName, idle_for: Duration) -> Result<(), NotDone> {
        let (context, name) = (self.context, vm.as_str());
        let deadlines = context.deadlines();
        let inventory = context.inventory()?;
        let asked = async {
            let found = inventory.now(name, deadlines.connect).await?;
            context.connect(&found, &deadlines).await?.status().await
        };
        let status = asked.await.map_err(|error| {
            // Unknown is not idle.
            NotDone::Skipped(format!("it does not say that it is idle: {error}"))
        })?;
        Ok(refuse_busy(name, &status, idle_for)?)
    }

    /// For how long the reason says that the guest itself has been idle.
    fn idle_for(&self) -> Duration {
        match self.action.reason {
            Reason::Idle { after, .. } => after,
            // While it stood still its clock did too.
            _ => Duration::ZERO,
        }
    }

    async fn wake(&self, folder: &VmFolder) -> Result<(), NotDone> {
        let snapshot = sleeps_in(folder)?;
        let job = Restoration {
            snapshot: snapshot.clone(),
            verify: Verify::Once,
            spec: RestoreSpec {
                console_keeper: Some(self.context.console_keeper),
                ..RestoreSpec::default()
            },
            payload: None,
        };
        restore_vm(self.context, &self.action.vm, job, &self.cancelled).await?;
        // It goes on from here: what it was is of no use to anybody. One that stays is removed with
        // the next sleep.
        let folder = folder.clone();
        let _ = tokio::task::spawn_blocking(move || remove_old_snapshots(&folder, None)).await;
        Ok(())
    }

    async fn resume(&self, _: &VmName) -> Result<(), NotDone> {
        self.block(|home, vm| mvm_vmm::pause::resume(home, vm, Deadline::new(PAUSE, None)))
            .await
    }

    /// Makes a new one. If anything fails there is none: nobody has it yet.
    async fn clone_golden(&self, vm: &VmName, folder: &VmFolder) -> Result<(), NotDone> {
        let Some(golden) = self.policy.golden.clone() else {
            return Err(NotDone::Skipped("the pool has no `golden` any more".into()));
        };
        let payload = match self.policy.payload.clone() {
            Some(file) => PayloadArg::of(file).read()?,
            None => None,
        };
        if folder.path().exists() {
            return Err(NotDone::Skipped("there is a VM of that name by now".into()));
        }
        // Whose it is stands there before it is anything: see `mvm_vmm::removal::sweep`.
        self.block(|home, vm| {
            let folder = home.vm(vm);
            folder.create()?;
            Ok(folder.note(&FleetNotes {
                made: true,
                ..FleetNotes::default()
            })?)
        })
        .await?;
        let job = Restoration {
            snapshot: golden,
            verify: Verify::Once,
            spec: RestoreSpec {
                clone: true,
                payload: payload.is_some(),
                console_keeper: Some(self.context.console_keeper),
                ..RestoreSpec::default()
            },
            payload,
        };
        let made = restore_vm(self.context, vm.as_str(), job, &self.cancelled).await;
        if let Err(failure) = made {
            let _ = self.block(give_up).await;
            return Err(NotDone::Failed(failure));
        }
        Ok(())
    }

    async fn pause(&self, vm: &VmName) -> Result<(), NotDone> {
        self.ask_whether_idle(vm, self.idle_for()).await?;
        let deadline = || Deadline::new(PAUSE, None);
        self.block(move |home, vm| mvm_vmm::pause::pause(home, vm, By::Fleet, deadline()))
            .await
    }

    async fn sleep(&self, vm: &VmName, folder: &VmFolder) -> Result<(), NotDone> {
        if is_paused(folder) {
            self.resume(vm).await?;
        }
        let stamp = jiff::Timestamp::now().as_millisecond();
        let to = folder.file("snapshots").join(format!("{OWN}{stamp}"));
        let job = Taking {
            to: Some(to.clone()),
            stop: true,
            deadline: SleepPrep::default().deadline_secs,
            require_freeze: false,
            idle_for: Some(self.idle_for()),
            at_most: None,
        };
        let cancelled = Arc::clone(&self.cancelled);
        snapshot_vm(self.context, vm.as_str(), job, cancelled).await?;
        let folder = folder.clone();
        let _ = tokio::task::spawn_blocking(move || remove_old_snapshots(&folder, Some(&to))).await;
        Ok(())
    }

    async fn stop(&self, vm: &VmName) -> Result<(), NotDone> {
        let folder = self.home.vm(vm);
        // One that is over twice its lifetime goes whatever it does. One that stands still says
        // nothing, and has done nothing since it did.
        if matches!(self.action.reason, Reason::Lifetime { .. }) && !is_paused(&folder) {
            self.ask_whether_idle(vm, Duration::ZERO).await?;
        }
        self.block(|home, vm| mvm_vmm::machine::stop(home, vm, Stop::Ask(POWER_OFF)))
            .await?;
        Ok(())
    }

    async fn remove(&self, _: &VmName, folder: &VmFolder) -> Result<(), NotDone> {
        let state = folder.vm().map(|vm| vm.state);
        let is_left_over = state == Some(VmState::StartBrokenOff);
        self.block(move |home, vm| {
            if is_left_over {
                // Processes of a start that nobody saw to its end.
                mvm_vmm::machine::stop(home, vm, Stop::Force)?;
            }
            mvm_vmm::removal::remove(home, vm)
        })
        .await
    }
}

/// The snapshot in which a VM sleeps: also one whose restore was broken off before it ran.
fn sleeps_in(folder: &VmFolder) -> Result<PathBuf, NotDone> {
    let slept = |why: &str| NotDone::Skipped(why.to_owned());
    let record = folder.record().map_err(|error| slept(&error.to_string()))?;
    match folder.vm().map(|vm| vm.state) {
        Some(VmState::Asleep { .. } | VmState::StartBrokenOff) => {
            record.suspended_in.ok_or_else(|| {
                NotDone::Failed(Failure::failed(
                    "its record does not say in which snapshot it sleeps",
                ))
            })
        }
        Some(state) => Err(NotDone::Skipped(format!("it is {state}"))),
        None => Err(slept("it is gone")),
    }
}

fn is_paused(folder: &VmFolder) -> bool {
    let state = folder.vm().map(|vm| vm.state);
    matches!(state, Some(VmState::Paused(mvm_registry::Pause::Fleet)))
}

/// Ends and removes a clone that nobody has been given.
pub(super) fn give_up(home: &Home, vm: &VmName) -> Result<(), Error> {
    match home.vm(vm).last_record()? {
        Some(_) => {
            mvm_vmm::machine::stop(home, vm, Stop::Force)?;
            mvm_vmm::removal::remove(home, vm)
        }
        None => mvm_vmm::removal::sweep(home),
    }
}

/// Removes the fleet's snapshots of a VM but for the one in which it sleeps, and what is left of those
/// that were broken off. One that cannot be removed
/// is removed with the VM.
pub(super) fn remove_old_snapshots(folder: &VmFolder, keep: Option<&Path>) {
    mvm_vmm::snapshot::discard_all_left(&folder.file("snapshots"));
    let slept = folder.record().ok().and_then(|record| record.suspended_in);
    let Ok(entries) = std::fs::read_dir(folder.file("snapshots")) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let is_own = entry.file_name().to_string_lossy().starts_with(OWN);
        if is_own && Some(&*path) != keep && Some(&path) != slept.as_ref() {
            let _ = std::fs::remove_dir_all(path);
        }
    }
}

/// Notes how the fleet's last action on a VM came out, unless there is no such VM.
pub(in crate::commands::fleet::serve) fn note(
    folder: &VmFolder,
    kind: ActionKind,
    problem: Option<&str>,
) {
    if folder.vm().is_none() {
        return;
    }
    let mut notes = folder.notes().fleet;
    let before = notes.failed.take();
    match problem {
        Some(problem) => notes.failed = Some(failed(before, kind, problem)),
        None if before.is_some_and(|before| clears(kind, &before)) => {}
        None => return,
    }
    // What cannot be noted is tried sooner again than it should.
    let _ = folder.note(&notes);
}

/// Whether a success makes up for what failed before. A word that we do not know is of no use to anybody.
fn clears(kind: ActionKind, before: &FailedAction) -> bool {
    let mut kinds = ActionKind::ALL.into_iter();
    let failed = kinds.find(|kind| kind.as_str() == before.action);
    failed.is_none_or(|failed| kind.clears(failed))
}

/// A refusal of what this host does: before anything was done, or in the middle.
fn not_done(vm: &str, error: &Error) -> NotDone {
    match error {
        Error::Registry(
            RegistryError::NotRunning { .. }
            | RegistryError::Locked { .. }
            | RegistryError::NoSuchVm { .. },
        )
        | Error::NotPaused { .. }
        | Error::NotRemoved { .. }
        | Error::Running { .. } => NotDone::Skipped(error.to_string()),
        Error::Registry(error) => NotDone::Failed(Failure::registry(vm, error)),
        error => NotDone::Failed(Failure::failed(error.to_string()).of(vm).hint(error.hint())),
    }
}

/// An action that failed, once more if it did before.
fn failed(before: Option<FailedAction>, kind: ActionKind, problem: &str) -> FailedAction {
    let times = before
        .filter(|before| before.action == kind.as_str())
        .map_or(0, |before| before.times);
    FailedAction {
        action: kind.as_str().to_owned(),
        at: Timestamp(jiff::Timestamp::now().as_millisecond()),
        times: times.saturating_add(1),
        problem: problem.chars().take(512).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the fleet does to a paused one whose checkpoint always fails: it is resumed for the sleep.
    #[test]
    fn pauses_between_sleeps_that_fail_do_not_begin_their_count_anew() {
        let home = tempfile::tempdir().unwrap();
        let folder = Home::at(home.path()).vm(&VmName::new("web-1").unwrap());
        folder.create().unwrap();
        std::fs::write(folder.file("vm.json"), "{}").unwrap();
        let failed = || {
            let failed = folder.notes().fleet.failed;
            failed.map(|failed| (failed.action, failed.times))
        };
        for times in 1..4 {
            note(&folder, ActionKind::Sleep, Some("no space"));
            assert_eq!(failed(), Some(("sleep".to_owned(), times)));
            note(&folder, ActionKind::Pause, None);
            note(&folder, ActionKind::Resume, None);
            assert_eq!(failed(), Some(("sleep".to_owned(), times)));
        }
        note(&folder, ActionKind::Wake, None);
        assert_eq!(failed(), None);
        note(&folder, ActionKind::Pause, Some("no answer"));
        note(&folder, ActionKind::Pause, None);
        assert_eq!(failed(), None);
    }
}
