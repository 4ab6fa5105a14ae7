//! Stories of what hosts have open, and of jobs, around a sleep.

use super::*;
use crate::core::Event;
use crate::core::lifecycle::{Done, WakeAsked};
use crate::core::sleeping::Work;
use crate::core::tests::Story;
use mvm_protocol::Lenient;
use mvm_protocol::answer::{Answer, ErrorCode};
use mvm_protocol::lifecycle::{Outcome, SleepPrep, Token, Wake, WakeCause};
use mvm_protocol::status::{BusySignal, WorkerState};
use std::time::Duration;

impl Story {
    fn open(&mut self, kind: Kind) -> Option<RunId> {
        self.dev.clear();
        self.event(Event::OpenAsked(WaiterId(7), kind));
        match self.dev.as_slice() {
            [Action::Admit(WaiterId(7), run)] => Some(*run),
            [] => None,
            other => panic!("{other:?}"),
        }
    }

    fn sleep(&mut self) {
        self.dev.clear();
        let asked = SleepPrep::default();
        self.event(Event::SleepAsked(WaiterId(1), asked, Token::made_up(1)));
    }

    fn wake(&mut self, cause: WakeCause) {
        let wake = Wake {
            cause,
            ..Wake::default()
        };
        let asked = WakeAsked {
            wake,
            fingerprint: 5,
        };
        self.event(Event::WakeAsked(WaiterId(2), Box::new(asked)));
    }

    fn step_ends(&mut self, outcome: Outcome) {
        self.steps.remove(0);
        let done = Done {
            outcome,
            duration_ms: 0,
            detail: None,
        };
        self.event(Event::StepDone(done));
    }

    /// Lets the steps end well until there is none under way.
    fn steps_end(&mut self) {
        while !self.steps.is_empty() {
            self.step_ends(Outcome::Ok);
        }
    }

    fn phase(&self) -> Phase {
        self.core.lifecycle.phase()
    }
}

fn loaded() -> Story {
    let mut story = Story::new(4);
    story.load(&[]);
    story
}

#[test]
fn active_requests_are_ended_and_waited_for_before_the_first_step() {
    let mut story = loaded();
    let (first, second) = (
        story.open(Kind::Active).unwrap(),
        story.open(Kind::Active).unwrap(),
    );
    let looks_on = story.open(Kind::Observer).unwrap();
    story.sleep();
    assert_eq!(story.dev, [Action::End(first), Action::End(second)]);
    assert_eq!(story.steps, []);
    story.event(Event::Closed(first));
    story.event(Event::Closed(looks_on));
    assert_eq!(story.steps, [], "one is still open");
    story.event(Event::Closed(second));
    assert!(matches!(story.steps.as_slice(), [Work::Sync(_)]));
    story.steps_end();
    assert_eq!(story.phase(), Phase::Ready);
    let Some((WaiterId(1), Answer::Ready(ready))) = story.answers.pop() else {
        panic!()
    };
    let detail = ready.steps[0].detail.as_deref();
    assert_eq!(detail, Some("ended 2 commands, files or ports"));
}

#[test]
fn active_requests_are_refused_until_the_guest_runs() {
    let mut story = loaded();
    let open = story.open(Kind::Active).unwrap();
    story.sleep();
    for phase in [
        Phase::Preparing,
        Phase::Ready,
        Phase::Waking,
        Phase::Running,
    ] {
        assert_eq!(story.phase(), phase);
        let admitted = story.open(Kind::Active);
        assert_eq!(admitted.is_some(), phase == Phase::Running, "{phase:?}");
        if admitted.is_none() {
            let Some((WaiterId(7), Answer::Error(error))) = story.answers.pop() else {
                panic!()
            };
            assert_eq!(
                (error.code, error.retryable),
                (ErrorCode::Busy.into(), true)
            );
        }
        assert!(story.open(Kind::Observer).is_some(), "{phase:?}");
        match phase {
            Phase::Preparing => {
                story.event(Event::Closed(open));
                story.steps_end();
            }
            Phase::Ready => story.wake(WakeCause::Restored),
            _ => story.steps_end(),
        }
    }
}

#[test]
fn jobs_are_frozen_from_the_sync_until_identity_and_clock_are_restored() {
    let mut story = loaded();
    story.sleep();
    assert_eq!(story.dev, [Action::FreezeJobs]);
    story.steps_end();
    story.wake(WakeCause::Restored);
    // The generator, the clock and the identity come first.
    for _ in 0..3 {
        assert_eq!(story.dev, [Action::FreezeJobs], "{:?}", story.steps);
        story.step_ends(Outcome::Ok);
    }
    assert_eq!(story.dev, [Action::FreezeJobs, Action::ThawJobs]);
    assert_eq!(story.phase(), Phase::Running);
}

#[test]
fn jobs_go_on_after_a_rollback_and_when_the_lease_runs_out() {
    let mut story = loaded();
    story.sleep();
    story.step_ends(Outcome::Failed);
    assert_eq!(story.dev, [Action::FreezeJobs, Action::ThawJobs]);
    story.steps_end();
    story.sleep();
    story.steps_end();
    assert_eq!(story.phase(), Phase::Ready);
    story.pass(Duration::from_secs(700));
    story.steps_end();
    assert_eq!(story.phase(), Phase::Running);
    assert_eq!(story.dev, [Action::FreezeJobs, Action::ThawJobs]);
}

#[test]
fn a_sleep_cancelled_while_draining_freezes_no_job() {
    let mut story = loaded();
    let open = story.open(Kind::Active).unwrap();
    story.sleep();
    story.wake(WakeCause::Aborted);
    assert_eq!(story.phase(), Phase::Running);
    assert_eq!(story.dev, [Action::End(open)]);
    let Some((WaiterId(2), Answer::Awake(_))) = story.answers.pop() else {
        panic!()
    };
    // The next sleep waits for it again.
    story.sleep();
    assert_eq!(story.phase(), Phase::Preparing);
    assert_eq!(story.steps, []);
    story.event(Event::Closed(open));
    assert!(matches!(story.steps.as_slice(), [Work::Sync(_)]));
}

#[test]
fn a_request_that_outlasts_the_deadline_is_reported_and_delays_no_rollback() {
    let mut story = loaded();
    let slow = story.open(Kind::Active).unwrap();
    let quick = story.open(Kind::Active).unwrap();
    story.sleep();
    story.event(Event::Closed(quick));
    story.pass(SleepPrep::default().deadline() + Duration::from_secs(1));
    assert_eq!(story.phase(), Phase::Running);
    let Some((WaiterId(1), Answer::Error(error))) = story.answers.pop() else {
        panic!()
    };
    assert_eq!(error.code, ErrorCode::SleepPrepFailed);
    let steps = error.steps.unwrap();
    assert_eq!(steps[0].outcome, Outcome::TimedOut);
    let detail = "ended 1 commands, files or ports, left 1 that did not end in time";
    assert_eq!(steps[0].detail.as_deref(), Some(detail));
    story.event(Event::Closed(slow));
    assert_eq!(story.phase(), Phase::Running);
}

#[test]
fn a_wake_of_a_guest_that_runs_ends_nothing() {
    let mut story = loaded();
    story.open(Kind::Active).unwrap();
    story.dev.clear();
    story.wake(WakeCause::Restored);
    story.steps_end();
    assert_eq!((story.phase(), story.dev.len()), (Phase::Running, 0));
}

#[test]
fn open_requests_keep_the_worker_busy_across_samples() {
    let mut story = loaded();
    let state = |story: &Story| {
        let worker = story.core.status(Duration::ZERO).worker;
        let because = worker.because.into_iter().filter_map(Lenient::known);
        (worker.state.known().unwrap(), because.collect())
    };
    let run = story.open(Kind::Observer).unwrap();
    let busy = (WorkerState::Busy, vec![BusySignal::Session]);
    assert_eq!(state(&story), busy);
    story.event(Event::Sampled(Sample::default()));
    assert_eq!(state(&story), busy);
    let loaded = Sample {
        load1: Some(1.0),
        ..Sample::default()
    };
    story.event(Event::Sampled(loaded));
    story.event(Event::Closed(run));
    // What was read last still holds.
    assert_eq!(
        state(&story),
        (WorkerState::Busy, vec![BusySignal::Loadavg])
    );
}
