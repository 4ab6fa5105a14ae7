//! Sleep and wake in a real guest: an agent that is killed, hosts that go away, checks that wait.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use mvm_client::{Error, Watcher};
use mvm_guest_tests::{SOON, TestVm, eventually};
use mvm_protocol::Request;
use mvm_protocol::answer::{Change, ErrorCode};
use mvm_protocol::drop_in::Secs;
use mvm_protocol::lifecycle::{Outcome, SleepPrep, Token, Wake};
use mvm_protocol::status::{IntegrationStatus, Lifecycle};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::timeout;

/// What each lifecycle command does: it writes down that it ran. With a `/run/kill-checkpoint-b` the
/// checkpoint of `b` kills the agent, its parent, and stays. A restore command's parent is its witness,
/// and that one's the agent.
const LIFE: &str = r#"#!/bin/sh
if rm "/run/kill-$1-$2" 2>/dev/null; then
    echo "$1 $2 cut short" >>/run/log
    agent=$PPID
    [ "$1" = restore ] && agent=$(cut -d ' ' -f 4 /proc/$PPID/stat)
    kill -9 $agent
    exec sleep 98765
fi
echo "$1 $2" >>/run/log
"#;

/// A guest with the integrations `a`, `b` and `c`, loaded in this order.
async fn guest() -> Option<TestVm> {
    let vm = TestVm::new()?;
    let mut script = format!("cat >/run/life <<'END'\n{LIFE}END\nchmod +x /run/life\n");
    for name in ["a", "b", "c"] {
        script += &write_integration(
            name,
            &json!({
                "name": name,
                "checkpoint_cmd": format!("exec /run/life checkpoint {name}"),
                "restore_cmd": format!("exec /run/life restore {name}"),
            }),
        );
    }
    vm.sh(&script).await;
    vm.session().await.reload().await.unwrap();
    Some(vm)
}

fn write_integration(name: &str, drop_in: &serde_json::Value) -> String {
    format!("cat >/etc/mvm/integrations.d/{name}.json <<'END'\n{drop_in}\nEND\n")
}

/// What the lifecycle commands have written since this was last asked.
async fn log(vm: &TestVm) -> String {
    let log = vm.sh("cat /run/log 2>/dev/null; rm -f /run/log").await;
    log.lines().collect::<Vec<_>>().join(", ")
}

fn token(name: &str) -> Token {
    Token::new(name).unwrap()
}

fn sleep_of(name: &str) -> SleepPrep {
    SleepPrep {
        token: Some(token(name)),
        ..SleepPrep::default()
    }
}

fn wake_of(name: &str) -> Wake {
    Wake {
        token: Some(token(name)),
        ..Wake::default()
    }
}

/// Waits until the guest is in that state. A watch would let go of one that is ready.
async fn reached(vm: &TestVm, state: Lifecycle) {
    eventually("the state is reached", async || {
        let status = vm.session().await.status().await.unwrap();
        (status.lifecycle == state).then_some(())
    })
    .await;
}

/// Waits for the event that says so.
async fn turned(mut watch: Watcher, state: Lifecycle) {
    let turned = async {
        loop {
            let event = watch.next().await.unwrap().expect("the watch goes on");
            if matches!(event.change, Change::Lifecycle { lifecycle } if lifecycle == state) {
                return;
            }
        }
    };
    timeout(SOON, turned).await.expect("an event");
}

/// Sends a request, and goes away once its effect is seen to begin: the answer is lost.
async fn lose_the_answer(vm: &TestVm, request: &Request, before: Lifecycle) {
    let mut session = vm.session().await;
    let asked = async {
        // It may come before the host is gone, and is lost all the same.
        let _ = session.request(request).await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = asked => {}
        () = eventually("its effect begins", async || {
            let status = vm.session().await.status().await.unwrap();
            (status.lifecycle != before).then_some(())
        }) => {}
    }
}

fn code(error: &Error) -> ErrorCode {
    match error {
        Error::Refused(answer) => answer.code.known().unwrap(),
        other => panic!("{other:?}"),
    }
}

/// In each state but `running`; twice in a row at the end, when there is nothing left to pay.
#[tokio::test]
async fn a_killed_agent_pays_its_debts_once_when_init_has_brought_it_back() {
    let Some(vm) = guest().await else { return };
    let mut started = 0;

    vm.sh(": >/run/kill-checkpoint-b").await;
    let cut_off = vm.session().await.sleep_prep(sleep_of("one")).await;
    assert!(cut_off.is_err(), "it answered: {cut_off:?}");
    back(&vm, &mut started).await;
    assert_eq!(
        log(&vm).await,
        "checkpoint c, checkpoint b cut short, restore b, restore c",
        "killed while preparing"
    );
    let awake = vm.session().await.wake(wake_of("one")).await.unwrap();
    assert!(!awake.was_ready, "{awake:?}");
    assert_eq!(log(&vm).await, "");

    let ready = vm.session().await.sleep_prep(sleep_of("two")).await;
    ready.unwrap();
    vm.sh("kill -9 $(pidof mvm-guest-agent)").await;
    back(&vm, &mut started).await;
    assert_eq!(
        log(&vm).await,
        "checkpoint c, checkpoint b, checkpoint a, restore a, restore b, restore c",
        "killed while ready"
    );
    let history = vm.session().await.inspect().await.unwrap().snapshot;
    assert!(history.last_sleep.is_some(), "{history:?}");

    vm.sh(": >/run/kill-restore-b").await;
    let ready = vm.session().await.sleep_prep(sleep_of("three")).await;
    ready.unwrap();
    let cut_off = vm.session().await.wake(wake_of("three")).await;
    assert!(cut_off.is_err(), "it answered: {cut_off:?}");
    back(&vm, &mut started).await;
    assert_eq!(
        log(&vm).await,
        "checkpoint c, checkpoint b, checkpoint a, restore a, restore b cut short, \
         restore b, restore c",
        "killed while waking"
    );

    vm.sh("kill -9 $(pidof mvm-guest-agent)").await;
    back(&vm, &mut started).await;
    assert_eq!(log(&vm).await, "", "there were no debts");
}

/// Waits until the next agent runs, and the guest with it; nothing of the last one may be left.
async fn back(vm: &TestVm, started: &mut usize) {
    *started += 1;
    vm.wait_for_agent(*started);
    reached(vm, Lifecycle::Running).await;
    let left = vm.sh("ps -o args | grep '^sleep 98765'; true").await;
    assert_eq!(left, "", "a command was left behind");
}

#[tokio::test]
async fn a_host_that_never_wakes_the_guest_loses_it_to_the_lease_and_is_told() {
    let Some(vm) = guest().await else { return };
    let (_, watch) = Watcher::start(vm.session().await, Duration::from_secs(2))
        .await
        .unwrap();
    let asked = SleepPrep {
        lease_secs: Secs::new(Duration::from_millis(1500)).unwrap(),
        ..sleep_of("gone")
    };
    let (ready, ()) = tokio::join!(
        async { vm.session().await.sleep_prep(asked).await },
        turned(watch, Lifecycle::Ready)
    );
    ready.unwrap();
    reached(&vm, Lifecycle::Running).await;
    let all = "checkpoint c, checkpoint b, checkpoint a, restore a, restore b, restore c";
    assert_eq!(log(&vm).await, all);
    let late = vm.session().await.wake(wake_of("gone")).await.unwrap();
    assert!(late.lease_expired && !late.was_ready, "{late:?}");
    assert_eq!(log(&vm).await, "", "nothing is restored twice");
    vm.session()
        .await
        .sleep_prep(sleep_of("next"))
        .await
        .unwrap();
    let next = vm.session().await.wake(wake_of("next")).await.unwrap();
    assert!(next.was_ready && !next.lease_expired, "{next:?}");
}

#[tokio::test]
async fn of_two_hosts_one_wins_and_a_lost_answer_is_given_again() {
    let Some(vm) = guest().await else { return };

    // Both at once, each on a connection of its own.
    let (mut first, mut second) = (vm.session().await, vm.session().await);
    let (one, two) = tokio::join!(
        first.sleep_prep(sleep_of("one")),
        second.sleep_prep(sleep_of("two"))
    );
    let (winner, loser, refused) = match (one, two) {
        (Ok(_), Err(refused)) => ("one", "two", refused),
        (Err(refused), Ok(_)) => ("two", "one", refused),
        other => panic!("{other:?}"),
    };
    assert_eq!(code(&refused), ErrorCode::Busy);
    let refused = vm.session().await.wake(wake_of(loser)).await.unwrap_err();
    assert_eq!(code(&refused), ErrorCode::WrongToken);
    assert_eq!(
        log(&vm).await,
        "checkpoint c, checkpoint b, checkpoint a",
        "the winner's alone"
    );
    vm.session().await.wake(wake_of(winner)).await.unwrap();
    assert_eq!(log(&vm).await, "restore a, restore b, restore c");

    let asked = Request::SleepPrep(sleep_of("lost"));
    lose_the_answer(&vm, &asked, Lifecycle::Running).await;
    let again = vm.session().await.sleep_prep(sleep_of("lost")).await;
    let once_more = vm.session().await.sleep_prep(sleep_of("lost")).await;
    assert_eq!(again.unwrap(), once_more.unwrap());
    assert_eq!(log(&vm).await, "checkpoint c, checkpoint b, checkpoint a");

    let asked = Request::Wake(Box::new(wake_of("lost")));
    lose_the_answer(&vm, &asked, Lifecycle::Ready).await;
    let again = vm.session().await.wake(wake_of("lost")).await.unwrap();
    let once_more = vm.session().await.wake(wake_of("lost")).await.unwrap();
    assert_eq!(again, once_more);
    assert_eq!((again.was_ready, again.generation), (true, 2));
    assert_eq!(log(&vm).await, "restore a, restore b, restore c");
}

/// It has what it needs set aside.
#[tokio::test]
async fn a_guest_whose_run_is_full_sleeps_and_wakes() {
    let Some(vm) = guest().await else { return };
    vm.sh("mount -o remount,size=256k /run").await;
    // The commands have their log elsewhere, where there is room.
    vm.sh("sed -i s,/run/log,/tmp/log, /run/life").await;
    let full = "dd if=/dev/zero of=/run/full bs=512 2>/dev/null; (echo more >/run/more) 2>&1; true";
    assert!(vm.sh(full).await.contains("No space left"));
    vm.session().await.sleep_prep(sleep_of("t")).await.unwrap();
    let awake = vm.session().await.wake(wake_of("t")).await.unwrap();
    let failed: Vec<_> = awake
        .steps
        .iter()
        .filter(|step| step.outcome == Outcome::Failed)
        .collect();
    assert!(failed.is_empty(), "{failed:?}");
    assert_eq!(vm.sh("cat /run/mvm/generation").await, "1\n");
    vm.sh("kill -9 $(pidof mvm-guest-agent)").await;
    back(&vm, &mut 0).await;
    assert_eq!(
        vm.sh("cat /tmp/log")
            .await
            .lines()
            .collect::<Vec<_>>()
            .join(", "),
        "checkpoint c, checkpoint b, checkpoint a, restore a, restore b, restore c",
        "each once"
    );
}

/// How many checks there are, and how often each runs.
const CHECKS: usize = 12;
const INTERVAL: f64 = 3.0;

#[tokio::test]
async fn asleep_no_check_runs_and_awake_there_is_no_burst() {
    let Some(vm) = TestVm::new() else { return };
    // Each writes down when it runs, by the guest's own clock, and fails, so that counters move.
    let mut script = String::new();
    for number in 0..CHECKS {
        let name = format!("check-{number:02}");
        let drop_in = json!({
            "name": name,
            "health_cmd": format!("read up idle </proc/uptime; echo {name} $up >>/run/ran; false"),
            "health_interval_secs": INTERVAL,
        });
        script += &write_integration(&name, &drop_in);
    }
    vm.sh(&script).await;
    vm.session().await.reload().await.unwrap();
    eventually("each has run", async || {
        (runs(&vm).await.len() == CHECKS).then_some(())
    })
    .await;

    vm.session().await.sleep_prep(sleep_of("t")).await.unwrap();
    let before = (runs(&vm).await, counters(&vm).await);
    let asleep = uptime(&vm).await;
    eventually("its interval is over", async || {
        (uptime(&vm).await > asleep + INTERVAL).then_some(())
    })
    .await;
    reached(&vm, Lifecycle::Ready).await;
    assert_eq!((runs(&vm).await, counters(&vm).await), before);

    let asked = uptime(&vm).await;
    vm.session().await.wake(wake_of("t")).await.unwrap();
    let answered = uptime(&vm).await;
    eventually("each has run again, and its interval is over", async || {
        let all = runs(&vm).await;
        let again = all.values().all(|times| times.iter().any(|at| *at > asked));
        (again && uptime(&vm).await > answered + INTERVAL).then_some(())
    })
    .await;
    let mut firsts = Vec::new();
    for (name, times) in runs(&vm).await {
        let since: Vec<f64> = times.into_iter().filter(|at| *at > asked).collect();
        let within = since.iter().filter(|at| **at < asked + INTERVAL).count();
        assert!(within <= 1, "{name} woke at {asked} and ran at {since:?}");
        firsts.push(since[0]);
    }
    firsts.sort_by(f64::total_cmp);
    // All of twelve random points in less than a third of the interval: once in 30,000 times.
    let spread = firsts[CHECKS - 1] - firsts[0];
    assert!(spread > 0.3 * INTERVAL, "a burst: {firsts:?}");
}

/// When each check has run.
async fn runs(vm: &TestVm) -> BTreeMap<String, Vec<f64>> {
    let mut runs: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for line in vm.sh("cat /run/ran 2>/dev/null; true").await.lines() {
        let (name, at) = line.split_once(' ').unwrap();
        runs.entry(name.to_owned())
            .or_default()
            .push(at.parse().unwrap());
    }
    runs
}

/// What is counted of each integration.
async fn counters(vm: &TestVm) -> Vec<(String, u64, u64, u64)> {
    let status = vm.session().await.status().await.unwrap();
    let counted = |it: &IntegrationStatus| {
        let name = it.name.clone();
        (name, it.consecutive_failures, it.checks, it.failures)
    };
    status.integrations.iter().map(counted).collect()
}

async fn uptime(vm: &TestVm) -> f64 {
    let text = vm.sh("read up idle </proc/uptime; echo $up").await;
    text.trim().parse().unwrap()
}
