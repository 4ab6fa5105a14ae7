//! The agent by its Debian package: installed before the guest boots, upgraded while it runs and while
//! it holds a sleeping guest, and purged.

use mvm_guest_tests::{SystemdVm, eventually};
use mvm_protocol::lifecycle::{SleepPrep, Wake};
use mvm_protocol::status::Lifecycle;

/// The commands around a snapshot that have run since it was asked last.
async fn life(vm: &SystemdVm) -> String {
    let log = vm.sh("cat /run/life.log 2>/dev/null; rm -f /run/life.log");
    log.await.lines().collect::<Vec<_>>().join(", ")
}

async fn pid(vm: &SystemdVm) -> u32 {
    vm.session().await.inspect().await.unwrap().agent.pid
}

/// Installs a later revision, and gives what dpkg said.
async fn install(vm: &SystemdVm, revision: u32) -> String {
    vm.sh(&format!("dpkg -i /debs/*-{revision}_*.deb 2>&1"))
        .await
}

/// Whether the agent's program is the one that is installed, and not one that is gone.
async fn runs_what_is_installed(vm: &SystemdVm) {
    let exe = "readlink /proc/$(systemctl show --value -p MainPID mvm-guest-agent)/exe";
    assert_eq!(vm.sh(exe).await, "/usr/bin/mvm-guest-agent\n");
}

#[tokio::test]
async fn an_agent_by_its_package_is_upgraded_at_any_time_and_purged() {
    let Some(vm) = SystemdVm::packaged() else {
        return;
    };
    let unit = "systemctl show --value -p Slice -p UnitFileState mvm-guest-agent";
    assert_eq!(vm.sh(unit).await, "mvm.slice\nenabled\n");

    // While the guest runs.
    let first = pid(&vm).await;
    install(&vm, 2).await;
    vm.agent_after(first).await;
    runs_what_is_installed(&vm).await;
    assert_eq!(life(&vm).await, "", "an upgrade is no sleep");

    // While it is asleep: its host takes it for that until it has woken it.
    let second = pid(&vm).await;
    let ready = vm.session().await.sleep_prep(SleepPrep::default()).await;
    ready.unwrap();
    // Nor is it removed now: nobody would run what is owed.
    let said = vm.sh("! dpkg -r mvm-guest-agent 2>&1").await;
    assert!(
        said.contains("remove the package when that is over"),
        "{said}"
    );
    let said = install(&vm, 3).await;
    assert!(said.contains("restarted when that is over"), "{said}");
    let status = vm.session().await.status().await.unwrap();
    assert_eq!(status.lifecycle, Lifecycle::Ready);
    assert_eq!(pid(&vm).await, second);
    let frozen = "cat /sys/fs/cgroup/system.slice/cgroup.freeze";
    assert_eq!(vm.sh(frozen).await, "1\n");
    vm.session().await.wake(Wake::default()).await.unwrap();
    vm.agent_after(second).await;
    eventually("the guest runs", async || {
        let status = vm.session().await.status().await.unwrap();
        (status.lifecycle == Lifecycle::Running).then_some(())
    })
    .await;
    runs_what_is_installed(&vm).await;
    let once = "checkpoint c, checkpoint b, checkpoint a, restore a, restore b, restore c";
    assert_eq!(life(&vm).await, once);
    assert_eq!(vm.sh("systemctl --failed --quiet").await, "");

    let machine = "cat /etc/machine-id /etc/hostname /proc/sys/kernel/random/boot_id";
    let before = vm.sh(machine).await;
    // What is the tests' own and not the package's.
    vm.sh(
        "rm /etc/mvm/agent.json /etc/mvm/*.d/[a-c].json /etc/mvm/probes.d/*.json; \
         dpkg -P mvm-guest-agent 2>&1",
    )
    .await;
    let left = "ls -d /usr/bin/mvm-guest-agent /usr/lib/mvm /etc/mvm /run/mvm 2>/dev/null; \
         systemctl list-unit-files --no-legend 'mvm*'; \
         find /etc/systemd /var/lib/systemd /usr/lib/systemd -name 'mvm*'; \
         pidof mvm-guest-agent; systemctl --failed --quiet";
    assert_eq!(vm.sh(left).await, "");
    assert_eq!(vm.sh(machine).await, before);
}
