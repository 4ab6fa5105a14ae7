//! Sleep and wake where systemd starts the agent, stops it, and brings it back.

use mvm_guest_tests::{SystemdVm, eventually};
use mvm_protocol::lifecycle::{SleepPrep, Wake};
use mvm_protocol::status::Lifecycle;
use serde_json::Value;
use std::fs;

/// What the lifecycle commands have written since this was last asked.
async fn log(vm: &SystemdVm) -> String {
    let log = vm
        .sh("cat /run/life.log 2>/dev/null; rm -f /run/life.log")
        .await;
    log.lines().collect::<Vec<_>>().join(", ")
}

const KILL: &str = "kill -9 $(systemctl show --value -p MainPID mvm-guest-agent)";

/// Runs a script that ends the agent, and waits until the next one runs; nothing of the last one may
/// be left.
async fn ends(vm: &SystemdVm, script: &str) {
    let agent = pid(vm).await;
    vm.sh(script).await;
    back(vm, agent).await;
}

async fn pid(vm: &SystemdVm) -> u32 {
    vm.session().await.inspect().await.unwrap().agent.pid
}

async fn back(vm: &SystemdVm, before: u32) {
    vm.agent_after(before).await;
    eventually("the guest runs", async || {
        let status = vm.session().await.status().await.unwrap();
        (status.lifecycle == Lifecycle::Running).then_some(())
    })
    .await;
    let left = vm
        .sh("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -o 'sleep 98[7]65'; true")
        .await;
    assert_eq!(left, "", "a command was left behind");
}

/// In each state, as in `sleep.rs` under busybox's init.
#[tokio::test]
async fn an_agent_that_is_killed_pays_its_debts_when_systemd_has_brought_it_back() {
    let Some(vm) = SystemdVm::restored() else {
        return;
    };
    let all = "checkpoint c, checkpoint b, checkpoint a";
    assert_eq!(
        log(&vm).await,
        format!("{all}, restore a, restore b, restore c"),
        "around the snapshot"
    );
    ends(&vm, KILL).await;
    assert_eq!(log(&vm).await, "", "killed while running");

    vm.sh(": >/run/kill-checkpoint-b").await;
    let agent = pid(&vm).await;
    let cut_off = vm.session().await.sleep_prep(SleepPrep::default()).await;
    assert!(cut_off.is_err(), "it answered: {cut_off:?}");
    back(&vm, agent).await;
    assert_eq!(
        log(&vm).await,
        "checkpoint c, checkpoint b cut short, restore b, restore c",
        "killed while preparing"
    );

    let ready = vm.session().await.sleep_prep(SleepPrep::default()).await;
    ready.unwrap();
    ends(&vm, KILL).await;
    assert_eq!(
        log(&vm).await,
        format!("{all}, restore a, restore b, restore c"),
        "killed while ready"
    );

    vm.sh(": >/run/kill-restore-b").await;
    let ready = vm.session().await.sleep_prep(SleepPrep::default()).await;
    ready.unwrap();
    let agent = pid(&vm).await;
    let cut_off = vm.session().await.wake(Wake::default()).await;
    assert!(cut_off.is_err(), "it answered: {cut_off:?}");
    back(&vm, agent).await;
    assert_eq!(
        log(&vm).await,
        format!("{all}, restore a, restore b cut short, restore b, restore c"),
        "killed while waking"
    );
    assert_eq!(vm.sh("systemctl --failed --quiet").await, "");
}

#[tokio::test]
async fn an_agent_that_is_stopped_in_a_guest_that_sleeps_owes_until_it_is_started() {
    let Some(vm) = SystemdVm::restored() else {
        return;
    };
    log(&vm).await;
    let agent = pid(&vm).await;
    let ready = vm.session().await.sleep_prep(SleepPrep::default()).await;
    ready.unwrap();
    let frozen = "cat /sys/fs/cgroup/system.slice/cgroup.freeze \
         /sys/fs/cgroup/system.slice/systemd-journald.service/cgroup.freeze";
    assert_eq!(vm.sh(frozen).await, "1\n1\n");
    vm.sh("systemctl stop mvm-guest-agent").await;
    assert_eq!(vm.sh(frozen).await, "0\n0\n", "it thaws what it has frozen");
    assert_eq!(
        log(&vm).await,
        "checkpoint c, checkpoint b, checkpoint a",
        "nothing is restored while it is stopped"
    );
    let said = vm
        .sh("journalctl --sync; journalctl --unit mvm-guest-agent --output cat")
        .await;
    let owed = "restore commands of journald, c, b, a are owed until it is started";
    assert!(said.contains(owed), "{said}");
    vm.sh("systemctl start mvm-guest-agent").await;
    back(&vm, agent).await;
    assert_eq!(log(&vm).await, "restore a, restore b, restore c");
}

#[tokio::test]
async fn a_command_that_restarts_the_agent_ends_with_a_reason() {
    let Some(vm) = SystemdVm::restored() else {
        return;
    };
    let agent = pid(&vm).await;
    let restart = ["systemctl", "restart", "mvm-guest-agent"];
    let run = vm
        .mvmctl()
        .run(&[&["vm", "exec", vm.name(), "--"], &restart[..]].concat());
    assert_eq!(run.code, Some(125), "{run:?}");
    assert!(run.stderr.contains("the agent is stopping"), "{run:?}");
    back(&vm, agent).await;
}

#[tokio::test]
async fn an_agent_is_asked_to_end_and_to_read_its_drop_ins_anew() {
    let Some(vm) = SystemdVm::restored() else {
        return;
    };
    log(&vm).await;
    let term = "systemctl kill --kill-whom main --signal TERM mvm-guest-agent";
    ends(&vm, term).await;
    let drop_in = r#"{"name": "new", "health_cmd": "true"}"#;
    let agent = pid(&vm).await;
    vm.sh(&format!(
        "echo '{drop_in}' >/etc/mvm/integrations.d/new.json; systemctl reload mvm-guest-agent"
    ))
    .await;
    eventually("the new one is loaded", async || {
        let status = vm.session().await.status().await.unwrap();
        let loaded = status.integrations.iter().any(|it| it.name == "new");
        loaded.then_some(())
    })
    .await;
    assert_eq!(pid(&vm).await, agent);
    assert_eq!(log(&vm).await, "", "nothing was owed");
}

#[tokio::test]
async fn a_guest_that_powers_off_by_itself_has_ended() {
    let Some(vm) = SystemdVm::restored() else {
        return;
    };
    // What keeps its console may have ended a moment earlier.
    let qemu = vm.mvmctl().vmm_pid(vm.name());
    vm.sh("systemctl --no-block poweroff").await;
    eventually("QEMU has ended", async || {
        let stat = fs::read_to_string(format!("/proc/{qemu}/stat")).unwrap_or_default();
        let state = stat.rsplit_once(") ").map(|(_, rest)| rest);
        state
            .is_none_or(|state| state.starts_with('Z'))
            .then_some(())
    })
    .await;
    // What keeps its console may be a moment behind.
    eventually("its last words are in its console", async || {
        let console = vm.mvmctl().ok(&["vm", "logs", vm.name()]).stdout;
        console.contains("reboot: Power down").then_some(())
    })
    .await;
    let listed = vm.mvmctl().run(&["vm", "ls", "--json"]).stdout;
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let of_this = |one: &&Value| one["vm"] == vm.name();
    let one = listed.as_array().unwrap().iter().find(of_this).unwrap();
    assert_eq!(one["state"], "ended", "{one}");
    assert_eq!(one["ended"]["how"], "powered-off", "{one}");
    let waited = vm
        .mvmctl()
        .run(&["vm", "wait", vm.name(), "--for", "ready"]);
    assert_eq!(waited.code, Some(3), "{waited:?}");
    assert!(
        waited.stderr.contains("its guest powered off"),
        "{waited:?}"
    );
}
