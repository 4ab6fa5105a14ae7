//! Restores that the agent notices by itself.

use super::freezing::{count, position};
use super::*;
use RestoreSign::{Cid, Vmgenid};

impl Story {
    fn notice(&mut self, by: RestoreSign) {
        let acts = self.it.noticed(by);
        self.take(acts);
    }
}

fn ready() -> Story {
    let mut story = Story::new();
    story.sleep(Some("A"));
    story.finish();
    story.tasks.clear();
    story
}

#[test]
fn a_guest_that_runs_gets_a_seed_a_clock_and_a_generation() {
    let mut story = Story::new();
    story.notice(Vmgenid);
    assert_eq!(story.it.phase(), Phase::Waking);
    story.finish();
    let tasks = [Task::Reseed, Task::Clock, Task::Generation, Task::Resume];
    assert_eq!(story.tasks, tasks);
    assert_eq!(story.noticed, [Vmgenid]);
    assert_eq!(story.it.journal().last_wake_ms, None, "it has not slept");
    let journal = story.it.journal();
    assert_eq!((journal.generation, journal.unannounced), (1, 1));
    assert_eq!(story.it.phase(), Phase::Running);
    story.notice(Cid);
    story.finish();
    assert_eq!(story.noticed, [Vmgenid, Cid]);
    assert_eq!(story.it.journal().generation, 2);
}

#[test]
fn a_wake_announces_what_was_noticed_before_it() {
    let mut story = ready();
    story.notice(Vmgenid);
    assert_eq!((story.it.phase(), story.tasks.len()), (Phase::Ready, 0));
    let wake = story.wake(Some("A"), WakeCause::Restored);
    story.finish();
    assert_eq!(story.answer(wake), "awake: was ready");
    assert_eq!(story.noticed, []);
    let journal = story.it.journal();
    assert_eq!((journal.generation, journal.unannounced), (1, 0));
}

#[test]
fn a_wake_that_comes_during_the_notice_joins_it_as_the_same_restore() {
    let mut story = Story::new();
    story.notice(Vmgenid);
    let mut asked = waking(None, WakeCause::Restored);
    asked.wake.clone = true;
    let acts = story.it.wake(WaiterId(9), &asked, &participants());
    story.take(acts);
    story.end(&ok());
    assert_eq!(story.doing, Some(Task::Reseed), "with the host's bytes");
    let restoring = story.it.journal().restoring.unwrap();
    assert!(restoring.clone && !restoring.unannounced);
    story.finish();
    assert_eq!(story.answer(9), "awake: was not ready");
    assert_eq!(story.it.journal().generation, 1);
    assert_eq!(count(&story, &Task::Personalize("a".into())), 1);
}

#[test]
fn a_sleep_that_ends_otherwise_than_by_a_wake_was_restored_unannounced() {
    let ways: [fn(&mut Story); 3] = [
        |story| {
            story.wake(Some("A"), WakeCause::Aborted);
        },
        |story| story.pass(600),
        |story| {
            let tasks = std::mem::take(&mut story.tasks);
            *story = Story::from(story.it.journal().clone());
            story.tasks.splice(0..0, tasks);
        },
    ];
    for way in ways {
        let mut story = ready();
        story.notice(Cid);
        way(&mut story);
        story.finish();
        assert_eq!(story.it.phase(), Phase::Running);
        assert_eq!(story.noticed, [Cid]);
        let journal = story.it.journal();
        assert_eq!((journal.generation, journal.unannounced), (1, 1));
        let thawed = position(&story, &Task::Thaw);
        for before in [Task::Reseed, Task::Clock, Task::Generation] {
            assert!(position(&story, &before) < thawed, "{:?}", story.tasks);
        }
        assert_eq!(count(&story, &Task::Identity), 0, "nobody said who it is");
        assert_eq!(story.restores(), ["a", "b", "c"]);
    }
}

#[test]
fn an_agent_that_is_killed_meanwhile_goes_on_and_counts_once() {
    let mut story = Story::new();
    story.notice(Cid);
    story.end(&ok());
    let mut story = Story::from(story.it.journal().clone());
    story.finish();
    assert_eq!(story.tasks.first(), Some(&Task::Reseed));
    assert_eq!(count(&story, &Task::Personalize("a".into())), 0);
    let journal = story.it.journal();
    assert_eq!((journal.generation, journal.unannounced), (1, 1));
    assert_eq!(journal.restoring, None);
}

#[test]
fn another_restore_in_the_middle_of_a_wake_is_one_more() {
    let mut story = ready();
    story.wake(Some("A"), WakeCause::Restored);
    while story.doing != Some(Task::Personalize("a".into())) {
        story.end(&ok());
    }
    story.notice(Cid);
    story.finish();
    assert_eq!(story.noticed, [Cid]);
    assert_eq!(story.it.journal().generation, 2);
    assert_eq!(count(&story, &Task::Reseed), 2);
    // It is not taken for personalized before it is.
    let written = position(&story, &Task::Generation);
    assert!(position(&story, &Task::Personalize("b".into())) < written);
    assert_eq!(count(&story, &Task::Generation), 1);
}

#[test]
fn a_lease_that_was_all_but_over_waits_for_the_wake_of_its_restore() {
    let mut story = ready();
    story.pass(599);
    story.notice(Vmgenid);
    story.pass(20);
    assert_eq!(story.it.phase(), Phase::Ready);
    let wake = story.wake(Some("A"), WakeCause::Restored);
    story.finish();
    assert_eq!(story.answer(wake), "awake: was ready");
    // And one for which none comes does not wait for ever.
    let mut story = ready();
    story.pass(599);
    story.notice(Vmgenid);
    story.pass(30);
    story.finish();
    assert_eq!(story.it.phase(), Phase::Running);
}

/// An agent that has just been started, and has not read its drop-ins yet.
#[test]
fn what_is_begun_before_the_integrations_are_known_is_begun_once() {
    let begins: [fn(&mut Lifecycle) -> Vec<Act>; 2] = [
        |it| it.noticed(Vmgenid),
        |it| it.wake(WaiterId(1), &waking(None, WakeCause::Restored), &[]),
    ];
    for begin in begins {
        let mut story = Story::new();
        story.it = Lifecycle::new(Journal::default(), story.now);
        let acts = begin(&mut story.it);
        story.take(acts);
        assert_eq!(story.doing, Some(Task::Reseed));
        let acts = story.it.start(&participants());
        assert_eq!(acts, []);
        story.finish();
        assert_eq!(story.it.phase(), Phase::Running);
        assert_eq!(count(&story, &Task::Resume), 1);
        assert_eq!(story.it.journal().generation, 1);
    }
}
