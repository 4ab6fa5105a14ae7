//! `mvmctl vm wake`

use super::Context;
use super::mend::mend_if_broken_off;
use super::sleep::token;
use crate::fleet;
use crate::render::{data, steps};
use crate::report::{Failure, Outcome};
use crate::vm_name;
use mvm_protocol::Timestamp;
use mvm_protocol::lifecycle::{Awake, Entropy, Outcome as StepOutcome, Token, Wake, WakeCause};

/// How many random bytes a wake hands in: twice what the kernel's generator is seeded with.
const ENTROPY: usize = 64;

/// Tell a guest that it was restored, or that it runs on after all
///
/// Hands in this host's time and fresh random bytes; the guest reseeds its random generator, sets
/// its clock and runs its restore commands. The exit code is 1 if one of these steps failed.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    vm: vm_name::One,

    /// The token of the sleep that this ends
    #[arg(long, value_parser = token)]
    token: Option<Token>,

    /// No snapshot was taken: the guest runs on as it was
    #[arg(long, conflicts_with = "clone")]
    aborted: bool,

    /// The guest is one of several from one snapshot, and gets an identity of its own
    #[arg(long)]
    clone: bool,
}

impl Args {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
        let cause = if self.aborted {
            WakeCause::Aborted
        } else {
            WakeCause::Restored
        };
        if let Some(awake) = mend_if_broken_off(context, &self.vm.name).await? {
            data::one(context, &self.vm.name, &awake, || table(context, &awake))?;
            return Ok(if is_well(&awake) {
                Outcome::Done
            } else {
                Outcome::Bad
            });
        }
        let asked = wake(self.token, cause, self.clone)?;
        let names = [self.vm.name];
        let answered = fleet::ask(context, &names, async |mut session| {
            session.wake(asked.clone()).await
        });
        let fleet = answered.await?;
        data::fleet(context, &fleet, || {
            fleet
                .only()
                .map_or_else(String::new, |(_, awake)| table(context, awake))
        })?;
        fleet.finish(context, |awake| !is_well(awake))
    }
}

/// What a host says to a guest that runs on: its time, and with a restore fresh random bytes.
pub(crate) fn wake(token: Option<Token>, cause: WakeCause, clone: bool) -> Result<Wake, Failure> {
    let mut wake = Wake {
        token,
        cause,
        clone,
        // One that was frozen and runs on has lost the time that this took.
        wall_clock: Some(Timestamp(jiff::Timestamp::now().as_millisecond())),
        ..Wake::default()
    };
    if cause == WakeCause::Restored {
        let mut bytes = vec![0; ENTROPY];
        getrandom::fill(&mut bytes)
            .map_err(|error| Failure::failed(format!("no random bytes from this host: {error}")))?;
        wake.entropy = Entropy::new(bytes);
    }
    Ok(wake)
}

/// Whether all that was tried succeeded. An outcome that we do not know is none that we vouch for.
pub(crate) fn is_well(awake: &Awake) -> bool {
    awake
        .steps
        .iter()
        .all(|step| step.outcome == StepOutcome::Ok || step.outcome == StepOutcome::Skipped)
}

/// The steps, and what the guest was before.
pub(crate) fn table(context: &Context, awake: &Awake) -> String {
    let steps = steps::table(context, &awake.steps);
    let was = match (awake.was_ready, awake.lease_expired) {
        (true, _) => "it was ready",
        (false, true) => "it had run on by itself when its lease was over",
        (false, false) => "it was not asleep",
    };
    format!("{steps}\nawake, generation {}: {was}\n", awake.generation)
}
