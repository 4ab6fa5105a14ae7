//! When the work is frozen and thawed, and what keeps it frozen.

use super::*;
use crate::core::lifecycle::terms::Restoring;

/// What a wake did, in order, of that which the work must not see half done.
pub(super) fn position(story: &Story, task: &Task) -> usize {
    let found = story.tasks.iter().position(|it| it == task);
    found.unwrap_or_else(|| panic!("no {task:?} in {:?}", story.tasks))
}

pub(super) fn count(story: &Story, task: &Task) -> usize {
    story.tasks.iter().filter(|it| *it == task).count()
}

#[test]
fn every_way_back_thaws_once_and_before_restores() {
    let ways: [fn(&mut Story); 4] = [
        |story| {
            story.wake(None, WakeCause::Restored);
        },
        |story| {
            story.wake(None, WakeCause::Aborted);
        },
        |story| story.pass(600),
        |story| {
            let before = std::mem::take(&mut story.tasks);
            *story = Story::from(story.it.journal().clone());
            story.tasks.splice(0..0, before);
        },
    ];
    for way in ways {
        let mut story = Story::new();
        story.sleep(None);
        story.finish();
        assert!(story.it.journal().frozen);
        way(&mut story);
        story.finish();
        assert_eq!(story.it.phase(), Phase::Running);
        assert_eq!(count(&story, &Task::Thaw), 1, "{:?}", story.tasks);
        assert!(position(&story, &Task::Thaw) < position(&story, &Task::Restore("a".into())));
        assert!(!story.it.journal().frozen);
    }
}

#[test]
fn a_thaw_that_fails_is_tried_again_by_each_wake_until_it_does_not() {
    let mut story = Story::new();
    story.sleep(None);
    story.finish();
    story.wake(None, WakeCause::Aborted);
    while story.doing != Some(Task::Thaw) {
        story.end(&ok());
    }
    story.end(&ended(Outcome::Failed));
    story.finish();
    assert_eq!(story.it.phase(), Phase::Running);
    for (thaws, cause) in [
        (2, WakeCause::Aborted),
        (3, WakeCause::Restored),
        (3, WakeCause::Aborted),
    ] {
        let wake = story.wake(None, cause);
        if thaws == 2 {
            assert_eq!(story.doing, Some(Task::Thaw));
            story.end(&ended(Outcome::TimedOut));
        }
        story.finish();
        assert_eq!(story.answer(wake), "awake: was not ready");
        assert_eq!(count(&story, &Task::Thaw), thaws, "{:?}", story.tasks);
    }
}

#[test]
fn what_was_not_frozen_is_not_thawed() {
    let mut story = Story::new();
    let sleep = story.sleep(None);
    while story.doing != Some(Task::Freeze) {
        story.end(&ok());
    }
    story.end(&ended(Outcome::Skipped));
    story.finish();
    assert_eq!(story.answer(sleep), "ready");
    assert_eq!(count(&story, &Task::CheckFrozen), 0);
    story.wake(None, WakeCause::Restored);
    story.finish();
    assert_eq!(count(&story, &Task::Thaw), 0);
}

#[test]
fn a_freeze_that_fails_is_undone_and_fails_the_sleep_only_if_it_was_required() {
    for (required, outcome, answer, thaws) in [
        (false, Outcome::Failed, "ready", 0),
        (true, Outcome::Failed, "the freeze failed", 1),
        (true, Outcome::TimedOut, "the freeze timed out", 1),
        (true, Outcome::Skipped, "the freeze was not possible", 0),
    ] {
        let mut story = Story::new();
        let asked = SleepPrep {
            require_freeze: required,
            ..prep(None, 60, 600)
        };
        let acts = story
            .it
            .sleep_prep(WaiterId(7), &asked, token("t"), participants(), story.now);
        story.take(acts);
        while story.doing != Some(Task::Freeze) {
            story.end(&ok());
        }
        story.end(&ended(outcome));
        story.finish();
        assert_eq!(story.answer(7), answer);
        assert_eq!(count(&story, &Task::Thaw), thaws);
    }
}

#[test]
fn a_freeze_whose_journal_cannot_be_kept_is_not_begun() {
    let mut story = Story::new();
    story.sleep(None);
    while story.doing != Some(Task::Freeze) {
        story.end(&ok());
    }
    story.doing = None;
    let acts = story.it.refused(&ended(Outcome::Failed), AT);
    story.take(acts);
    story.finish();
    assert_eq!(count(&story, &Task::Thaw), 0);
}

fn failed_personalize(story: &mut Story, name: &str) {
    while story.doing != Some(Task::Personalize(name.into())) {
        story.end(&ok());
    }
    story.end(&ended(Outcome::Failed));
    story.finish();
}

#[test]
fn a_critical_personalize_that_fails_holds_the_guest_until_a_wake_succeeds() {
    let mut story = Story::new();
    story.sleep(Some("A"));
    story.finish();
    let wake = story.wake(Some("A"), WakeCause::Restored);
    failed_personalize(&mut story, "a");
    assert_eq!(
        story.answer(wake),
        "held: the personalize command of `a` failed"
    );
    assert_eq!(
        count(&story, &Task::Personalize("b".into())),
        1,
        "all are tried"
    );
    for none in [Task::Thaw, Task::Generation, Task::Restore("a".into())] {
        assert_eq!(count(&story, &none), 0);
    }
    // Neither time nor another host's sleep changes that.
    story.pass(3600);
    assert_eq!(story.it.deadline(), None);
    let sleep = story.sleep(Some("B"));
    assert_eq!(story.answer(sleep), "busy");
    assert!(!story.it.thaws_when_stopped());
    // Nor an agent that is killed: it tries again by itself.
    let mut story = Story::from(story.it.journal().clone());
    failed_personalize(&mut story, "a");
    assert_eq!(count(&story, &Task::Thaw), 0);
    let again = story.wake(None, WakeCause::Aborted);
    story.finish();
    assert_eq!(story.answer(again), "awake: was not ready");
    assert_eq!(count(&story, &Task::Thaw), 1);
    assert_eq!(story.restores(), ["a", "b", "c"]);
    assert_eq!(
        story.it.journal().generation,
        1,
        "one restore is one generation"
    );
    assert_eq!(story.it.journal().restoring, None);
}

#[test]
fn a_personalize_that_is_not_critical_is_reported_and_holds_nothing() {
    let mut story = Story::new();
    story.sleep(None);
    story.finish();
    let wake = story.wake(None, WakeCause::Restored);
    failed_personalize(&mut story, "b");
    assert_eq!(story.answer(wake), "awake: was ready");
}

#[test]
fn a_wake_that_meets_a_restarted_agent_personalizes_with_what_it_brings() {
    let journal = Journal {
        asleep: true,
        frozen: true,
        restoring: Some(Restoring {
            clone: true,
            unannounced: false,
        }),
        generation: 4,
        ..Journal::default()
    };
    let mut story = Story::from(journal);
    while story.doing != Some(Task::Personalize("a".into())) {
        story.end(&ok());
    }
    let wake = story.wake(None, WakeCause::Restored);
    story.end(&ok());
    while story.doing != Some(Task::Personalize("a".into())) {
        story.end(&ok());
    }
    // It does not say clone again, as a retry does not.
    let restoring = story.it.journal().restoring;
    assert!(restoring.is_some_and(|it| it.clone), "{restoring:?}");
    story.finish();
    assert_eq!(story.answer(wake), "awake: was not ready");
    assert_eq!(count(&story, &Task::Payload), 2, "{:?}", story.tasks);
    assert_eq!(count(&story, &Task::Thaw), 1);
    assert_eq!(story.it.journal().generation, 4);
}
