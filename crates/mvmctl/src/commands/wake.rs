//! `mvmctl vm wake`

use super::Context;
use super::mend::mend_if_broken_off;
use super::payload::PayloadArg;
use super::sleep::token;
use crate::fleet::{self, Answered};
use crate::render::shown::Shown;
use crate::render::words::wire;
use crate::render::{data, steps};
use crate::report::{Failure, Outcome};
use crate::vm_name;
use mvm_protocol::lifecycle::{Awake, Entropy, Outcome as StepOutcome, Token, Wake, WakeCause};
use mvm_protocol::status::Lifecycle;
use mvm_protocol::{ErrorCode, Timestamp};

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
    #[arg(long, conflicts_with_all = ["clone", "payload"])]
    aborted: bool,

    /// The guest is one of several from one snapshot, and gets an identity of its own
    #[arg(long)]
    clone: bool,

    #[command(flatten)]
    payload: PayloadArg,

    /// The guest is frozen, since it could not be personalized: run its personalize commands again
    #[arg(long, conflicts_with = "aborted")]
    retry: bool,
}

impl Args {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
        let cause = if self.aborted {
            WakeCause::Aborted
        } else {
            WakeCause::Restored
        };
        let payload = self.payload.read()?;
        if let Some(awake) = mend_if_broken_off(context, &self.vm.name).await? {
            data::one(context, &self.vm.name, &awake, || table(context, &awake))?;
            return Ok(if is_well(&awake) {
                Outcome::Done
            } else {
                Outcome::Bad
            });
        }
        let asked = wake(self.token, cause, self.clone)?;
        let asked = Wake { payload, ..asked };
        let names = [self.vm.name];
        if self.retry {
            nothing_else_than_held(context, &names).await?;
        }
        let answered = fleet::ask(context, &names, async |mut session| {
            session.wake(asked.clone()).await
        });
        let mut fleet = answered.await?;
        for answered in &mut fleet.answers {
            let held = |failure| held(failure, &answered.name);
            let result = std::mem::replace(&mut answered.result, Err(Failure::failed("")));
            answered.result = result.map_err(held);
        }
        data::fleet(context, &fleet, || {
            fleet
                .only()
                .map_or_else(Shown::new, |(_, awake)| table(context, awake))
        })?;
        fleet.finish(context, |awake| !is_well(awake))
    }
}

/// A guest that runs must not be told once more that it was restored.
async fn nothing_else_than_held(context: &Context, names: &[String; 1]) -> Result<(), Failure> {
    let asked = fleet::ask(context, names, async |mut session| session.status().await);
    match asked.await?.answers.pop() {
        Some(Answered {
            name,
            result: Ok(status),
            ..
        }) if status.lifecycle != Lifecycle::Waking => {
            let lifecycle = wire(&status.lifecycle);
            let message = format!("there is nothing to try again: the guest is {lifecycle}");
            Err(Failure::failed(message).of(name))
        }
        Some(Answered {
            result: Err(failure),
            ..
        }) => Err(failure),
        _ => Ok(()),
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
pub(crate) fn table(context: &Context, awake: &Awake) -> Shown {
    let steps = steps::table(context, &awake.steps);
    let was = match (awake.was_ready, awake.lease_expired) {
        (true, _) => "it was ready",
        (false, true) => "it had run on by itself when its lease was over",
        (false, false) => "it was not asleep",
    };
    let awake = format!("awake, generation {}: {was}", awake.generation);
    [steps, Shown::empty_line(), Shown::line(&awake)]
        .into_iter()
        .collect()
}

/// The agent's code for a guest whose work stays frozen, since it could not be personalized.
pub(super) const HELD: &str = ErrorCode::Failed.as_str();

/// What to do about such a guest, whose VM is left in place.
pub(super) fn held(failure: Failure, vm: &str) -> Failure {
    if failure.code != HELD {
        return failure;
    }
    failure.hint(format!(
        "it is left as it is: mend what the command lacked, and `mvmctl vm wake {vm} --retry`, with \
         another --payload if need be, tries again; `mvmctl vm stop --force {vm}` ends it"
    ))
}
