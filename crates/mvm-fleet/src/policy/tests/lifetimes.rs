//! What is too old, has slept for too long, or is left over.

use super::*;

#[test]
fn lifetimes_end_when_idle_and_at_twice_in_any_case() {
    let policy =
        "[[pool]]\nname = \"web\"\nmax_lifetime = \"1h\"\nmax = 3\nmin = 1\ngolden = \"/s\"";
    let mut script = Script::new(vec![
        up("web-1", -3599),
        up("web-2", -3600),
        up("web-3", -7200),
    ]);
    for name in ["web-1", "web-2", "web-3"] {
        script.busy(name);
    }
    assert_eq!(
        script.plan(policy, &none()),
        "stop web-3: 2h old, over twice 1h"
    );
    script.idle("web-1", 100);
    script.idle("web-2", 100);
    assert_eq!(
        script.plan(policy, &none()),
        "stop web-3: 2h old, over twice 1h\nstop web-2: 1h old, over 1h, and idle"
    );
    // One that is alone waits until another one stands in for it.
    let mut script = Script::new(vec![up("web-2", -3700)]);
    script.idle("web-2", 100);
    assert_eq!(script.plan(policy, &none()), "clone web-3: 0 up, min is 1");
    assert_eq!(
        script.plan(policy, &under_way(&[("web-3", ActionKind::Clone)])),
        ""
    );
    script.changed(up("web-3", 0));
    script.idle("web-3", 0);
    assert_eq!(
        script.plan(policy, &none()),
        "stop web-2: 1h1m old, over 1h, and idle"
    );
    // Where there is no room for another one it stays until twice its lifetime.
    let one = policy.replace("max = 3", "max = 1");
    let mut script = Script::new(vec![up("web-2", -3700)]);
    script.idle("web-2", 100);
    let held = "web held: one more is wanted: 1 are up, max is 1";
    assert_eq!(script.plan(&one, &none()), held);
    script.beat(3500);
    assert_eq!(
        script.plan(&one, &none()),
        format!("stop web-2: 2h old, over twice 1h\n{held}")
    );
    // A pinned one, one that a host keeps, and one of which nobody knows what it does, live on.
    let pinned = Registered {
        pinned: true,
        ..up("web-1", -9000)
    };
    let kept = Registered {
        keep_until: Some(at(60)),
        ..up("web-3", -9000)
    };
    let mut script = Script::new(vec![pinned, up("web-2", -9000), kept]);
    script.idle("web-1", 1000);
    script.agent("web-2", AgentEvent::Lost);
    script.busy("web-3");
    assert_eq!(
        script.plan(policy, &none()),
        "web held: 1 VM is unknown, counts as busy, is left alone"
    );
}

#[test]
fn when_a_lifetime_ends_it_is_looked_again_whatever_its_vm_does() {
    let policy = "[[pool]]\nname = \"web\"\nmax_lifetime = \"1h\"\nmin = 2";
    let policy = Policy::parse(policy, "f").unwrap();
    let after =
        |script: &Script| decide(&script.view, &policy, &none(), &script.now).look_again_after;
    // The younger one's end, and twice that of the other, which nothing stands in for.
    for (younger, older, expected) in [(-3000, -3700, 600), (-1000, -7100, 100)] {
        let mut script = Script::new(vec![up("web-1", younger), up("web-2", older)]);
        for name in ["web-1", "web-2"] {
            script.idle(name, 100);
        }
        assert_eq!(after(&script), Some(secs(expected)), "idle");
        for name in ["web-1", "web-2"] {
            script.busy(name);
        }
        assert_eq!(after(&script), Some(secs(expected)), "busy");
    }
    for member in [asleep("web-1", -10), paused("web-1", -10)] {
        let member = Registered {
            started_at: Some(at(-3000)),
            ..member
        };
        assert_eq!(after(&Script::new(vec![member])), Some(secs(600)));
    }
}

#[test]
fn one_that_ended_by_itself_stays_from_when_that_was_seen() {
    let policy = "[[pool]]\nname = \"web\"";
    let ran_for_long = Registered {
        made_by_fleet: true,
        ..up("web-1", -90_000)
    };
    let mut script = Script::new(vec![ran_for_long.clone()]);
    script.idle("web-1", 0);
    script.changed(Registered {
        run_state: RunState::Ended,
        since: None,
        ..ran_for_long
    });
    assert_eq!(script.plan(policy, &none()), "");
    script.now.boottime += secs(599);
    script.now.monotonic += secs(599);
    assert_eq!(script.plan(policy, &none()), "");
    script.now.boottime += secs(1);
    assert_eq!(
        script.plan(policy, &none()),
        "remove web-1: not running for 10m"
    );
}

#[test]
fn what_is_over_its_lifetime_is_not_brought_up_again() {
    let policy = "[[pool]]\nname = \"web\"\nmax_lifetime = \"1h\"\nmax = 3\ngolden = \"/s\"";
    let mut script = Script::new(vec![asleep("web-1", -10), paused("web-2", -10)]);
    assert_eq!(
        script.plan(policy, &waiting("web", 1)),
        "clone web-3: a connection waits"
    );
    assert_eq!(
        script.plan(policy, &none()),
        "stop web-2: 1h old, over 1h, and idle"
    );
    let mut script = Script::new(vec![Registered {
        made_by_fleet: true,
        ..asleep("web-1", -10)
    }]);
    assert_eq!(
        script.plan(policy, &none()),
        "remove web-1: 1h old, over 1h, and idle"
    );
}

#[test]
fn sleepers_are_removed_when_their_time_is_over() {
    let policy = "[[pool]]\nname = \"web\"\nasleep_remove_after = \"7d\"";
    let week = 7 * 86_400;
    let mut script = Script::new(vec![asleep("web-1", -week), asleep("web-2", 1 - week)]);
    assert_eq!(
        script.plan(policy, &none()),
        "remove web-1: asleep for 7d, over 7d"
    );
    // Unless somebody wants one.
    assert_eq!(
        script.plan(policy, &waiting("web", 1)),
        "wake web-2: a connection waits\nremove web-1: asleep for 7d, over 7d"
    );
}

#[test]
fn what_the_fleet_made_and_nobody_needs_is_removed() {
    let made = |name: &str, state, since| Registered {
        made_by_fleet: true,
        ..down(name, state, since)
    };
    let mut script = Script::new(vec![
        made("web-1", RunState::StartBrokenOff, 0),
        made("web-2", RunState::Stopped, -600),
        made("web-3", RunState::Ended, -599),
        down("web-4", RunState::Ended, -9999),
        down("web-5", RunState::StartBrokenOff, -9999),
    ]);
    assert_eq!(
        script.plan(PERIODS, &none()),
        "remove web-1: its start was broken off\nremove web-2: not running for 10m"
    );
    let removing = under_way(&[("web-1", ActionKind::Remove), ("web-2", ActionKind::Remove)]);
    assert_eq!(script.plan(PERIODS, &removing), "");
}

/// Or connections wait for it in vain, and are closed, while it sleeps.
#[test]
fn one_that_is_over_its_lifetime_is_brought_up_for_those_who_wait_where_none_can_be_made() {
    let policy = |rest: &str| {
        let pool = "[[pool]]\nname = \"web\"\nmax_lifetime = \"1h\"\n";
        format!("{pool}{rest}")
    };
    let old = |vm: Registered| Registered {
        started_at: Some(at(-86_400)),
        ..vm
    };
    let despite = "; it is 1d old, over 1h, but there is no `golden` to clone in its place";
    let mut script = Script::new(vec![old(asleep("web-1", -40_000))]);
    assert_eq!(
        script.plan(&policy(""), &waiting("web", 2)),
        format!("wake web-1: 2 connections wait{despite}")
    );
    assert_eq!(
        script.plan(&policy("min = 1"), &none()),
        format!("wake web-1: 0 up, min is 1{despite}")
    );
    assert_eq!(
        script.plan(&policy("spare = 1"), &none()),
        "web held: one more is wanted: 1 that sleep or are paused are over their `max_lifetime` of 1h, \
         and come up only for connections and `min`; there is no `golden`"
    );
    assert_eq!(script.plan(&policy(""), &none()), "", "it sleeps on");
    // It is not ended at once: it has a lifetime from then on.
    script.changed(old(up("web-1", 0)));
    script.busy("web-1");
    script.beat(3599);
    assert_eq!(script.plan(&policy(""), &none()), "");
    script.beat(1);
    assert_eq!(
        script.plan(&policy(""), &none()),
        "stop web-1: 1d1h old, over twice 1h"
    );
    // A paused one is there at once, and has its room.
    let mut script = Script::new(vec![old(asleep("web-1", -9)), old(paused("web-2", -9))]);
    assert_eq!(
        script.plan(&policy("max = 1"), &waiting("web", 1)),
        format!("resume web-2: a connection waits{despite}")
    );
    // One that is young enough goes first.
    let young = Registered {
        started_at: Some(at(-600)),
        ..asleep("web-2", -90)
    };
    let mut script = Script::new(vec![old(asleep("web-1", -9)), young]);
    assert_eq!(
        script.plan(&policy(""), &waiting("web", 1)),
        "wake web-2: a connection waits"
    );
}
