use super::*;
use crate::input::{AgentEvent, FailedAction, Registered, RunState};
use crate::script::{Script, at, down, secs, up};

mod clones;
mod demand;
mod lifetimes;
mod properties;

fn none() -> Facts {
    Facts::default()
}

fn waiting(pool: &str, connections: u32) -> Facts {
    Facts {
        waiting: [(pool.to_owned(), connections)].into(),
        ..Facts::default()
    }
}

fn under_way(actions: &[(&str, ActionKind)]) -> Facts {
    let under_way = actions.iter().map(|(vm, kind)| {
        let pool = crate::label::default_pool(vm).to_owned();
        let (kind, since) = (*kind, secs(86_400));
        (
            (*vm).to_owned(),
            UnderWay {
                kind,
                pool,
                since,
                is_urgent: false,
            },
        )
    });
    Facts {
        under_way: under_way.collect(),
        ..Facts::default()
    }
}

/// Idle ones for so many seconds each, and running for an hour.
fn idle(vms: &[(&str, i64)]) -> Script {
    let names: Vec<&str> = vms.iter().map(|(name, _)| *name).collect();
    let mut script = Script::running(&names);
    for (name, since) in vms {
        script.idle(name, *since);
    }
    script
}

const PERIODS: &str = r#"
    [[pool]]
    name = "web"
    idle_pause_after = "30s"
    idle_sleep_after = "5m"
    max = 20
    golden = "/snapshots/web"
"#;

const ON_ITS_WAY: &str =
    "web held: connections wait for 1 on the way up; another one comes up if none is there in 15s";

fn with(rest: &str) -> String {
    format!("{PERIODS}\n{rest}\n")
}

fn paused(name: &str, since: i64) -> Registered {
    down(name, RunState::Paused { by_fleet: true }, since)
}

fn asleep(name: &str, since: i64) -> Registered {
    down(name, RunState::Asleep, since)
}

fn failed(vm: Registered, action: ActionKind, times: u32, ago: i64) -> Registered {
    let at = at(-ago);
    Registered {
        failed: Some(FailedAction { action, at, times }),
        ..vm
    }
}

#[test]
fn idle_ones_pause_and_then_sleep() {
    let mut script = idle(&[("web-1", 29), ("web-2", 31), ("web-3", 301)]);
    assert_eq!(
        script.plan(PERIODS, &none()),
        "pause web-2: idle for 31s, over 30s\nsleep web-3: idle for 5m1s, over 5m"
    );
    let mut script = Script::new(vec![paused("web-1", -269), paused("web-2", -270)]);
    assert_eq!(
        script.plan(PERIODS, &none()),
        "sleep web-2: paused for 4m30s, over 4m30s"
    );
}

#[test]
fn who_works_or_may_work_is_left_alone() {
    let mut script = Script::running(&["web-1", "web-2", "web-3", "web-4", "db-1"]);
    script.busy("web-1");
    script.agent("web-2", AgentEvent::Lost);
    script.idle("web-3", 1000);
    script.agent("web-3", AgentEvent::LetGo);
    script.changed(Registered::new("web-4", RunState::Starting));
    script.idle("db-1", 1000);
    assert_eq!(
        script.plan(PERIODS, &none()),
        "web held: 1 VM is unknown, counts as busy, is left alone"
    );
}

#[test]
fn who_is_pinned_touched_kept_or_anothers_is_left_alone() {
    let base = || up("web-1", -3600);
    let pinned = Registered {
        pinned: true,
        ..base()
    };
    let touched = Registered {
        touched_at: Some(at(-10)),
        ..base()
    };
    let kept = Registered {
        keep_until: Some(at(60)),
        ..base()
    };
    let others = Registered {
        run_state: RunState::NotOurs,
        ..base()
    };
    for vm in [pinned, touched, kept, others] {
        let mut script = Script::new(vec![vm.clone()]);
        script.idle("web-1", 1000);
        assert_eq!(script.plan(PERIODS, &none()), "", "{vm:?}");
        let sleeps = Registered {
            run_state: RunState::Asleep,
            ..vm.clone()
        };
        if vm.pinned {
            let mut script = Script::new(vec![sleeps]);
            let policy = "[[pool]]\nname = \"web\"\nasleep_remove_after = \"1m\"\nmin = 1";
            assert_eq!(
                script.plan(policy, &none()),
                "web held: one more is wanted: none sleeps or is paused that may run, and there is no `golden`"
            );
        }
    }
    let mut script = Script::new(vec![Registered {
        keep_until: Some(at(60)),
        ..base()
    }]);
    script.idle("web-1", 1000);
    script.beat(60);
    assert_eq!(
        script.plan(PERIODS, &none()),
        "sleep web-1: idle for 17m40s, over 5m"
    );
    // What somebody else has paused is theirs.
    let mut script = Script::new(vec![down(
        "web-1",
        RunState::Paused { by_fleet: false },
        -999,
    )]);
    assert_eq!(script.plan(PERIODS, &none()), "");
}

#[test]
fn nothing_is_done_before_all_of_a_pool_have_answered() {
    let mut script = Script::running(&["web-1", "web-2"]);
    script.idle("web-1", 1000);
    let incomplete = "web held: not every VM has answered or failed yet, or a folder cannot be looked at: nothing is done";
    assert_eq!(
        script.plan(&with("spare = 2"), &waiting("web", 3)),
        incomplete
    );
    script.agent("web-2", AgentEvent::Lost);
    assert_eq!(
        script.plan(&with("spare = 2"), &none()),
        "clone web-3: 1 idle or on their way, 2 are to be at hand\n\
         web held: 1 VM is unknown, counts as busy, is left alone"
    );
    script.suspend(3600);
    assert_eq!(script.plan(PERIODS, &none()), incomplete);
}

#[test]
fn one_that_serves_connections_is_let_be() {
    let mut script = idle(&[("web-1", 31), ("web-2", 301), ("web-3", 31)]);
    let facts = |joined| Facts {
        joined: [("web-1".to_owned(), joined), ("web-2".to_owned(), joined)].into(),
        ..Facts::default()
    };
    assert_eq!(
        script.plan(PERIODS, &facts(1)),
        "pause web-3: idle for 31s, over 30s"
    );
    assert_eq!(
        script.plan(PERIODS, &facts(0)).lines().count(),
        3,
        "none is left"
    );
}

/// Or one more would be made at each look until the first of them is up.
#[test]
fn what_is_on_its_way_is_spare_already() {
    let one_more = "clone web-3: 0 idle or on their way, 1 are to be at hand";
    let mut script = Script::running(&["web-1", "web-2"]);
    script.busy("web-1");
    script.busy("web-2");
    assert_eq!(script.plan(&with("spare = 1"), &none()), one_more);
    let cloning = under_way(&[("web-3", ActionKind::Clone)]);
    assert_eq!(script.plan(&with("spare = 1"), &cloning), "");
    assert_eq!(
        script.plan(&with("spare = 3"), &cloning),
        "clone web-4: 1 idle or on their way, 3 are to be at hand\n\
         clone web-5: 2 idle or on their way, 3 are to be at hand"
    );
    // Up, and not healthy yet.
    for starting in [1, 2] {
        let name = format!("web-{}", 2 + starting);
        script.changed(Registered::new(&name, RunState::Starting));
        assert_eq!(script.plan(&with("spare = 1"), &none()), "");
    }
    // Each of them that has work is no spare one any more.
    script.changed(up("web-3", 0));
    script.busy("web-3");
    assert_eq!(script.plan(&with("spare = 1"), &none()), "");
    script.changed(up("web-4", 0));
    script.busy("web-4");
    assert_eq!(
        script.plan(&with("spare = 1"), &none()),
        "clone web-5: 0 idle or on their way, 1 are to be at hand"
    );
}

#[test]
fn spare_and_min_are_kept_up() {
    let mut script = idle(&[("web-1", 999), ("web-2", 998), ("web-3", 997)]);
    let sleep_one = "sleep web-1: idle for 16m39s, over 5m";
    assert_eq!(script.plan(&with("spare = 2"), &none()), sleep_one);
    assert_eq!(script.plan(&with("min = 2"), &none()), sleep_one);
    assert_eq!(script.plan(&with("min = 3\nspare = 1"), &none()), "");
    // One that is on its way down stands for nobody.
    let leaving = under_way(&[("web-1", ActionKind::Sleep)]);
    assert_eq!(script.plan(&with("min = 2"), &leaving), "");
    // Nor does one that is unknown, when others go down; it does when others would come up.
    script.agent("web-2", AgentEvent::Lost);
    script.agent("web-3", AgentEvent::Lost);
    let held = "web held: 2 VMs are unknown, count as busy, are left alone";
    assert_eq!(script.plan(&with("min = 1"), &none()), held);
    assert_eq!(script.plan(&with("min = 3"), &none()), held);
    assert_eq!(
        script.plan(&with("min = 4"), &none()),
        format!("clone web-4: 3 up, min is 4\n{held}")
    );
}

#[test]
fn paused_ones_resume_first_then_sleepers_wake_then_clones_are_made() {
    let vms = || {
        vec![
            paused("web-1", -900),
            asleep("web-2", -1000),
            asleep("web-7", -900),
        ]
    };
    let mut script = Script::new(vms());
    assert_eq!(
        script.plan(&with("min = 5"), &none()),
        "resume web-1: 0 up, min is 5\n\
         wake web-7: 1 up, min is 5\n\
         wake web-2: 2 up, min is 5\n\
         clone web-8: 3 up, min is 5\n\
         clone web-9: 4 up, min is 5"
    );
    // Paused ones hold their memory: they count for max.
    let max = "[[pool]]\nname = \"web\"\nmin = 2\nmax = 2\ngolden = \"/s\"";
    assert_eq!(
        script.plan(max, &none()),
        "resume web-1: 0 up, min is 2\nwake web-7: 1 up, min is 2"
    );
    let no_golden = "[[pool]]\nname = \"web\"\nmin = 4";
    assert!(script.plan(no_golden, &none()).ends_with(
        "web held: one more is wanted: none sleeps or is paused that may run, and there is no `golden`"
    ));
}

#[test]
fn sleepers_that_do_not_wake_take_no_room_and_do_not_become_ever_more() {
    let stuck = |name| failed(asleep(name, -900), ActionKind::Wake, 1, 3);
    let mut script = Script::new(vec![stuck("web-1"), stuck("web-2")]);
    let policy = |max: u32| format!("[[pool]]\nname = \"web\"\nmax = {max}\ngolden = \"/s\"");
    assert_eq!(
        script.plan(&policy(1), &waiting("web", 1)),
        "web held: one more is wanted: 2 sleep that could not be woken, and no further one is made"
    );
    assert_eq!(
        script.plan(&policy(2), &waiting("web", 1)),
        "clone web-3: a connection waits"
    );
    let pinned = Registered {
        pinned: true,
        ..asleep("web-1", -900)
    };
    assert_eq!(
        Script::new(vec![pinned]).plan(&policy(1), &waiting("web", 1)),
        "clone web-2: a connection waits"
    );
    assert_eq!(
        script.plan("[[pool]]\nname = \"web\"", &waiting("web", 1)),
        "web held: one more is wanted: the next try is in 7s"
    );
}

#[test]
fn what_failed_is_left_for_a_growing_pause() {
    for (times, pause) in [(1, 10), (2, 20), (3, 40), (99, 600)] {
        let vm = |ago| failed(up("web-1", -3600), ActionKind::Sleep, times, ago);
        let mut script = Script::new(vec![vm(pause - 1)]);
        script.idle("web-1", 1000);
        assert_eq!(
            script.plan(PERIODS, &none()),
            "",
            "nor is it paused meanwhile"
        );
        let mut script = Script::new(vec![vm(pause)]);
        script.idle("web-1", 1000);
        assert!(script.plan(PERIODS, &none()).starts_with("sleep web-1"));
    }
    let clone = FailedAction {
        action: ActionKind::Clone,
        at: at(0),
        times: 1,
    };
    let facts = Facts {
        failed_clones: [("web".to_owned(), clone)].into(),
        ..waiting("web", 1)
    };
    let mut script = Script::new(vec![]);
    assert_eq!(
        script.plan(PERIODS, &facts),
        "web held: one more is wanted: the next try is in 10s"
    );
    script.pass(10);
    assert_eq!(
        script.plan(PERIODS, &facts),
        "clone web-1: a connection waits"
    );
}

#[test]
fn what_went_down_is_not_brought_up_for_spare_before_its_period_is_over() {
    let mut script = Script::new(vec![asleep("web-1", -299)]);
    assert_eq!(
        script.plan(&with("spare = 1"), &none()),
        "web held: one more is wanted: the next try is in 1s"
    );
    script.pass(1);
    assert_eq!(
        script.plan(&with("spare = 1"), &none()),
        "wake web-1: 0 idle or on their way, 1 are to be at hand"
    );
    // And what came up stays for its period, however idle its guest says it has been.
    script.changed(up("web-1", 1));
    script.idle("web-1", 5000);
    assert_eq!(script.plan(PERIODS, &none()), "");
    script.beat(30);
    assert_eq!(
        script.plan(PERIODS, &none()),
        "pause web-1: idle for 30s, over 30s"
    );
}

#[test]
fn clones_have_names_that_are_free() {
    let labelled = Registered {
        pool: Some("db".into()),
        ..asleep("web-8", -1)
    };
    let numbered = up("web-7", -60);
    let mut script = Script::new(vec![numbered, labelled, asleep("web-9999999999", -1)]);
    script.busy("web-7");
    let mut facts = under_way(&[("web-9", ActionKind::Clone)]);
    facts.waiting = [("web".to_owned(), 1)].into();
    assert_eq!(
        script
            .plan(&with("min = 5"), &facts)
            .lines()
            .collect::<Vec<_>>()[..],
        [
            "wake web-9999999999: 2 up, min is 5",
            "clone web-10: 3 up, min is 5",
            "clone web-11: 4 up, min is 5",
            ON_ITS_WAY
        ]
    );
}

#[test]
fn a_plan_says_when_time_alone_may_change_it() {
    let policy = |text: &str| Policy::parse(text, "f").unwrap();
    let after = |script: &Script, text: &str| {
        decide(&script.view, &policy(text), &none(), &script.now).look_again_after
    };
    let script = idle(&[("web-1", 20), ("web-2", 10)]);
    assert_eq!(after(&script, PERIODS), Some(secs(10)));
    assert_eq!(after(&script, "[[pool]]\nname = \"web\""), None);
    assert_eq!(
        after(
            &script,
            "[[pool]]\nname = \"db\"\nidle_sleep_after = \"1s\""
        ),
        None
    );
    let script = Script::new(vec![asleep("web-1", -50)]);
    let remove = "[[pool]]\nname = \"web\"\nasleep_remove_after = \"1m\"";
    assert_eq!(after(&script, remove), Some(secs(10)));
    let script = Script::new(vec![Registered {
        keep_until: Some(at(7)),
        ..asleep("web-1", -50)
    }]);
    assert_eq!(after(&script, remove), Some(secs(7)));
}
