//! A VM that was restored, and whose guest was not told so, since whoever restored it was killed. It
//! runs, and must not be taken over before it is told: it would be its twin, or frozen until its lease
//! is over.

use super::beginning::{Asked, Beginning};
use super::ending::forget_sleep;
use crate::commands::machine::{Wanted, blocking, failure};
use crate::commands::start;
use crate::commands::unwoken::{self, UnwokenVm};
use crate::report::Failure;
use mvm_registry::Error as RegistryError;
use mvm_vmm::{Error, Stop};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How often it is looked whether somebody else is telling it still.
const LOOK: Duration = Duration::from_millis(100);

impl Beginning<'_> {
    /// Tells its guest, if that is still to be done. One that cannot be told is ended if it is a clone,
    /// which has done nothing yet, and sleeps on otherwise.
    pub(super) async fn tell_if_unwoken(&self, asked: &Asked) -> Result<(), Failure> {
        let name = self.vm.as_str();
        let Some(found) = self.unwoken().await? else {
            return Ok(());
        };
        let unwoken = found.unwoken().clone();
        let payload = asked.payload.clone();
        // One that goes on from its own sleep is handed none.
        let payload = payload.filter(|_| unwoken.clone || unwoken.payload);
        found.needs(payload.as_ref())?;
        self.say("it was restored, and its guest was not told so: it is told now");
        let told = found.tell(self.context, payload, &self.cancelled).await;
        match told {
            Ok(awake) => {
                self.warn_unless_well(&awake);
                if !unwoken.clone {
                    self.forget_sleep(&unwoken.snapshot);
                }
                Ok(())
            }
            Err(failure) if unwoken.clone => {
                self.stop(Stop::Force).await?;
                Err(failure)
            }
            Err(why) => Err(self.sleep_on(&unwoken.snapshot, why).await?.of(name)),
        }
    }

    /// Waits until nobody else is telling it.
    async fn unwoken(&self) -> Result<Option<UnwokenVm>, Failure> {
        let at_most = self.context.timeout.unwrap_or(start::DEFAULT_TIMEOUT);
        let until = Instant::now() + at_most;
        loop {
            match unwoken::find(self.home, self.vm).await {
                Ok(found) => return Ok(found),
                Err(error @ Error::Registry(RegistryError::Locked { .. })) => {
                    if self.cancelled.load(Ordering::Relaxed) {
                        return Ok(None);
                    }
                    if Instant::now() >= until {
                        let vm = self.vm.as_str();
                        return Err(failure(self.context, vm, Wanted::Start, &error));
                    }
                    tokio::time::sleep(LOOK).await;
                }
                // It is another one by now, which taking it over tells of.
                Err(_) => return Ok(None),
            }
        }
    }

    /// Nobody may go on once more from where it has gone on by now.
    pub(super) fn forget_sleep(&self, slept_in: &Path) {
        if let Err(error) = forget_sleep(self.home, self.vm, slept_in) {
            let (name, folder) = (self.vm, slept_in.display());
            self.context
                .ui
                .warning(&format!("{name}: cannot remove {folder}: {error}"));
        }
    }

    /// One that cannot be woken sleeps on as before; why it cannot, with what can be done.
    pub(super) async fn sleep_on(&self, slept_in: &Path, why: Failure) -> Result<Failure, Failure> {
        let (home, vm, folder) = (self.home.clone(), self.vm.clone(), slept_in.to_owned());
        let asleep = blocking(move || mvm_vmm::machine::sleep_again(&home, &vm, &folder)).await;
        let failed = |error| failure(self.context, self.vm.as_str(), Wanted::Start, &error);
        asleep.map_err(failed)?;
        Ok(why.hint("it sleeps on; `--discard-state` begins anew"))
    }
}
