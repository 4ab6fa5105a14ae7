//! A guest that stood still without being asked: restored, or its monotonic clock has jumped.

use super::after_a_freeze::well;
use super::*;
use crate::core::signs::Marks;
use mvm_protocol::status::{RestoreSign, Restored};

/// An hour, as Cloud Hypervisor adds the pause to the monotonic clock.
const JUMP: Duration = Duration::from_secs(3600);

fn sampled(story: &mut Story, cid: u32) {
    let marks = Marks {
        cid: Some(cid),
        vmclock: None,
    };
    let sample = Sample {
        marks,
        ..Sample::default()
    };
    story.event(Event::Sampled(sample));
}

fn done() -> Done {
    Done {
        outcome: mvm_protocol::lifecycle::Outcome::Ok,
        duration_ms: 0,
        detail: None,
    }
}

fn told(story: &Story) -> Vec<RestoreSign> {
    let by = |change: &Change| match change {
        Change::Restored {
            restored: Restored {
                announced: false,
                by,
            },
        } => by.known(),
        _ => None,
    };
    story.published.iter().filter_map(by).collect()
}

fn snapshot(story: &Story) -> (u64, u64) {
    let snapshot = story.core.snapshot();
    (snapshot.generation, snapshot.unannounced)
}

#[test]
fn another_cid_is_told_and_gives_up_what_was_known() {
    let mut story = well();
    sampled(&mut story, 3);
    sampled(&mut story, 3);
    assert_eq!((told(&story), story.steps.len()), (vec![], 0));
    sampled(&mut story, 4);
    assert_eq!(story.status().lifecycle, Phase::Waking);
    let work = [Work::Reseed(None), Work::Clock(None), Work::Generation(1)];
    let mut taken = Vec::new();
    while let Some(step) = story.steps.pop() {
        taken.push(step);
        story.event(Event::StepDone(done()));
    }
    assert_eq!(taken, work);
    assert_eq!(told(&story), [RestoreSign::Cid]);
    assert_eq!(snapshot(&story), (1, 1));
    assert_eq!(story.status().lifecycle, Phase::Running);
    assert_eq!(story.health(), Health::Starting, "that was before");
    sampled(&mut story, 4);
    assert_eq!(snapshot(&story), (1, 1), "once");
}

#[test]
fn a_restore_that_is_announced_is_counted_once_whatever_is_noticed_and_when() {
    let orders: [fn(&mut Story); 3] = [
        // The kernel's word first.
        |story| {
            story.event(Event::VmgenidChanged);
            story.pass(secs(3));
            wake(story, Wake::default());
        },
        // The host's word first.
        |story| {
            wake(story, Wake::default());
            story.event(Event::VmgenidChanged);
        },
        // A host that takes its time.
        |story| {
            story.event(Event::VmgenidChanged);
            story.pass(secs(300));
            wake(story, Wake::default());
        },
    ];
    for order in orders {
        let mut story = well();
        sampled(&mut story, 3);
        sleep(&mut story);
        order(&mut story);
        step_through(&mut story);
        sampled(&mut story, 4);
        assert_eq!(story.status().lifecycle, Phase::Running);
        assert_eq!((snapshot(&story), told(&story)), ((1, 0), vec![]));
        // The next one, which nobody announces.
        story.pass(secs(60));
        story.event(Event::VmgenidChanged);
        step_through(&mut story);
        sampled(&mut story, 5);
        assert_eq!(
            (snapshot(&story), told(&story)),
            ((2, 1), vec![RestoreSign::Vmgenid])
        );
    }
}

#[test]
fn a_monotonic_clock_that_jumps_makes_no_burst_of_checks() {
    let mut story = Story::new(4);
    let names: Vec<String> = (0..100).map(|n| format!("s{n}")).collect();
    let services: Vec<_> = names
        .iter()
        .map(|name| (name.as_str(), ",\"health_interval_secs\":60"))
        .collect();
    story.load(&services);
    let mut runs = 0;
    let end_all = |story: &mut Story| {
        let mut ended = 0;
        while !story.begun.is_empty() {
            story.end(End::Exited(0));
            ended += 1;
        }
        ended
    };
    end_all(&mut story);
    story.pass(secs(90));
    end_all(&mut story);
    story.now.mono += JUMP;
    story.event(Event::Tick);
    for tenth in 0..140 {
        let now = end_all(&mut story);
        assert!(now <= 12, "{now} of 100 checks in tenth {tenth}");
        runs += now;
        story.pass(Duration::from_millis(100));
    }
    assert_eq!(runs, 100, "each once");
}

#[test]
fn a_lease_that_a_wake_is_about_to_end_is_not_lost_to_a_jump() {
    let mut story = well();
    sleep(&mut story);
    // All but over.
    story.pass(Duration::from_millis(599_500));
    assert_eq!(story.status().lifecycle, Phase::Ready);
    story.now.mono += JUMP;
    story.event(Event::Tick);
    story.pass(secs(5));
    assert_eq!(story.status().lifecycle, Phase::Ready);
    wake(&mut story, Wake::default());
    step_through(&mut story);
    let awake = story.answers.iter().find_map(|(_, answer)| match answer {
        Answer::Awake(awake) => Some((awake.was_ready, awake.lease_expired)),
        _ => None,
    });
    assert_eq!(awake, Some((true, false)));
}

#[test]
fn a_jump_is_no_time_in_which_the_guest_has_run_and_jobs_are_told_of_it() {
    let mut story = well();
    let ago = |story: &Story| {
        let status = story.status();
        status.now.unwrap().0 - status.worker.since.0
    };
    let before = ago(&story);
    story.dev.clear();
    story.now.mono += JUMP;
    story.now.wall.0 += 3_600_000;
    story.event(Event::Tick);
    let after = ago(&story);
    assert!(
        (before..=before + 5000).contains(&after),
        "{before} {after}"
    );
    let [Action::StoodStill(time)] = story.dev[..] else {
        panic!("{:?}", story.dev);
    };
    assert!((secs(3595)..=JUMP).contains(&time), "{time:?}");
    // A guest that is merely busy is not taken for one that stood still.
    story.dev.clear();
    let late = story.core.deadline().unwrap() + secs(4);
    story.at(late);
    story.event(Event::Tick);
    assert_eq!(story.dev, []);
}
