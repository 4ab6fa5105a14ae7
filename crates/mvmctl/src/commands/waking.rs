//! What a host says to a guest that runs on, and what it makes of the answer.

use super::Context;
use crate::render::shown::Shown;
use crate::render::steps;
use crate::report::Failure;
use mvm_protocol::lifecycle::{
    Awake, Entropy, Outcome as StepOutcome, StepKind, Token, Wake, WakeCause,
};
use mvm_protocol::{ErrorCode, Timestamp};

/// How many random bytes a wake hands in: twice what the kernel's generator is seeded with.
const ENTROPY: usize = 64;

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

/// Whether all that was tried succeeded. An outcome that we do not know is none that we vouch for. What
/// became of the sleep that is over is not the wake's.
pub(crate) fn is_well(awake: &Awake) -> bool {
    let steps = awake.steps.iter();
    steps
        .filter(|step| step.step.known() != Some(StepKind::Checkpoint))
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

/// The agent's code for a guest that could not be personalized. Its work stays frozen, if it was.
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
