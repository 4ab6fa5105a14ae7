//! When what was up in this boot.

use super::*;

/// The drop-ins' load, the guest's readiness, and each integration's first health.
fn told(story: &Story) -> (Option<f64>, Option<f64>, Vec<Option<f64>>) {
    let boot = story.core.boot().told(None);
    let integrations = story.status().integrations;
    (
        boot.drop_ins_loaded_secs,
        boot.ready_secs,
        integrations
            .iter()
            .map(|one| one.first_healthy_secs)
            .collect(),
    )
}

#[test]
fn each_part_is_noted_once() {
    let mut story = Story::new(4);
    let started = story.core.boot().told(None).agent_started_secs;
    assert!((started - 1000.0).abs() < 0.001, "{started}");
    story.now.mono += secs(2);
    story.load(&[("a", ""), ("b", "")]);
    assert_eq!(told(&story), (Some(1002.0), None, vec![None, None]));
    story.now.mono += secs(1);
    story.end(End::Exited(0));
    assert_eq!(told(&story), (Some(1002.0), None, vec![Some(1003.0), None]));
    story.now.mono += secs(1);
    story.end(End::Exited(1));
    assert_eq!(told(&story).1, None, "one is unhealthy");
    story.pass(secs(31));
    story.end(End::Exited(0));
    story.end(End::Exited(0));
    let (loaded, ready, healthy) = told(&story);
    assert_eq!((loaded, healthy[0]), (Some(1002.0), Some(1003.0)));
    assert!(ready > Some(1004.0) && ready == healthy[1], "{ready:?}");
    // What comes later is no news of the boot.
    story.load(&[("a", ""), ("b", "")]);
    story.pass(secs(40));
    story.end(End::Exited(1));
    story.end(End::Exited(0));
    assert_eq!(told(&story), (loaded, ready, healthy));
}

#[test]
fn a_guest_without_integrations_is_ready_with_its_drop_ins() {
    let mut story = Story::new(4);
    assert_eq!(told(&story).1, None, "nobody knows what it has");
    story.load(&[]);
    assert_eq!(told(&story), (Some(1000.0), Some(1000.0), vec![]));
}

#[test]
fn a_sleep_ends_it_and_what_was_noted_stays() {
    let mut story = Story::new(4);
    story.load(&[("a", ""), ("b", "")]);
    story.end(End::Exited(0));
    let before = told(&story);
    assert_eq!(before, (Some(1000.0), None, vec![Some(1000.0), None]));
    story.end(End::Exited(1));
    sleep(&mut story);
    wake(&mut story, Wake::default());
    step_through(&mut story);
    story.pass(secs(3));
    while !story.begun.is_empty() {
        story.end(End::Exited(0));
    }
    assert_eq!(story.health(), Health::Healthy);
    assert_eq!(told(&story), before, "it was restored, and not booted");
}
