//! What a host says to a guest that runs on, and what it makes of the answer.

use super::Context;
use crate::render::shown::Shown;
use crate::render::steps;
use crate::report::Failure;
use mvm_protocol::lifecycle::{
    Awake, Entropy, Outcome as StepOutcome, Step, StepKind, Token, Wake, WakeCause,
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
    let mut steps = own_steps(&awake.steps).iter();
    steps.all(|step| step.outcome == StepOutcome::Ok || step.outcome == StepOutcome::Skipped)
}

/// The steps of the wake itself, without those of a sleep that it broke off.
fn own_steps(steps: &[Step]) -> &[Step] {
    use StepKind::{Checkpoint, Drain, DropCaches, Freeze, Sync};
    let of_a_sleep = |step: &Step| {
        matches!(
            step.step.known(),
            Some(Drain | Checkpoint | Sync | DropCaches)
        )
    };
    let Some(last) = steps.iter().rposition(of_a_sleep) else {
        return steps;
    };
    match steps.get(last + 1..) {
        // The work was being frozen, or looked at whether it is.
        Some([freeze, rest @ ..]) if freeze.step.known() == Some(Freeze) => rest,
        rest => rest.unwrap_or_default(),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use StepKind::{
        Checkpoint, Clock, Drain, DropCaches, Freeze, Personalize, Reseed, Resume, Sync, Thaw,
    };

    fn is_well_but_for(kinds: &[StepKind], failed: usize) -> bool {
        let step = |(at, kind): (usize, &StepKind)| Step {
            step: (*kind).into(),
            integration: None,
            outcome: if at == failed {
                StepOutcome::TimedOut.into()
            } else {
                StepOutcome::Ok.into()
            },
            duration_ms: 1,
            detail: None,
        };
        is_well(&Awake {
            was_ready: false,
            lease_expired: false,
            generation: 0,
            steps: kinds.iter().enumerate().map(step).collect(),
            steps_omitted: 0,
        })
    }

    #[test]
    fn what_became_of_a_sleep_that_a_wake_broke_off_is_not_the_wakes() {
        let sleep = [Drain, Checkpoint, Sync, Freeze, Sync, DropCaches, Freeze];
        for broken_off in 1..=sleep.len() {
            let mut steps = sleep.get(..broken_off).unwrap_or_default().to_vec();
            steps.extend([Thaw, Resume]);
            for failed in 0..steps.len() {
                let is_well = is_well_but_for(&steps, failed);
                assert_eq!(is_well, failed < broken_off, "{steps:?} {failed}");
            }
        }
        let restore = [Freeze, Reseed, Clock, Personalize, Thaw, Resume];
        for failed in 0..restore.len() {
            assert!(!is_well_but_for(&restore, failed), "{failed}");
        }
        assert!(is_well_but_for(&restore, usize::MAX));
    }
}
