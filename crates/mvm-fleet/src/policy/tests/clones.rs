//! What becomes of clones after they were made.

use super::*;

const POLICY: &str = "[[pool]]\nname = \"web\"\nmin = 1\nmax = 3\ngolden = \"/s\"";

fn made(name: &str, started_at: i64) -> Registered {
    Registered {
        made_by_fleet: true,
        ..up(name, started_at)
    }
}

fn ended(vm: Registered, has_crashed: bool) -> Registered {
    Registered {
        run_state: RunState::Ended,
        since: None,
        has_crashed,
        ..vm
    }
}

/// The names of those that crashed, and whether a later one has come to something.
fn told(script: &Script, facts: &Facts) -> (Vec<String>, bool) {
    let policy = Policy::parse(POLICY, "f").unwrap();
    let fates = fates(&script.view, &policy, facts, &script.now);
    let crashed = fates.crashed.iter();
    let crashed = crashed.map(|crashed| format!("{}: {crashed}", crashed.vm));
    (crashed.collect(), fates.proved.contains("web"))
}

fn failed_at(secs: i64) -> Facts {
    let failed = FailedAction {
        action: ActionKind::Clone,
        at: at(secs),
        times: 1,
    };
    Facts {
        failed_clones: [("web".to_owned(), failed)].into(),
        ..Facts::default()
    }
}

#[test]
fn one_that_crashes_at_once_is_told_until_it_is_noted_that_it_was() {
    let mut script = Script::new(vec![made("web-1", -30)]);
    script.idle("web-1", 0);
    assert_eq!(told(&script, &none()), (vec![], false));
    script.changed(ended(made("web-1", -30), true));
    let crashed = "web-1: it crashed 30s after it was made".to_owned();
    assert_eq!(told(&script, &none()), (vec![crashed.clone()], false));
    script.pass(100);
    assert_eq!(told(&script, &none()), (vec![crashed], false));
    // Its folder says so, to a later server, too.
    let noted = failed(ended(made("web-1", -30), true), ActionKind::Clone, 1, 0);
    script.changed(noted.clone());
    assert_eq!(told(&script, &none()), (vec![], false));
    assert_eq!(told(&Script::new(vec![noted]), &none()), (vec![], false));
}

#[test]
fn one_that_was_done_or_ran_for_long_or_is_nobodys_clone_has_not_failed() {
    for (vm, proves) in [
        (ended(made("web-1", -30), false), true),
        (ended(made("web-1", -90), true), true),
        (ended(up("web-1", -30), true), false),
        (ended(made("db-1", -30), true), false),
    ] {
        let mut script = Script::new(vec![Registered {
            run_state: RunState::Running,
            ..vm.clone()
        }]);
        script.changed(vm);
        assert_eq!(told(&script, &failed_at(-100)), (vec![], proves));
    }
}

/// Or the pause would be the first one again after each clone that comes up, and crashes.
#[test]
fn only_a_later_one_that_has_lived_for_a_minute_ends_those_that_failed() {
    let mut script = Script::new(vec![made("web-1", -30)]);
    script.idle("web-1", 0);
    assert_eq!(told(&script, &failed_at(-31)), (vec![], false));
    script.pass(30);
    assert_eq!(told(&script, &failed_at(-31)), (vec![], true));
    assert_eq!(told(&script, &failed_at(-30)), (vec![], false), "earlier");
    assert_eq!(told(&script, &none()), (vec![], false), "nothing failed");
}
