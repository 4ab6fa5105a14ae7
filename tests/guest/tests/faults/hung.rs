//! A filesystem that does not answer (FUSE): who asks it for something is stuck in the kernel (state D),
//! where KILL does not reach.

use crate::{agent_pid, write_integrations};
use mvm_client::Session;
use mvm_guest_tests::{TestVm, eventually};
use mvm_protocol::lifecycle::{Outcome, SleepPrep, Wake};
use mvm_protocol::status::{Health, IntegrationStatus};
use serde_json::json;
use std::time::{Duration, Instant};

/// At once, on a busy machine that emulates a guest.
const AT_ONCE: Duration = Duration::from_secs(2);

/// How many processes are stuck.
async fn stuck(vm: &TestVm) -> usize {
    let script = "grep -h '^State:.D' /proc/[0-9]*/status 2>/dev/null | wc -l";
    vm.sh(script).await.trim().parse().unwrap()
}

/// The entry of an integration, which comes at once.
async fn entry(session: &mut Session, name: &str) -> Option<IntegrationStatus> {
    let asked = Instant::now();
    let status = session.status().await.unwrap();
    assert!(asked.elapsed() < AT_ONCE, "{:?}", asked.elapsed());
    status.integrations.into_iter().find(|it| it.name == name)
}

/// Its last check's words.
async fn said(session: &mut Session, name: &str, words: &str) -> Option<IntegrationStatus> {
    let entry = entry(session, name).await?;
    let last = entry.last_check.as_ref()?;
    last.output.contains(words).then_some(entry)
}

#[tokio::test]
async fn a_check_that_is_stuck_is_told_and_no_second_one_gets_stuck() {
    let Some(vm) = TestVm::new() else { return };
    let before = agent_pid(&vm).await;
    let server = vm
        .sh("guest-probe fuse /mnt >/dev/null 2>&1 & echo $!")
        .await;
    eventually("it is served", async || {
        let there = "[ -e /mnt/disk ] && echo yes || true";
        (vm.sh(there).await == "yes\n").then_some(())
    })
    .await;
    // One that is stuck itself, and one that has left something behind that is: it ends when that has asked,
    // since what has not asked yet is ended with it. Without a filesystem nobody can ask.
    let leaves = "stat /mnt/hung-left & \
        while [ -e /mnt/disk ] && ! [ -e /mnt/asked-hung-left ]; do :; done";
    let integrations = [("stuck", "exec stat /mnt/hung"), ("leaves", leaves)];
    let integrations = integrations.map(|(name, command)| {
        json!({
            "name": name,
            "health_cmd": command,
            "health_interval_secs": 0.5,
            "health_timeout_secs": 0.5,
        })
    });
    write_integrations(&vm, &integrations).await;
    let mut session = vm.session().await;
    let told = eventually("KILL did not end it", async || {
        said(&mut session, "stuck", "unkillable: stuck in the kernel").await
    })
    .await;
    assert_eq!(told.health, Health::Unhealthy);
    assert!(told.last_check.unwrap().timed_out);
    for name in ["stuck", "leaves"] {
        let words = "not started: what its last run has left is stuck in the kernel";
        let first = eventually("it is not run again", async || {
            said(&mut session, name, words).await
        })
        .await;
        assert_eq!(first.health, Health::Unhealthy, "{first:?}");
        eventually("nor the next time", async || {
            let next = said(&mut session, name, words).await?;
            (next.checks > first.checks + 1).then_some(())
        })
        .await;
    }
    assert_eq!(stuck(&vm).await, 2);
    // Others go on, and the guest sleeps and wakes.
    let web = vm.check("web").await;
    assert_eq!(web.last_check.unwrap().exit_code, Some(0));
    let ready = vm.session().await.sleep_prep(SleepPrep::default()).await;
    let wake = Wake {
        token: Some(ready.unwrap().token),
        ..Wake::default()
    };
    let awake = vm.session().await.wake(wake).await.unwrap();
    let failed = |it: &&mvm_protocol::lifecycle::Step| it.outcome == Outcome::Failed;
    assert_eq!(awake.steps.iter().find(failed), None);
    // Whoever serves it is gone: the kernel lets them go.
    vm.sh(&format!("kill -9 {server}")).await;
    let mut session = vm.session().await;
    for name in ["stuck", "leaves"] {
        eventually("it is run again", async || {
            let entry = entry(&mut session, name).await?;
            let last = entry.last_check.as_ref()?;
            let fails = i32::from(name == "stuck");
            (last.exit_code == Some(fails)).then_some(())
        })
        .await;
    }
    assert_eq!(stuck(&vm).await, 0);
    assert_eq!(agent_pid(&vm).await, before);
}
