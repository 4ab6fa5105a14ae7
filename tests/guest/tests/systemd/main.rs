//! The agent in a Debian with systemd, as its users install it.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod follows;
mod frozen;
mod host;
mod identity;
mod lifecycle;
mod packaged;
mod service;
mod supervisor;

use mvm_guest_tests::SystemdVm;
use mvm_protocol::lifecycle::{Awake, Entropy, Outcome, SleepPrep, Step, StepKind, Wake};
use mvm_protocol::{Lenient, Timestamp};
use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970 on this machine.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_millis()).unwrap()
}

/// As a host does with a clone, without a snapshot between: the guest cannot tell.
async fn sleep_and_wake_as_a_clone(vm: &SystemdVm) -> Awake {
    let ready = vm.session().await.sleep_prep(SleepPrep::default()).await;
    ready.unwrap();
    let wake = Wake {
        clone: true,
        wall_clock: Some(Timestamp(now())),
        entropy: Some(Entropy::new(vec![7; 64]).unwrap()),
        ..Wake::default()
    };
    vm.session().await.wake(wake).await.unwrap()
}

/// The step in which a clone becomes itself.
fn identity_step(awake: &Awake) -> &Step {
    let of = |step: &&Step| step.step == Lenient::Known(StepKind::Identity);
    awake.steps.iter().find(of).unwrap()
}

fn is_ok(step: &Step) -> bool {
    step.outcome == Lenient::Known(Outcome::Ok)
}
