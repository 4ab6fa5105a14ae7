//! What hosts ask before the drop-ins are read, and while they are.

use super::*;
use crate::core::sleeping::PayloadWork;
use mvm_protocol::lifecycle::{Outcome, WakeCause};

const NET: &str = r#"{"name":"net","personalize_cmd":"x"}"#;

fn load(story: &mut Story, integration: &str) {
    story.event(Event::DropInsLoaded(Ok(Loaded {
        integrations: vec![drop_in::read(integration.as_bytes()).unwrap()],
        ..Loaded::default()
    })));
}

fn restored(payload: Option<&str>) -> Wake {
    Wake {
        clone: true,
        payload: payload.map(|text| serde_json::from_str(text).unwrap()),
        ..Wake::default()
    }
}

/// Ends the steps that are begun, that command's as given, and gives them all.
fn steps_of(story: &mut Story, personalized: Outcome) -> Vec<Work> {
    let mut all = Vec::new();
    while let Some(step) = story.steps.pop() {
        let outcome = match &step {
            Work::Command(_, command) if command.what.starts_with("personalize") => personalized,
            _ => Outcome::Ok,
        };
        all.push(step);
        story.event(Event::StepDone(Done {
            outcome,
            duration_ms: 0,
            detail: None,
        }));
    }
    all
}

fn personalized(steps: &[Work]) -> usize {
    let is = |step: &&Work| matches!(step, Work::Command(_, command) if command.what.starts_with("personalize"));
    steps.iter().filter(is).count()
}

/// A clone whose agent is started again before it was personalized, and one that runs.
#[test]
fn a_wake_before_the_drop_ins_are_read_waits_for_them() {
    let halfway = r#"{"asleep":true,"frozen":true,"restoring":{"clone":true},"generation":1}"#;
    let halfway: Journal = serde_json::from_str(halfway).unwrap();
    for journal in [halfway, Journal::default()] {
        let mut story = Story::of(journal, 4);
        wake(&mut story, restored(Some("{}")));
        assert!(story.steps.is_empty() && story.answers.is_empty());
        load(&mut story, NET);
        let steps = steps_of(&mut story, Outcome::Ok);
        assert!(personalized(&steps) > 0, "{steps:?}");
        let payload = |step: &&Work| matches!(step, Work::Payload(PayloadWork::Write(_)));
        assert!(steps.iter().any(|step| payload(&step)), "{steps:?}");
        let thaw = steps.iter().position(|step| *step == Work::Thaw);
        let last = steps
            .iter()
            .rposition(|step| personalized(std::slice::from_ref(step)) > 0);
        assert!(thaw.is_none_or(|thaw| thaw > last.unwrap()), "{steps:?}");
        assert!(matches!(
            &story.answers[..],
            [(WaiterId(2), Answer::Awake(_))]
        ));
    }
}

#[test]
fn wakes_that_wait_for_the_drop_ins_are_few() {
    let mut story = Story::new(4);
    for _ in 0..20 {
        wake(&mut story, aborted());
    }
    assert_eq!(story.answers.len(), 4);
    load(&mut story, NET);
    assert_eq!(story.answers.len(), 20);
}

#[test]
fn a_check_before_the_drop_ins_are_read_is_asked_for_again() {
    let mut story = Story::new(4);
    let name = "net".to_owned();
    let kind = CheckKind::Integration;
    story.event(Event::CheckAsked(
        WaiterId(1),
        request::Check { kind, name },
    ));
    assert!(
        matches!(&story.answers[..], [(WaiterId(1), Answer::Error(it))]
            if it.code == ErrorCode::Busy && it.retryable)
    );
}

#[test]
fn whoever_waits_for_a_second_load_is_told_when_the_guest_goes_to_sleep() {
    let mut story = Story::new(4);
    load(&mut story, NET);
    for waiter in [5, 6] {
        story.event(Event::ReloadAsked(Some(WaiterId(waiter))));
    }
    let asked = SleepPrep::default();
    story.event(Event::SleepAsked(WaiterId(1), asked, Token::made_up(1)));
    load(&mut story, NET);
    let told: Vec<u64> = story.answers.iter().map(|(waiter, _)| waiter.0).collect();
    assert_eq!(told, [5, 6]);
}

/// The payload stays until a wake brings another one, or the next restore none.
#[test]
fn a_restore_that_is_tried_again_keeps_its_payload() {
    let mut story = Story::new(4);
    load(&mut story, NET);
    sleep(&mut story);
    wake(&mut story, restored(Some("{}")));
    steps_of(&mut story, Outcome::Failed);
    let error = story.answers.pop().unwrap().1;
    assert!(matches!(error, Answer::Error(it) if it.code == ErrorCode::Failed && it.retryable));
    let payload = |steps: Vec<Work>| {
        let of = |step| match step {
            Work::Payload(work) => Some(work),
            _ => None,
        };
        steps.into_iter().find_map(of).unwrap()
    };
    wake(&mut story, restored(None));
    assert_eq!(
        payload(steps_of(&mut story, Outcome::Failed)),
        PayloadWork::Keep
    );
    wake(&mut story, restored(Some(r#"{"a":1}"#)));
    let steps = steps_of(&mut story, Outcome::Ok);
    assert!(matches!(payload(steps), PayloadWork::Write(_)));
    sleep(&mut story);
    wake(&mut story, restored(None));
    assert_eq!(
        payload(steps_of(&mut story, Outcome::Ok)),
        PayloadWork::Remove
    );
}

/// Of a service whose check has an interval of an hour.
#[test]
fn a_first_check_that_a_sleep_cuts_short_is_made_up_for_when_that_fails() {
    for (end_before, cut_short, soon) in [
        (false, true, true),
        (true, true, true),
        (true, false, false),
    ] {
        let mut story = Story::new(4);
        story.load(&[(
            "a",
            ",\"health_interval_secs\":3600,\"checkpoint_cmd\":\"x\"",
        )]);
        if end_before {
            story.end(End::Exited(0));
        }
        if end_before && cut_short {
            let kind = CheckKind::Integration;
            let name = "a".to_owned();
            story.event(Event::CheckAsked(
                WaiterId(9),
                request::Check { kind, name },
            ));
        }
        let asked = SleepPrep::default();
        story.event(Event::SleepAsked(WaiterId(1), asked, Token::made_up(1)));
        while !story.begun.is_empty() {
            story.end(End::Signaled(9));
        }
        while std::mem::take(&mut story.steps).pop().is_some() {
            story.event(Event::StepDone(Done {
                outcome: Outcome::Failed,
                duration_ms: 0,
                detail: None,
            }));
        }
        assert_eq!(story.status().lifecycle, Phase::Running);
        story.pass(secs(3));
        assert_eq!(!story.begun.is_empty(), soon, "{end_before} {cut_short}");
    }
}

#[test]
fn a_clone_that_runs_although_it_is_not_personalized_is_no_success() {
    let mut story = Story::new(4);
    load(&mut story, NET);
    let mut asked = restored(None);
    asked.cause = WakeCause::Restored;
    for _ in 0..2 {
        wake(&mut story, asked.clone());
        steps_of(&mut story, Outcome::Failed);
        let (_, answer) = story.answers.pop().unwrap();
        let Answer::Error(error) = answer else {
            panic!("{answer:?}");
        };
        assert!(error.code == ErrorCode::Failed && error.retryable);
        assert!(
            error.message.contains("was not frozen, and runs"),
            "{}",
            error.message
        );
        assert!(error.steps.is_some_and(|steps| !steps.is_empty()));
        assert_eq!(story.status().lifecycle, Phase::Running);
    }
    wake(&mut story, asked);
    steps_of(&mut story, Outcome::Ok);
    assert!(matches!(story.answers.pop(), Some((_, Answer::Awake(_)))));
}
