//! systemd as the supervisor of a VM: the template unit for hosts, as it is shipped.

use crate::host::install;
use mvm_guest_tests::SystemdVm;
use std::time::{Duration, Instant};

/// What the VM is made of, and a watchdog that does not let a test wait for a minute.
const SET_UP: &str = r#"
mkdir -p /etc/inner/integrations.d /etc/systemd/system/mvm@.service.d
cat >/etc/inner/integrations.d/web.json <<END
{"name": "web", "health_cmd": "test -e /run/healthy", "health_interval_secs": 0.5}
END
cat >/etc/mvm/vms/web.conf <<END
MVM_RUN="--backend local --agent /usr/bin/mvm-guest-agent --etc /etc/inner --label pool=web"
MVM_ON_TERM=stop
MVM_NOTIFY=healthy
END
cat >/etc/systemd/system/mvm@.service.d/short.conf <<END
[Service]
WatchdogSec=6s
END
systemctl daemon-reload
systemctl start --no-block mvm@web
"#;

/// Its state, how often it was restarted, and what it said last.
const SHOW: &str = "systemctl show -p ActiveState -p NRestarts -p StatusText -p Result mvm@web";

/// The processes of the unit but for mvmctl: the VM.
const VMS: &str = "for pid in $(cat /sys/fs/cgroup/machine.slice/mvm@web.service/cgroup.procs); do \
     grep -q mvm-guest-agent /proc/$pid/comm && echo $pid; done; true";

/// How long a start may take: emulated, on a busy machine, by a mvmctl that is not optimized.
const PATIENCE: Duration = Duration::from_mins(2);

/// Waits until the unit is shown with all of that. To ask takes so long that nothing else has to be waited
/// for in between.
async fn until(vm: &SystemdVm, what: &str, words: &[&str]) {
    let began = Instant::now();
    loop {
        let shown = vm.sh(SHOW).await;
        if words.iter().all(|words| shown.contains(words)) {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "not {what}: {shown}");
    }
}

#[tokio::test]
async fn systemd_runs_a_vm_by_the_unit_that_is_shipped() {
    let Some(vm) = SystemdVm::restored() else {
        return;
    };
    install(&vm, &[("mvm@.service", "/etc/systemd/system/mvm@.service")]).await;
    vm.sh(SET_UP).await;

    // Up, and not ready: its check fails.
    let not_yet = ["ActiveState=activating", "StatusText=running, "];
    until(&vm, "the VM is there and not healthy", &not_yet).await;
    vm.sh("touch /run/healthy").await;
    let ready = [
        "ActiveState=active",
        "StatusText=running, healthy",
        "NRestarts=0",
    ];
    until(&vm, "the VM is healthy, and so the unit active", &ready).await;
    let first = vm.sh(VMS).await;
    assert_eq!(first.lines().count(), 1, "{first}");

    // The VM dies: it failed, and is started again.
    vm.sh(&format!("kill -9 {first}")).await;
    let again = [
        "ActiveState=active",
        "StatusText=running, healthy",
        "NRestarts=1",
    ];
    until(&vm, "another VM is healthy", &again).await;
    let second = vm.sh(VMS).await;
    assert_eq!(second.lines().count(), 1, "{second}");
    assert_ne!(second, first);

    // mvmctl is killed: no VM is left over, and there is one again.
    vm.sh("kill -9 $(systemctl show --value -p MainPID mvm@web)")
        .await;
    let again = [
        "ActiveState=active",
        "StatusText=running, healthy",
        "NRestarts=2",
    ];
    until(&vm, "a third VM is healthy", &again).await;
    let third = vm.sh(VMS).await;
    assert_eq!(third.lines().count(), 1, "{third}");

    // It is stopped in order; by then its watchdog would have bitten, were it not fed.
    vm.sh("sleep 8").await;
    let shown = vm.sh(SHOW).await;
    assert!(shown.contains("NRestarts=2"), "{shown}");
    vm.sh("systemctl stop mvm@web").await;
    let shown = vm.sh(SHOW).await;
    for words in ["ActiveState=inactive", "Result=success"] {
        assert!(shown.contains(words), "{shown}");
    }
    let agents = "grep -lzx -e --no-system-effects /proc/[0-9]*/cmdline; true";
    let left = vm.sh(agents).await;
    assert_eq!(left, "");
    let state = vm.sh("MVM_HOME=/var/lib/mvm mvmctl vm ls --json").await;
    assert!(state.contains(r#""state": "stopped""#), "{state}");
}
