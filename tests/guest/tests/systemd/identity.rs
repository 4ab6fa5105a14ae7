//! Clones: who they are, as everybody in the guest sees it.

use super::{identity_step, is_ok, now, sleep_and_wake_as_a_clone};
use mvm_guest_tests::{SystemdVm, eventually};
use serde_json::Value;

/// A day in milliseconds.
const DAY: i64 = 86_400_000;

#[tokio::test]
async fn a_clone_is_another_machine_to_all_who_ask() {
    let Some(vm) = SystemdVm::cloned() else {
        return;
    };
    let steps = vm.restored_as()["steps"].as_array().unwrap();
    assert!(steps.iter().all(|it| it["outcome"] == "ok"), "{steps:?}");
    let before = vm.identity_before();
    let after = vm.identity().await;
    for (before, after) in before.iter().zip(&after) {
        assert_ne!(before, after);
    }

    // The journal goes on, and knows who wrote what.
    vm.sh("echo after the wake | systemd-cat -t story; journalctl --sync")
        .await;
    let [machine, boot, host] = before;
    let mut expected = vec![["before the snapshot".to_owned(), machine, boot, host]];
    let [machine, boot, host] = after.clone();
    expected.push(["after the wake".to_owned(), machine, boot, host]);
    assert_eq!(entries(&vm, "story").await, expected);
    let of_this_boot = "journalctl --boot --identifier story --output cat";
    assert_eq!(vm.sh(of_this_boot).await, "after the wake\n");
    let own = vm
        .sh("journalctl --boot --unit mvm-guest-agent --output cat")
        .await;
    assert!(own.contains("lifecycle: running"), "{own}");
    let journald = vm
        .sh("journalctl --identifier systemd-journald --output cat")
        .await;
    assert!(!journald.contains("corrupted"), "{journald}");

    // So do the other tools of systemd, and D-Bus.
    let [machine, boot, host] = after;
    let shown = vm.sh("hostnamectl").await;
    for line in [
        "Static hostname: story".to_owned(),
        format!("Transient hostname: {host}"),
        format!("Machine ID: {machine}"),
        format!("Boot ID: {boot}"),
    ] {
        assert!(shown.lines().any(|it| it.trim() == line), "{shown}");
    }
    assert_eq!(vm.sh("dbus-uuidgen --get").await.trim(), machine);
    assert_eq!(vm.sh("systemctl is-system-running").await, "running\n");
    assert_eq!(vm.sh("systemctl --failed --quiet").await, "");

    // What is documented to keep the old boot id until PID 1 has been started anew.
    let unit = "printf '[Service]\\nType=oneshot\\nExecStart=/bin/echo %%b\\n' \
         >/run/systemd/system/told.service; systemctl daemon-reload; systemctl start told; ";
    let told = "journalctl --unit told --output cat | grep -x '[0-9a-f]*' | tail -n 1";
    let told = vm
        .sh(&format!(
            "{unit}{told}; systemctl daemon-reexec; systemctl start told; {told}"
        ))
        .await;
    let [_, old, _] = vm.identity_before();
    assert_eq!(told, format!("{old}\n{boot}\n"));
}

/// The message, machine-id, boot id and host name of each of somebody's journal entries.
async fn entries(vm: &SystemdVm, who: &str) -> Vec<[String; 4]> {
    let text = vm
        .sh(&format!("journalctl --identifier {who} --output json"))
        .await;
    let entry = |line: &str| {
        let entry: Value = serde_json::from_str(line).unwrap();
        ["MESSAGE", "_MACHINE_ID", "_BOOT_ID", "_HOSTNAME"]
            .map(|field| entry[field].as_str().unwrap_or_default().to_owned())
    };
    text.lines().map(entry).collect()
}

/// A snapshot of a week ago, as far as the guest's clock goes.
#[tokio::test]
async fn timers_follow_the_clock_that_a_wake_sets() {
    let Some(vm) = SystemdVm::restored() else {
        return;
    };
    vm.sh("date --set '7 days ago'; \
         systemd-run --quiet --unit daily --on-calendar daily touch /run/daily")
        .await;
    let awake = sleep_and_wake_as_a_clone(&vm).await;
    assert!(awake.steps.iter().all(is_ok), "{awake:?}");
    // The days that have passed count as one.
    eventually("what was due has been done", async || {
        let there = vm.sh("[ -e /run/daily ] && echo yes || true").await;
        (there == "yes\n").then_some(())
    })
    .await;
    let timers = vm.sh("systemctl list-timers --all --output json").await;
    let timers: Vec<Value> = serde_json::from_str(&timers).unwrap();
    assert!(timers.iter().any(|it| it["unit"] == "daily.timer"));
    for timer in timers
        .iter()
        .filter(|it| it["unit"] != "systemd-tmpfiles-clean.timer")
    {
        let next = timer["next"].as_i64().unwrap() / 1000;
        assert!(next > now() - 1000, "{timer}");
        assert!(next < now() + 8 * DAY, "{timer}");
    }
}

/// With what the unit's comment warns of.
#[tokio::test]
async fn an_agent_that_is_sandboxed_does_not_claim_what_nobody_else_sees() {
    let Some(vm) = SystemdVm::restored() else {
        return;
    };
    let before = vm.identity().await;
    sandbox(&vm, "PrivateTmp=yes\\nProtectSystem=full").await;
    let awake = sleep_and_wake_as_a_clone(&vm).await;
    let step = identity_step(&awake);
    assert!(!is_ok(step), "{step:?}");
    let said = step.detail.as_deref().unwrap();
    assert!(said.contains("machine-id: the guest still reads the old one"));
    assert!(said.contains("boot id: the guest still reads the old one"));
    assert!(said.contains("mount namespace of its own"), "{said}");
    let after = vm.identity().await;
    assert_eq!(before[..2], after[..2]);
    // What it can do is done.
    assert_ne!(before[2], after[2]);

    // Here the file itself is written, and the other cannot be covered.
    sandbox(&vm, "PrivateTmp=yes\\nProtectHostname=yes").await;
    let before = after;
    let awake = sleep_and_wake_as_a_clone(&vm).await;
    let step = identity_step(&awake);
    assert!(!is_ok(step), "{step:?}");
    let said = step.detail.as_deref().unwrap();
    assert!(!said.contains("machine-id:"), "{said}");
    assert!(said.contains("boot id: the guest still reads the old one"));
    assert!(said.contains("UTS namespace of its own"), "{said}");
    let after = vm.identity().await;
    assert_ne!(before[0], after[0]);
    assert_eq!(before[1..], after[1..]);
}

async fn sandbox(vm: &SystemdVm, options: &str) {
    let agent = vm.session().await.inspect().await.unwrap().agent.pid;
    vm.sh(&format!(
        "mkdir -p /run/systemd/system/mvm-guest-agent.service.d; \
         printf '[Service]\\n{options}\\n' \
         >/run/systemd/system/mvm-guest-agent.service.d/sandbox.conf; \
         systemctl daemon-reload; systemctl restart mvm-guest-agent"
    ))
    .await;
    vm.agent_after(agent).await;
}

/// Covers of another time: of a guest whose `/run` outlived its mounts, or that somebody unmounted.
#[tokio::test]
async fn what_covers_nothing_any_more_does_not_take_a_clones_identity() {
    let Some(vm) = SystemdVm::cloned() else {
        return;
    };
    let before = vm.identity().await;
    vm.sh(
        "umount /proc/sys/kernel/random/boot_id; ls /run/mvm/boot-id; \
         echo stale >/run/mvm/machine-id",
    )
    .await;
    let awake = sleep_and_wake_as_a_clone(&vm).await;
    assert!(is_ok(identity_step(&awake)), "{awake:?}");
    let after = vm.identity().await;
    for (before, after) in before.iter().zip(&after) {
        assert_ne!(before, after);
    }

    // As systemd does it on a root that is read-only: what cannot be written is covered, once.
    vm.sh(
        "cp /etc/machine-id /run/machine-id; mount --bind /run/machine-id /etc/machine-id; \
         mount -o remount,bind,ro /etc/machine-id",
    )
    .await;
    for _ in 0..2 {
        let before = vm.identity().await;
        let awake = sleep_and_wake_as_a_clone(&vm).await;
        assert!(is_ok(identity_step(&awake)), "{awake:?}");
        assert_ne!(before[0], vm.identity().await[0]);
    }
    let covers = vm.sh("grep -c ' /etc/machine-id ' /proc/1/mountinfo").await;
    assert_eq!(covers, "2\n", "systemd's and ours");
}
