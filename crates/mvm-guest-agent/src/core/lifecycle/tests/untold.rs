//! What failed on a way back for which no host waited.

use super::*;

/// Every restore command fails.
fn fail_restores(story: &mut Story) {
    while let Some(task) = story.doing.clone() {
        let fails = matches!(task, Task::Restore(_));
        let done = if fails { ended(Outcome::Failed) } else { ok() };
        story.end(&done);
    }
}

fn told(story: &mut Story) -> Vec<String> {
    std::mem::take(&mut story.told)
        .into_iter()
        .flatten()
        .collect()
}

const LOGGED: [&str; 3] = [
    "the restore command of `a` failed",
    "the restore command of `b` failed",
    "the restore command of `c` failed",
];

#[test]
fn what_failed_after_a_lease_is_logged_and_told_with_the_next_wake_once() {
    let mut story = Story::new();
    story.sleep(Some("A"));
    story.finish();
    story.pass(600);
    fail_restores(&mut story);
    assert_eq!(story.logged, LOGGED);
    let wake = story.wake(Some("A"), WakeCause::Aborted);
    assert_eq!(story.answer(wake), "awake: was not ready late");
    assert_eq!(told(&mut story), ["a", "b", "c"]);
    story.wake(Some("A"), WakeCause::Aborted);
    assert_eq!(told(&mut story), [""; 0]);
}

#[test]
fn what_an_agent_that_was_started_again_could_not_pay_is_told_too() {
    let journal = Journal {
        asleep: true,
        owed: ["gone", "b", "a"].map(str::to_owned).into(),
        ..Journal::default()
    };
    let mut story = Story::from(journal);
    fail_restores(&mut story);
    assert_eq!(
        story.logged,
        [LOGGED[0], LOGGED[1], "the restore command of `gone` failed"]
    );
    // A restore has steps of its own, which come after those.
    story.wake(Some("A"), WakeCause::Restored);
    story.finish();
    assert_eq!(told(&mut story), ["a", "b", "gone"]);
}

#[test]
fn what_a_host_was_told_is_logged_and_not_told_again() {
    let mut story = Story::new();
    story.sleep(Some("A"));
    story.finish();
    story.wake(Some("A"), WakeCause::Aborted);
    fail_restores(&mut story);
    assert_eq!(story.logged, LOGGED);
    assert_eq!(told(&mut story), ["a", "b", "c"]);
    story.wake(Some("B"), WakeCause::Aborted);
    assert_eq!(told(&mut story), [""; 0]);
}

#[test]
fn a_step_that_failed_is_named_as_what_it_is() {
    let failed = ended(Outcome::Failed);
    for (task, words) in [
        (Task::Payload, "writing the payload failed"),
        (Task::Clock, "setting the clock failed"),
        (Task::LastSync, "the sync failed"),
    ] {
        assert_eq!(task.failure(&failed), words);
    }
}
