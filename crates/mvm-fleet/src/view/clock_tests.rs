//! Time as the host and its guests tell it, and how long a guest is idle by that.

use super::*;
use crate::script::{Script, at, secs, status, up, worker};
use mvm_protocol::Timestamp;
use mvm_protocol::answer::{Change, Event};

#[test]
fn after_a_suspended_host_nothing_counts_that_was_heard_before() {
    let mut script = Script::running(&["web-1"]);
    script.idle("web-1", 1000);
    script.beat(15);
    assert_eq!(script.told(), "web-1 idle 1015");
    let old = script.tickets["web-1"];
    script.suspend(3600);
    // A frame that waited in the socket while the host slept.
    let event = Event {
        at: at(20),
        change: Change::Heartbeat { heartbeat: true },
    };
    let effects = script
        .view
        .agent(old, AgentEvent::Event(&event), &script.now);
    let [
        Effect::Unwatch { ticket },
        Effect::Watch { ticket: new, .. },
    ] = effects.as_slice()
    else {
        panic!("{effects:?}");
    };
    assert_eq!(*ticket, old);
    assert_eq!(script.told(), "web-1 unknown ?");
    script.tickets.insert("web-1".into(), *new);
    // The hour in which it stood still is not idle time.
    script.idle("web-1", 4600);
    assert_eq!(script.told(), "web-1 idle 0");
    script.beat(30);
    assert_eq!(script.told(), "web-1 idle 30");
}

#[test]
fn a_wall_clock_that_is_set_is_a_jump_as_well() {
    for step in [-3_600_000, 3_600_000] {
        let mut script = Script::running(&["web-1"]);
        script.idle("web-1", 1000);
        script.now.wall.0 += step;
        script.pass(1);
        assert_eq!(script.told(), "web-1 unknown ?");
    }
    // One that is slewed, and readings that are taken one after the other, are none.
    let mut script = Script::running(&["web-1"]);
    script.idle("web-1", 1000);
    for _ in 0..100 {
        script.now.wall.0 += 400;
        script.now.boottime += secs(4);
        script.beat(1);
        script.now.boottime -= secs(4);
        script.beat(1);
    }
    assert!(script.told().starts_with("web-1 idle"), "{}", script.told());
}

#[test]
fn idle_time_is_the_guests_own() {
    let mut script = Script::running(&["web-1"]);
    script.guests_ahead = -500_000;
    let since = Timestamp(script.guest_time().0 - 100_000);
    script.agent("web-1", AgentEvent::Status(&status(worker(false, since))));
    assert_eq!(
        script.told(),
        "web-1 idle 0",
        "a status does not say the guest's time"
    );
    script.heartbeat("web-1");
    assert_eq!(script.told(), "web-1 idle 100");
    // It stands still for a while that the host does not know of: nothing is added.
    script.pass(40);
    assert_eq!(script.told(), "web-1 idle 100");
    script.guests_ahead -= 40;
    script.heartbeat("web-1");
    assert_eq!(script.told(), "web-1 idle 100");
}

#[test]
fn a_guest_whose_clock_jumps_has_not_been_idle_for_that_long() {
    let mut script = Script::running(&["web-1"]);
    script.idle("web-1", 10);
    script.guests_ahead = 86_400;
    script.beat(15);
    assert_eq!(script.told(), "web-1 idle 27");
    // Set back it has been idle for less.
    script.guests_ahead = -86_400;
    script.beat(15);
    assert_eq!(script.told(), "web-1 idle 0");

    // At boot, before the first frame: no longer than it is up.
    let mut script = Script::new(vec![up("web-1", -2_000_000)]);
    script.idle("web-1", 1_000_000);
    assert_eq!(script.told(), "web-1 idle 3600");
}

#[test]
fn idle_time_begins_anew_with_each_run_each_touch_and_each_work() {
    let mut script = Script::new(vec![up("web-1", -20)]);
    script.idle("web-1", 1000);
    assert_eq!(script.told(), "web-1 idle 20", "it runs since then");
    script.beat(45);
    assert_eq!(script.told(), "web-1 idle 65");
    script.changed(Registered {
        touched_at: Some(at(40)),
        ..up("web-1", -20)
    });
    assert_eq!(script.told(), "web-1 idle 5");
    let busy = Change::Worker {
        worker: worker(true, at(45)),
    };
    script.event("web-1", busy);
    assert_eq!(script.told(), "web-1 busy");
    script.pass(15);
    let idle = Change::Worker {
        worker: worker(false, at(58)),
    };
    script.event("web-1", idle);
    assert_eq!(script.told(), "web-1 idle 2");
    // Nobody noted since when it runs: nothing counts.
    script.changed(Registered::new("web-1", RunState::Running));
    script.idle("web-1", 1000);
    assert_eq!(script.told(), "web-1 idle 0");
}
