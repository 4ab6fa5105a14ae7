//! Having a VM run, whatever is left of one of that name.
//!
//! | what there is | what is done |
//! | --- | --- |
//! | nothing, stopped, ended, a start that was broken off | it begins: from the image, or from `--snapshot` |
//! | asleep, a restore that was broken off | it goes on where it was; `--discard-state`: it begins |
//! | running, and it answers | it is taken over |
//! | running, made of something else than is asked for now, or its stop was broken off | it is stopped, and begins |
//! | running, and it does not answer | it is ended, and begins |
//! | running, and its guest was not told that it was restored | it is told, and taken over |
//! | frozen by a snapshot that was broken off | it runs on, and is taken over |
//! | another `mvmctl` is at it | it is taken over when that one is done |

use super::supervisor::Supervisor;
use crate::backoff::Backoff;
use crate::commands::Context;
use crate::commands::machine::{Wanted, blocking, failure, until_raised};
use crate::commands::mend::mend_if_broken_off;
use crate::commands::restore::{NotRestored, Restoration, restore_and_wake};
use crate::commands::start::{self, boot};
use crate::commands::waking::is_well;
use crate::report::Failure;
use crate::vm_state::{Now, VmState, VmStates};
use mvm_client::{Deadlines, Error as ClientError};
use mvm_protocol::lifecycle::{Awake, Payload};
use mvm_registry::{Error as RegistryError, Home, Record, Recorded, VmName, VmState as Registered};
use mvm_vmm::suspend::RestoreSpec;
use mvm_vmm::{Spec, Stop, Verify};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// How long a guest that is to be replaced may take to power off.
const REPLACED_WITHIN: Duration = Duration::from_secs(20);

/// How often it is looked again at a VM that became something else meanwhile.
const LOOKS: usize = 3;

/// What is to run.
pub(super) struct Asked {
    /// What it begins from in place of an image.
    pub(super) snapshot: Option<PathBuf>,
    pub(super) clone: bool,
    pub(super) verify: Verify,
    pub(super) payload: Option<Payload>,
    pub(super) spec: Spec,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    /// It begins.
    Begin,
    /// It goes on from its own snapshot.
    GoOn(PathBuf),
    /// It is followed as it is.
    TakeOver,
    /// It is stopped first, since: such a reason.
    Replace(&'static str),
}

fn plan(state: Option<&Registered>, record: Option<&Record>, asked: &Asked) -> Plan {
    let Some(state) = state else {
        return Plan::Begin;
    };
    let discards = asked.spec.discard_state;
    let suspended = record.and_then(|record| record.suspended_in.clone());
    match state {
        Registered::Running | Registered::Paused(_) => match record {
            Some(record) if record.state == Recorded::Stopping => {
                Plan::Replace("somebody was stopping it")
            }
            Some(record) if is_another(record, asked) => {
                Plan::Replace("it was started as another one than is asked for now")
            }
            _ => Plan::TakeOver,
        },
        Registered::Starting => Plan::TakeOver,
        Registered::Asleep { .. }
        | Registered::Stopped
        | Registered::Ended(_)
        | Registered::StartBrokenOff
        | Registered::NotOurs { .. }
        | Registered::Unknown(_) => match suspended {
            Some(folder) if !discards => Plan::GoOn(folder),
            _ => Plan::Begin,
        },
    }
}

/// Whether a VM is made of something else than is asked for. What is not asked for is as it is.
fn is_another(record: &Record, asked: &Asked) -> bool {
    let spec = &asked.spec;
    let another_path = |asked: &Option<PathBuf>, is: &Option<PathBuf>| {
        let asked = asked.as_deref().map(|path| {
            // One that cannot be resolved is told of when it is started.
            std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
        });
        asked.is_some() && asked != *is
    };
    let backend = spec.backend.as_deref().filter(|name| *name != "auto");
    another_path(&spec.image, &record.image)
        || another_path(&spec.agent, &record.agent)
        || another_path(&spec.etc, &record.etc)
        || backend.is_some_and(|backend| backend != record.backend)
        || spec.cpus.is_some_and(|cpus| cpus != record.cpus)
        || spec
            .memory_mib
            .is_some_and(|memory| memory != record.memory_mib)
}

pub(super) struct Beginning<'a> {
    pub(super) context: &'a Context,
    pub(super) home: &'a Home,
    pub(super) vm: &'a VmName,
    pub(super) supervisor: &'a Supervisor,
    /// Raised when this program is to end.
    pub(super) cancelled: Arc<AtomicBool>,
}

impl Beginning<'_> {
    /// Has it run. If it fails, nothing of it runs that did not before.
    pub(super) async fn begin(&self, asked: &Asked, states: &VmStates<'_>) -> Result<(), Failure> {
        let name = self.vm.as_str();
        for _ in 0..LOOKS {
            mend_if_broken_off(self.context, name).await?;
            let folder = self.home.vm(self.vm);
            let state = folder.vm().map(|vm| vm.state);
            let record = folder.last_record();
            let record = record.map_err(|error| Failure::registry(name, &error))?;
            match plan(state.as_ref(), record.as_ref(), asked) {
                Plan::Begin => return self.anew(asked).await,
                Plan::GoOn(folder) => return self.go_on(asked, record.as_ref(), &folder).await,
                Plan::TakeOver => {
                    self.tell_if_unwoken(asked).await?;
                    if self.take_over(asked, &mut states.of(name)?).await? {
                        return Ok(());
                    }
                }
                Plan::Replace(why) => {
                    self.say(&format!("it is stopped, and begins anew: {why}"));
                    self.stop(Stop::Ask(REPLACED_WITHIN)).await?;
                }
            }
        }
        Err(
            Failure::failed("it becomes something else each time that it is looked at")
                .of(name)
                .hint("something else starts and stops it as well: let one of them do so"),
        )
    }

    pub(super) fn say(&self, what: &str) {
        self.supervisor.status(what);
        let name = self.vm;
        self.context.ui.note(&format!("{name}: {what}"));
    }

    async fn anew(&self, asked: &Asked) -> Result<(), Failure> {
        if let Some(folder) = &asked.snapshot {
            let (clone, payload) = (asked.clone, asked.payload.clone());
            let restored = self.restore(asked, folder, clone, payload).await;
            return match restored {
                Ok(()) => Ok(()),
                Err(NotRestored::NotStarted(failure)) => Err(failure),
                Err(NotRestored::NotWoken(failure)) => {
                    self.stop(Stop::Force).await?;
                    Err(failure)
                }
            };
        }
        self.say("starting");
        let at_most = self.context.timeout.unwrap_or(start::DEFAULT_TIMEOUT);
        let spec = asked.spec.clone();
        let booted = boot(
            self.context,
            self.home,
            self.vm,
            spec,
            true,
            at_most,
            &self.cancelled,
        );
        booted.await.map(drop)
    }

    /// Goes on from its own sleep; one that cannot be woken sleeps on as before.
    async fn go_on(
        &self,
        asked: &Asked,
        record: Option<&Record>,
        folder: &Path,
    ) -> Result<(), Failure> {
        if record.is_some_and(|record| is_another(record, asked)) {
            let name = self.vm;
            self.context.ui.warning(&format!(
                "{name}: it goes on as it was put to sleep, which is not as it is asked for now; \
                 --discard-state begins anew"
            ));
        }
        match self.restore(asked, folder, false, None).await {
            Ok(()) => {
                self.forget_sleep(folder);
                Ok(())
            }
            Err(NotRestored::NotStarted(failure)) => Err(failure),
            Err(NotRestored::NotWoken(failure)) => Err(self.sleep_on(folder, failure).await?),
        }
    }

    async fn restore(
        &self,
        asked: &Asked,
        folder: &Path,
        clone: bool,
        payload: Option<Payload>,
    ) -> Result<(), NotRestored> {
        self.say(&format!("going on from {}", folder.display()));
        let job = Restoration {
            snapshot: folder.to_owned(),
            verify: asked.verify,
            spec: RestoreSpec {
                clone,
                payload: payload.is_some(),
                labels: asked.spec.labels.clone(),
                pinned: asked.spec.pinned,
                console_keeper: Some(self.context.console_keeper),
            },
            payload,
        };
        let vm = self.vm.as_str();
        let restored = restore_and_wake(self.context, vm, job, &self.cancelled);
        let (_, awake) = restored.await?;
        self.warn_unless_well(&awake);
        Ok(())
    }

    pub(super) fn warn_unless_well(&self, awake: &Awake) {
        if !is_well(awake) {
            let name = self.vm;
            self.context.ui.warning(&format!(
                "{name}: not all went well when it was woken; `mvmctl vm inspect {name}` shows how it is"
            ));
        }
    }

    /// Whether it is up; else it is to be looked at anew.
    async fn take_over(&self, asked: &Asked, state: &mut VmState<'_>) -> Result<bool, Failure> {
        let name = self.vm.as_str();
        let at_most = self.context.timeout.unwrap_or(start::DEFAULT_TIMEOUT);
        let answers = tokio::select! {
            answers = timeout(at_most, self.answers(state)) => answers,
            () = until_raised(&self.cancelled) => return Ok(true),
        };
        match answers {
            Ok(false) => return Ok(false),
            Ok(true) => {}
            Err(_) => {
                self.say(&format!(
                    "it runs, and its guest does not answer within {at_most:?}: it is ended"
                ));
                self.stop(Stop::Force).await?;
                return Ok(false);
            }
        }
        self.say("it runs already, and is taken over");
        if !asked.spec.labels.is_empty() || asked.spec.pinned.is_some() {
            let (home, vm) = (self.home.clone(), self.vm.clone());
            let (labels, pinned) = (asked.spec.labels.clone(), asked.spec.pinned);
            let marked =
                blocking(move || mvm_vmm::machine::mark(&home, &vm, &labels, pinned)).await;
            marked.map_err(|error| failure(self.context, name, Wanted::Start, &error))?;
        }
        Ok(true)
    }

    /// Waits until the guest answers, or the VM stands still in order; false if it is not there any
    /// more.
    async fn answers(&self, state: &mut VmState<'_>) -> bool {
        let mut backoff = Backoff::new();
        let begun = Instant::now();
        loop {
            match state.now().await {
                Ok(Now::Runs(vm)) => {
                    let ping = async {
                        let session = self.context.connect(&vm, &Deadlines::default()).await;
                        session?.ping().await
                    };
                    if ping.await.is_ok() {
                        return true;
                    }
                }
                Ok(Now::Off(ClientError::Registry(RegistryError::NotRunning { state: now }))) => {
                    match now {
                        Registered::Paused(_) => return true,
                        // Whoever starts it is at it.
                        Registered::Starting => {}
                        _ => return false,
                    }
                }
                Ok(Now::Ended(..) | Now::Off(_)) => return false,
                Err(error) if !error.is_retryable() => return false,
                Err(_) => {}
            }
            tracing::debug!(waited = ?begun.elapsed(), "no answer yet");
            let _ = timeout(backoff.pause(), state.changed()).await;
        }
    }

    pub(super) async fn stop(&self, how: Stop) -> Result<(), Failure> {
        let (home, vm) = (self.home.clone(), self.vm.clone());
        let stopped = blocking(move || mvm_vmm::machine::stop(&home, &vm, how)).await;
        let failed = |error| failure(self.context, self.vm.as_str(), Wanted::Stop, &error);
        stopped.map(drop).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mvm_registry::{Ending, Labels, Pause, Untold};

    fn record(state: Recorded) -> Record {
        Record {
            version: mvm_registry::record::VERSION,
            name: "web".into(),
            backend: "qemu".into(),
            state,
            image: Some("/images/web".into()),
            cpus: 1,
            memory_mib: 256,
            port: 52,
            agent: None,
            etc: None,
            labels: Labels::default(),
            pinned: false,
            accelerator: None,
            guest_cid: None,
            snapshot_dir: None,
            suspended_in: None,
            since: None,
            started_at: None,
            unwoken: None,
            paused_by_fleet: false,
            console_limit_mib: None,
            boot_id: String::new(),
            processes: Vec::new(),
        }
    }

    fn asked() -> Asked {
        Asked {
            snapshot: None,
            clone: false,
            verify: Verify::Once,
            payload: None,
            spec: Spec {
                image: Some("/images/web".into()),
                ..Spec::default()
            },
        }
    }

    #[test]
    fn what_is_left_of_a_vm_decides() {
        use Registered::{
            Asleep, Ended, Paused, Running, StartBrokenOff, Starting, Stopped, Unknown,
        };
        let running = record(Recorded::Running);
        let asleep = Record {
            suspended_in: Some("/s".into()),
            ..record(Recorded::Asleep)
        };
        let snapshot = Some(PathBuf::from("/s"));
        let (begin, go_on) = (Plan::Begin, Plan::GoOn("/s".into()));
        for (state, record, expected) in [
            (None, None, &begin),
            (Some(Stopped), Some(&running), &begin),
            (Some(Ended(Ending::PoweredOff)), Some(&running), &begin),
            (Some(StartBrokenOff), Some(&running), &begin),
            // A restore that was broken off keeps where it slept.
            (Some(StartBrokenOff), Some(&asleep), &go_on),
            (
                Some(Asleep {
                    snapshot: snapshot.clone(),
                }),
                Some(&asleep),
                &go_on,
            ),
            // An old record does not say where: starting it refuses, and says what can be done.
            (Some(Asleep { snapshot: None }), Some(&running), &begin),
            (Some(Running), Some(&running), &Plan::TakeOver),
            (Some(Paused(Pause::Other)), Some(&running), &Plan::TakeOver),
            (
                Some(Paused(Pause::Snapshot)),
                Some(&running),
                &Plan::TakeOver,
            ),
            (Some(Starting), Some(&running), &Plan::TakeOver),
            // What cannot be told is refused by what follows.
            (
                Some(Unknown(Untold::SilentVmm {
                    problem: "?".into(),
                })),
                Some(&running),
                &begin,
            ),
        ] {
            assert_eq!(
                plan(state.as_ref(), record, &asked()),
                *expected,
                "{state:?}"
            );
        }
        let stopping = record(Recorded::Stopping);
        assert!(matches!(
            plan(Some(&Running), Some(&stopping), &asked()),
            Plan::Replace(_)
        ));
        let mut discards = asked();
        discards.spec.discard_state = true;
        let slept = Asleep { snapshot };
        assert_eq!(plan(Some(&slept), Some(&asleep), &discards), Plan::Begin);
        // It is not to be ended for what it is doing now.
        assert_eq!(
            plan(Some(&Running), Some(&running), &discards),
            Plan::TakeOver
        );
    }

    #[test]
    fn a_vm_is_another_one_only_by_what_is_asked_for() {
        let running = record(Recorded::Running);
        let differs = |change: &dyn Fn(&mut Spec)| {
            let mut asked = asked();
            change(&mut asked.spec);
            is_another(&running, &asked)
        };
        assert!(!differs(&|_| {}));
        assert!(!differs(&|spec| *spec = Spec::default()));
        assert!(!differs(&|spec| spec.backend = Some("auto".into())));
        assert!(!differs(&|spec| spec.memory_mib = Some(256)));
        // Labels are put on it as it runs.
        assert!(!differs(&|spec| spec.labels = vec!["a=b".parse().unwrap()]));
        assert!(differs(&|spec| spec.memory_mib = Some(512)));
        assert!(differs(&|spec| spec.cpus = Some(2)));
        assert!(differs(&|spec| spec.backend = Some("firecracker".into())));
        assert!(differs(&|spec| spec.image = Some("/images/other".into())));
    }
}
