//! What a guest that has stood still knows of itself.

use super::*;

/// A guest with a service that was healthy, a probe that had run, and a service without a check.
pub(super) fn well() -> Story {
    let mut story = Story::new(8);
    let integrations = [
        r#"{"name":"a","health_cmd":"x","health_interval_secs":60,"startup_grace_secs":30}"#,
        r#"{"name":"u","checkpoint_cmd":"x","restore_cmd":"x"}"#,
    ];
    story.event(Event::DropInsLoaded(Ok(Loaded {
        integrations: integrations
            .map(|text| drop_in::read(text.as_bytes()).unwrap())
            .into(),
        probes: vec![drop_in::read(br#"{"name":"p","command":"x","interval_secs":60}"#).unwrap()],
        ..Loaded::default()
    })));
    story.end(End::Exited(0));
    story.end(End::Exited(0));
    story.pass(secs(40));
    assert_eq!(story.health(), Health::Healthy);
    story.published.clear();
    story
}

/// What is known of the service and of the probe.
fn known(story: &Story) -> (Health, bool, bool) {
    let status = story.status();
    let a = status.integrations[0].clone();
    let probe = story.core.probes(story.now)[0].clone();
    assert_eq!(probe.value, "", "it keeps its value");
    assert_eq!(status.integrations[1].health, Health::Unchecked);
    (
        a.health.known().unwrap(),
        a.last_check.is_some(),
        probe.stale,
    )
}

const BELIEVED: (Health, bool, bool) = (Health::Healthy, true, false);
const GIVEN_UP: (Health, bool, bool) = (Health::Starting, false, true);

/// A way in which a frozen guest comes to run again.
type Wakes = fn(&mut Story);

#[test]
fn a_verdict_from_before_a_freeze_is_none() {
    let ways: [(&str, Wakes); 4] = [
        ("restored", |story| wake(story, Wake::default())),
        ("aborted", |story| wake(story, aborted())),
        ("the lease", |story| story.pass(secs(601))),
        ("the lease, and then restored", |story| {
            story.pass(secs(601));
            wake(story, Wake::default());
        }),
    ];
    for (way, wakes) in ways {
        let mut story = well();
        sleep(&mut story);
        assert_eq!(known(&story), BELIEVED, "{way}: nobody knows yet");
        story.published.clear();
        wakes(&mut story);
        assert_eq!(known(&story), GIVEN_UP, "{way}: before it runs");
        step_through(&mut story);
        assert_eq!(story.status().lifecycle, Phase::Running, "{way}");
        assert_eq!(known(&story), GIVEN_UP, "{way}");
        // Those who watch are told before they are told that it runs.
        let told = |change: &Change| match change {
            Change::Integration { integration } => Some((integration.name.clone(), Phase::Ready)),
            Change::Lifecycle { lifecycle } => Some((String::new(), lifecycle.known()?)),
            _ => None,
        };
        let told: Vec<_> = story.published.iter().filter_map(told).collect();
        let expected = [
            ("", Phase::Waking),
            ("a", Phase::Ready),
            ("", Phase::Running),
        ];
        assert_eq!(
            told,
            expected.map(|(name, phase)| (name.to_owned(), phase)),
            "{way}"
        );
        // The first check comes soon, and decides.
        assert!(story.begun.is_empty(), "{way}");
        story.pass(Duration::from_millis(2300));
        assert_eq!(story.begun().len(), 2, "{way}");
        while !story.begun.is_empty() {
            story.end(End::Exited(0));
        }
        assert_eq!(known(&story), BELIEVED, "{way}");
    }
}

#[test]
fn after_a_freeze_the_grace_begins_anew_when_the_guest_runs() {
    let mut story = well();
    sleep(&mut story);
    wake(&mut story, Wake::default());
    // However long its restore commands take.
    story.pass(secs(100));
    step_through(&mut story);
    story.pass(secs(3));
    story.end(End::Exited(1));
    assert_eq!(story.health(), Health::Starting);
    while !story.begun.is_empty() {
        story.end(End::Exited(1));
    }
    story.pass(secs(91));
    while !story.begun.is_empty() {
        story.end(End::Exited(1));
    }
    assert_eq!(story.health(), Health::Unhealthy);
}

#[test]
fn a_sleep_that_came_to_nothing_leaves_verdicts_as_they_are() {
    let mut story = well();
    let asked = SleepPrep::default();
    story.event(Event::SleepAsked(WaiterId(1), asked, Token::made_up(1)));
    wake(&mut story, aborted());
    step_through(&mut story);
    assert_eq!(story.status().lifecycle, Phase::Running);
    assert_eq!(known(&story), BELIEVED);
    wake(&mut story, aborted());
    assert_eq!(known(&story), BELIEVED, "it runs, and was never asleep");
}

#[test]
fn a_guest_that_was_frozen_unasked_gives_its_verdicts_up_when_it_is_told() {
    let mut story = well();
    story.pass(secs(30));
    // A check is under way, and began before.
    let began = story.begun().len();
    assert!(began > 0);
    wake(&mut story, Wake::default());
    assert_eq!(known(&story), GIVEN_UP);
    step_through(&mut story);
    while !story.begun.is_empty() {
        assert_eq!(known(&story), GIVEN_UP, "its end says nothing");
        let before = story.begun.len();
        story.end(End::Exited(0));
        // It is begun anew at once.
        if story.begun.len() == before {
            break;
        }
    }
    story.end(End::Exited(0));
    story.pass(secs(3));
    while !story.begun.is_empty() {
        story.end(End::Exited(0));
    }
    assert_eq!(known(&story), BELIEVED);
    // Somebody who lost the answer asks again: it is no other restore.
    story.published.clear();
    wake(&mut story, Wake::default());
    assert_eq!(
        story.status().lifecycle,
        Phase::Waking,
        "without a token it is another one"
    );
}

#[test]
fn frozen_time_is_not_idle_time_and_neither_is_a_step_of_the_clock() {
    const YEAR: i64 = 365 * 86_400_000;
    let busy = Sample {
        load1: Some(1.0),
        ..Sample::default()
    };
    for (mono_jumps, step) in [
        (0, 60_000),
        (60, 60_000),
        (0, 0),
        (0, 56 * YEAR),
        (0, -YEAR),
    ] {
        let mut story = well();
        story.event(Event::Sampled(busy));
        story.pass(secs(1));
        story.event(Event::Sampled(Sample::default()));
        story.pass(secs(10));
        let ago = |story: &Story| {
            let status = story.status();
            let now = status.now.unwrap().0;
            let worker = status.worker;
            assert!(worker.since.0 <= now && worker.last_busy_at.unwrap().0 <= now);
            let since = status.integrations[1].since;
            [worker.since, worker.last_busy_at.unwrap(), since].map(|at| (now - at.0) / 1000)
        };
        let before = ago(&story);
        sleep(&mut story);
        // The VM is frozen; some let the monotonic clock go on meanwhile.
        story.now.mono += secs(mono_jumps);
        story.now.wall.0 += step;
        wake(&mut story, Wake::default());
        step_through(&mut story);
        story.pass(secs(10));
        let after = ago(&story);
        for (before, after) in before.into_iter().zip(after) {
            let passed = after - before;
            assert!(
                (10..=11).contains(&passed),
                "{mono_jumps} {step}: {before} {after}"
            );
        }
    }
}

#[test]
fn a_clone_is_idle_since_its_wake() {
    let mut story = well();
    let busy = Sample {
        load1: Some(1.0),
        ..Sample::default()
    };
    story.event(Event::Sampled(busy));
    sleep(&mut story);
    wake(
        &mut story,
        Wake {
            clone: true,
            ..Wake::default()
        },
    );
    let woken = story.now.wall;
    step_through(&mut story);
    story.event(Event::Sampled(busy));
    let worker = story.status().worker;
    assert_eq!((worker.since, worker.last_busy_at), (woken, None));
    assert_eq!((worker.load1, worker.load1_counted), (1.0, Some(0.0)));
}
