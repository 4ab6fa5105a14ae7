//! The state machine's stories.

mod freezing;
mod noticing;
mod untold;

use super::*;
use crate::core::WaiterId;
use mvm_protocol::lifecycle::{SleepPrep, Token};
use mvm_protocol::lifecycle::{Wake, WakeCause};
use mvm_protocol::status::RestoreSign;

pub(super) const AT: Timestamp = Timestamp(1000);

pub(super) fn participants() -> Vec<Participant> {
    let it = |name: &str, checkpoint, personalize, restore, critical| Participant {
        name: name.to_owned(),
        checkpoint,
        personalize,
        restore,
        critical,
    };
    vec![
        it("a", true, true, true, true),
        it("b", true, true, true, false),
        it("c", false, false, true, true),
    ]
}

pub(super) fn token(name: &str) -> Token {
    Token::new(name).unwrap()
}

pub(super) fn prep(name: Option<&str>, deadline: u64, lease: u64) -> SleepPrep {
    let secs = |n| mvm_protocol::drop_in::Secs::new(Duration::from_secs(n)).unwrap();
    SleepPrep {
        token: name.map(token),
        deadline_secs: secs(deadline),
        lease_secs: secs(lease),
        require_freeze: false,
    }
}

pub(super) fn waking(name: Option<&str>, cause: WakeCause) -> WakeAsked {
    let wake = Wake {
        token: name.map(token),
        cause,
        ..Wake::default()
    };
    let fingerprint = u64::from(name == Some("A")) * 2 + u64::from(cause == WakeCause::Aborted);
    WakeAsked { wake, fingerprint }
}

fn ok() -> Done {
    Done {
        outcome: Outcome::Ok,
        duration_ms: 0,
        detail: None,
    }
}

pub(super) fn ended(outcome: Outcome) -> Done {
    Done {
        outcome,
        duration_ms: 0,
        detail: None,
    }
}

/// A lifecycle, what it wanted done, and whom it answered.
struct Story {
    it: Lifecycle,
    now: Duration,
    doing: Option<Task>,
    tasks: Vec<Task>,
    answers: Vec<(u64, String)>,
    waiter: u64,
    /// What was told of restores that nobody announced.
    noticed: Vec<RestoreSign>,
    /// What was logged.
    logged: Vec<String>,
    /// The integrations whose failed steps answers to wakes have told.
    told: Vec<Option<String>>,
}

impl Story {
    fn new() -> Self {
        Self::from(Journal::default())
    }

    fn from(journal: Journal) -> Self {
        let now = Duration::from_secs(100);
        let (tasks, answers) = (Vec::new(), Vec::new());
        let it = Lifecycle::new(journal, now);
        let mut story = Self {
            it,
            now,
            doing: None,
            tasks,
            answers,
            waiter: 0,
            noticed: Vec::new(),
            logged: Vec::new(),
            told: Vec::new(),
        };
        let acts = story.it.start(&participants());
        story.take(acts);
        story
    }

    fn take(&mut self, acts: Vec<Act>) {
        for act in acts {
            match act {
                Act::Do { task, .. } => {
                    assert!(self.doing.is_none(), "one task at a time");
                    self.tasks.push(task.clone());
                    self.doing = Some(task);
                }
                Act::Ready(id, _) => self.answers.push((id.0, "ready".into())),
                Act::Awake(id, awake) => {
                    let lease = if awake.lease_expired { " late" } else { "" };
                    let ready = if awake.was_ready {
                        "was ready"
                    } else {
                        "was not ready"
                    };
                    self.answers.push((id.0, format!("awake: {ready}{lease}")));
                    let failed = awake.steps.into_iter().filter(is_amiss);
                    self.told.extend(failed.map(|step| step.integration));
                }
                Act::Failed(id, reason, _) => self.answers.push((id.0, reason)),
                Act::Held(id, reason, _) => self.answers.push((id.0, format!("held: {reason}"))),
                Act::NotPersonalized(id, reason, _) => {
                    self.answers.push((id.0, format!("runs: {reason}")));
                }
                Act::Busy(id, _) => self.answers.push((id.0, "busy".into())),
                Act::WrongToken(id) => self.answers.push((id.0, "wrong token".into())),
                Act::Unannounced(by) => self.noticed.push(by),
                Act::Amiss(what) => self.logged.push(what),
                Act::Cancel | Act::Keep(_) | Act::Hold | Act::Release | Act::Enter(_) => {}
            }
        }
    }

    fn sleep(&mut self, token: Option<&str>) -> u64 {
        self.waiter += 1;
        let asked = prep(token, 60, 600);
        let made_up = Token::new("made up").unwrap();
        let waiter = WaiterId(self.waiter);
        let acts = self
            .it
            .sleep_prep(waiter, &asked, made_up, participants(), self.now);
        self.take(acts);
        self.waiter
    }

    fn wake(&mut self, token: Option<&str>, cause: WakeCause) -> u64 {
        self.waiter += 1;
        let asked = waking(token, cause);
        let acts = self.it.wake(WaiterId(self.waiter), &asked, &participants());
        self.take(acts);
        self.waiter
    }

    fn end(&mut self, done: &Done) {
        self.doing.take().expect("a task is under way");
        let acts = self.it.done(done, AT);
        self.take(acts);
    }

    fn finish(&mut self) {
        while self.doing.is_some() {
            self.end(&ok());
        }
    }

    fn pass(&mut self, secs: u64) {
        for _ in 0..secs {
            self.now += TICK;
            let acts = self.it.tick(self.now);
            self.take(acts);
        }
    }

    fn answer(&self, id: u64) -> &str {
        let answers: Vec<_> = self.answers.iter().filter(|(to, _)| *to == id).collect();
        assert_eq!(answers.len(), 1, "one answer to {id}: {:?}", self.answers);
        &answers[0].1
    }

    fn restores(&self) -> Vec<&str> {
        let restored = |task: &Task| matches!(task, Task::Restore(_));
        self.tasks
            .iter()
            .filter(|task| restored(task))
            .filter_map(Task::integration)
            .collect()
    }
}

#[test]
fn a_sleep_runs_its_steps_in_order_and_a_wake_in_reverse() {
    let mut story = Story::new();
    let sleep = story.sleep(Some("A"));
    story.finish();
    assert_eq!(story.answer(sleep), "ready");
    assert_eq!(
        story.tasks,
        [
            Task::Drain,
            Task::Checkpoint("b".into()),
            Task::Checkpoint("a".into()),
            Task::Sync,
            Task::Freeze,
            Task::LastSync,
            Task::DropCaches,
            Task::CheckFrozen
        ]
    );
    assert_eq!(story.it.phase(), Phase::Ready);
    story.tasks.clear();
    let wake = story.wake(Some("A"), WakeCause::Restored);
    story.finish();
    assert_eq!(story.answer(wake), "awake: was ready");
    assert_eq!(story.restores(), ["a", "b", "c"]);
    assert_eq!(
        story.tasks[..9],
        [
            Task::CheckFrozen,
            Task::Reseed,
            Task::Clock,
            Task::Identity,
            Task::Payload,
            Task::Personalize("a".into()),
            Task::Personalize("b".into()),
            Task::Generation,
            Task::Thaw
        ]
    );
    assert_eq!(story.it.journal().generation, 1);
    assert_eq!(story.it.phase(), Phase::Running);
}

#[test]
fn the_table_of_sleep_prep() {
    let mut story = Story::new();
    let first = story.sleep(Some("A"));
    let (joined, other) = (story.sleep(Some("A")), story.sleep(Some("B")));
    assert_eq!(story.answer(other), "busy");
    story.finish();
    assert_eq!(
        (story.answer(first), story.answer(joined)),
        ("ready", "ready")
    );
    let tasks = story.tasks.len();
    let (replayed, other) = (story.sleep(Some("A")), story.sleep(Some("B")));
    assert_eq!(
        (story.answer(replayed), story.answer(other)),
        ("ready", "busy")
    );
    assert_eq!(story.tasks.len(), tasks, "nothing ran twice");
    story.wake(None, WakeCause::Restored);
    let during = story.sleep(Some("A"));
    assert_eq!(story.answer(during), "busy");
}

#[test]
fn the_table_of_wake() {
    let mut story = Story::new();
    let fine = story.wake(None, WakeCause::Aborted);
    assert_eq!(story.answer(fine), "awake: was not ready");
    assert_eq!(story.tasks, []);
    let restored = story.wake(None, WakeCause::Restored);
    story.finish();
    assert_eq!(story.answer(restored), "awake: was not ready");
    assert_eq!(
        story.tasks,
        [
            Task::Reseed,
            Task::Clock,
            Task::Identity,
            Task::Payload,
            Task::Personalize("a".into()),
            Task::Personalize("b".into()),
            Task::Generation,
            Task::Resume
        ]
    );

    let mut story = Story::new();
    let sleep = story.sleep(Some("A"));
    story.end(&ok());
    let wrong = story.wake(Some("B"), WakeCause::Aborted);
    assert_eq!(story.answer(wrong), "wrong token");
    let (wake, joined) = (
        story.wake(Some("A"), WakeCause::Aborted),
        story.wake(None, WakeCause::Aborted),
    );
    story.finish();
    assert_eq!(
        story.restores(),
        ["b", "c"],
        "whose turn has come, and no other"
    );
    assert_eq!(story.answer(sleep), "the host woke the guest");
    assert_eq!(story.answer(wake), "awake: was not ready");
    assert_eq!(story.answer(joined), "awake: was not ready");
}

#[test]
fn a_failed_checkpoint_rolls_back_unless_it_is_not_critical() {
    let mut story = Story::new();
    let sleep = story.sleep(None);
    story.end(&ok());
    story.end(&ended(Outcome::Failed));
    assert_eq!(
        story.doing,
        Some(Task::Checkpoint("a".into())),
        "b is not critical"
    );
    story.end(&ended(Outcome::TimedOut));
    story.finish();
    assert_eq!(story.answer(sleep), "the checkpoint of `a` timed out");
    assert_eq!(story.restores(), ["a", "b", "c"]);
    assert_eq!(story.it.phase(), Phase::Running);
    assert_eq!(story.it.journal().owed, [""; 0]);
}

#[test]
fn a_checkpoint_that_was_not_begun_owes_no_restore() {
    let mut story = Story::new();
    let sleep = story.sleep(None);
    story.end(&ok());
    story.end(&ok());
    assert_eq!(story.doing.take(), Some(Task::Checkpoint("a".into())));
    let acts = story.it.refused(&ended(Outcome::Failed), AT);
    story.take(acts);
    story.finish();
    assert_eq!(story.answer(sleep), "the checkpoint of `a` failed");
    assert_eq!(story.restores(), ["b", "c"]);
}

#[test]
fn failing_to_drop_caches_is_no_failure_and_a_failed_sync_is() {
    for (step, answer) in [
        (Task::DropCaches, "ready"),
        (Task::LastSync, "the sync failed"),
    ] {
        let mut story = Story::new();
        let sleep = story.sleep(None);
        while story.doing != Some(step.clone()) {
            story.end(&ok());
        }
        story.end(&ended(Outcome::Failed));
        story.finish();
        assert_eq!(story.answer(sleep), answer);
        assert_eq!(story.it.journal().last_wake_ms, None, "it has not slept");
    }
}

#[test]
fn the_lease_ends_a_sleep_and_a_later_wake_says_so() {
    let mut story = Story::new();
    story.sleep(Some("A"));
    story.finish();
    story.pass(599);
    assert_eq!(story.it.phase(), Phase::Ready);
    story.pass(1);
    story.finish();
    assert_eq!(story.it.phase(), Phase::Running);
    assert_eq!(story.it.journal().last_wake_ms, Some(AT.0));
    assert_eq!(story.restores(), ["a", "b", "c"]);
    let wake = story.wake(Some("A"), WakeCause::Restored);
    story.finish();
    assert_eq!(story.answer(wake), "awake: was not ready late");
    assert_eq!(
        story.restores(),
        ["a", "b", "c"],
        "nothing is restored twice"
    );
}

#[test]
fn the_first_wake_after_the_lease_sets_the_clock_if_it_brings_the_time() {
    let mut story = Story::new();
    story.sleep(Some("A"));
    story.finish();
    story.pass(600);
    story.finish();
    assert_eq!(story.it.phase(), Phase::Running);
    story.tasks.clear();
    // It may have stood still before its lease ran out.
    let mut asked = waking(Some("A"), WakeCause::Aborted);
    asked.wake.wall_clock = Some(AT);
    for (waiter, tasks) in [(90, vec![Task::Clock, Task::Resume]), (91, vec![])] {
        let acts = story.it.wake(WaiterId(waiter), &asked, &participants());
        story.take(acts);
        story.finish();
        assert_eq!(std::mem::take(&mut story.tasks), tasks);
        let late = story.answer(waiter);
        assert_eq!(late, "awake: was not ready late");
    }
    assert_eq!(story.it.journal().generation, 0);
}

#[test]
fn a_clock_that_jumps_does_not_end_a_lease() {
    let mut story = Story::new();
    story.sleep(None);
    story.finish();
    story.now += Duration::from_secs(31_536_000);
    let acts = story.it.tick(story.now);
    story.take(acts);
    assert_eq!(story.it.phase(), Phase::Ready);
}

#[test]
fn a_wake_that_meets_a_lease_that_runs_out_still_gets_its_seed() {
    let mut story = Story::new();
    story.sleep(Some("A"));
    story.finish();
    story.pass(600);
    assert_eq!(story.doing, Some(Task::Thaw));
    let wake = story.wake(Some("A"), WakeCause::Restored);
    story.finish();
    assert!(story.tasks.contains(&Task::Reseed), "{:?}", story.tasks);
    assert_eq!(story.restores(), ["a", "b", "c"]);
    assert_eq!(story.answer(wake), "awake: was not ready late");
}

#[test]
fn an_aborted_wake_that_brings_the_time_sets_the_clock_and_nothing_else() {
    // The source of a snapshot stood still while it was written.
    let mut story = Story::new();
    story.sleep(None);
    story.finish();
    story.tasks.clear();
    let mut asked = waking(None, WakeCause::Aborted);
    asked.wake.wall_clock = Some(AT);
    let acts = story.it.wake(WaiterId(99), &asked, &participants());
    story.take(acts);
    story.finish();
    assert_eq!(story.tasks.first(), Some(&Task::Clock));
    assert!(!story.tasks.contains(&Task::Reseed), "{:?}", story.tasks);
    assert_eq!(story.restores(), ["a", "b", "c"]);
    assert_eq!(story.it.journal().generation, 0);
}

#[test]
fn a_wake_whose_answer_was_lost_is_answered_again_and_runs_nothing() {
    let mut story = Story::new();
    story.sleep(Some("A"));
    story.finish();
    story.wake(Some("A"), WakeCause::Restored);
    story.finish();
    let tasks = story.tasks.len();
    let again = story.wake(Some("A"), WakeCause::Restored);
    assert_eq!(
        (story.answer(again), story.tasks.len()),
        ("awake: was ready", tasks)
    );
    // Without a token it may be another host's, which knows of a restore that nobody else saw.
    story.wake(None, WakeCause::Restored);
    assert_eq!(story.doing, Some(Task::Reseed));
}

#[test]
fn a_restarted_agent_runs_owed_restores_once() {
    let journal = Journal {
        asleep: true,
        owed: vec!["b".into(), "gone".into(), "a".into()],
        ..Journal::default()
    };
    let mut story = Story::from(journal);
    assert_eq!(story.it.phase(), Phase::Waking);
    let wake = story.wake(None, WakeCause::Aborted);
    story.finish();
    assert_eq!(story.restores(), ["a", "b", "gone"]);
    assert_eq!(story.answer(wake), "awake: was not ready");
    let expected = Journal {
        last_wake_ms: Some(AT.0),
        ..Journal::default()
    };
    assert_eq!(*story.it.journal(), expected);
}
