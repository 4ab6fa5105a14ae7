//! Connections that wait.

use super::*;

#[test]
fn a_connection_wakes_one_and_fifty_wake_one() {
    for connections in [1, 50] {
        let mut script = Script::new(vec![asleep("web-1", -1), asleep("web-2", -2)]);
        let plan = script.plan(PERIODS, &waiting("web", connections));
        assert_eq!(plan.lines().count(), 1);
        assert!(plan.starts_with("wake web-2: "), "{plan}");
        // While it is on its way, and when it is there, nobody else is woken.
        let mut facts = under_way(&[("web-2", ActionKind::Wake)]);
        facts.waiting = [("web".to_owned(), connections)].into();
        assert_eq!(script.plan(PERIODS, &facts), ON_ITS_WAY);
        script.changed(up("web-2", 0));
        assert!(
            script
                .plan(PERIODS, &waiting("web", connections))
                .contains("held")
        );
        script.idle("web-2", 0);
        assert_eq!(script.plan(PERIODS, &waiting("web", connections)), "");
        script.busy("web-2");
        assert!(
            script
                .plan(PERIODS, &waiting("web", 1))
                .starts_with("wake web-1: a connection waits")
        );
    }
    let mut script = Script::new(vec![]);
    assert_eq!(
        script.plan(PERIODS, &waiting("web", 50)),
        "clone web-1: 50 connections wait"
    );
    let cloning = Facts {
        waiting: [("web".to_owned(), 50)].into(),
        ..under_way(&[("web-1", ActionKind::Clone)])
    };
    assert_eq!(script.plan(PERIODS, &cloning), ON_ITS_WAY);
}

/// Or all who come while one VM hangs wait for that one, and are closed.
#[test]
fn one_that_hangs_on_its_way_up_does_not_hold_up_those_who_wait() {
    // It runs, and its health checks never come to a verdict; or its start hangs, in its folder or
    // under way.
    let unhealthy = |script: &mut Script| {
        let mut status = crate::script::status(crate::script::worker(false, at(-9)));
        status.health = mvm_protocol::status::Health::Starting.into();
        script.agent("web-1", AgentEvent::Status(&status));
    };
    let mut verdictless = Script::new(vec![up("web-1", 0), asleep("web-2", -900)]);
    unhealthy(&mut verdictless);
    let starting = Registered::new("web-1", RunState::Starting);
    let starting = Script::new(vec![starting, asleep("web-2", -900)]);
    let waking = Script::new(vec![asleep("web-1", -9), asleep("web-2", -900)]);
    let mut wakes = under_way(&[("web-1", ActionKind::Wake)]);
    wakes.waiting = [("web".to_owned(), 1)].into();
    for (mut script, facts) in [
        (verdictless, waiting("web", 1)),
        (starting, waiting("web", 1)),
        (waking, wakes),
    ] {
        assert_eq!(script.plan(PERIODS, &facts), ON_ITS_WAY);
        script.pass(14);
        let plan = script.plan(PERIODS, &facts);
        assert!(plan.ends_with("if none is there in 1s"), "{plan}");
        script.pass(1);
        assert_eq!(
            script.plan(PERIODS, &facts),
            "wake web-2: a connection waits"
        );
        // And that one has its time, too.
        let mut facts = facts;
        let under_way = UnderWay {
            kind: ActionKind::Wake,
            pool: "web".to_owned(),
            since: script.now.boottime,
            is_urgent: true,
        };
        facts.under_way.insert("web-2".to_owned(), under_way);
        let plan = script.plan(PERIODS, &facts);
        assert!(plan.contains("for 2 on the way up"), "{plan}");
        let policy = Policy::parse(PERIODS, "f").unwrap();
        let plan = decide(&script.view, &policy, &facts, &script.now);
        assert_eq!(plan.look_again_after, Some(secs(15)));
    }
}

#[test]
fn past_max_a_connection_waits_its_turn() {
    let mut script = Script::running(&["web-1"]);
    script.busy("web-1");
    script.changed(asleep("web-2", -900));
    assert_eq!(
        script.plan("[[pool]]\nname = \"web\"\nmax = 1", &waiting("web", 1)),
        "web held: one more is wanted: 1 are up, max is 1"
    );
    // Nobody is put down meanwhile.
    let mut script = idle(&[("web-1", 9999)]);
    assert_eq!(script.plan(PERIODS, &waiting("web", 1)), "");
}
