//! systemd as the engine of one host: the fleet's unit, and units of VMs whose number follows what a pool
//! wants, by mvmctl's package, which is upgraded, removed and purged while they run.

use crate::host::install_package;
use mvm_guest_tests::{Parts, SystemdVm};
use std::path::Path;
use std::time::{Duration, Instant};

/// A pool that wants one at hand, VMs that are busy when a file says so, and a number of units that is
/// brought up to date when the test says so and not by a timer.
const SET_UP: &str = r#"
mkdir -p /etc/inner
echo '{"busy_signals": ["inhibit"], "sample_interval_secs": 1}' >/etc/inner/agent.json
for number in 1 2; do
    cat >/etc/mvm/vms/web-$number.conf <<END
MVM_RUN="--backend local --agent /usr/bin/mvm-guest-agent --etc /etc/inner --label pool=web"
MVM_ON_TERM=stop
END
done
printf '[[pool]]\nname = "web"\nspare = 1\n' >/etc/mvm/fleet.toml
echo MVM_MOST=2 >/etc/mvm/pools/web.conf
"#;

/// Starts what serves the fleet, and tells why if that fails.
const START: &str = "systemctl start mvm-fleet || journalctl -b -u mvm-fleet --output cat | tail -30; \
     systemctl is-active mvm-fleet";

const UNITS: &str = "systemctl is-active mvm@web-1 mvm@web-2 | tr '\\n' ' '";

/// Emulated, on a busy machine, by a mvmctl that is not optimized.
const PATIENCE: Duration = Duration::from_mins(2);

/// Runs a script again and again until it prints that. It takes so long that nothing else has to be
/// waited for in between.
async fn until(vm: &SystemdVm, script: &str, prints: &str) {
    let began = Instant::now();
    loop {
        let printed = vm.sh(script).await;
        if printed.trim() == prints {
            return;
        }
        if began.elapsed() > PATIENCE {
            let log = vm.sh("journalctl -b --output cat | tail -60").await;
            panic!("{script} prints {printed:?}, and not {prints:?}:\n{log}");
        }
    }
}

/// What the pool wants.
async fn wants(vm: &SystemdVm, count: u32) {
    let asked = "curl -fsS http://127.0.0.1:9152/v1/pools/web | jq .wanted; true";
    until(vm, asked, &count.to_string()).await;
}

/// Brings the number of units up to date until they are so.
async fn units(vm: &SystemdVm, states: &str) {
    let script = format!("systemctl start mvm-follow@web; {UNITS}");
    until(vm, &script, states).await;
}

#[tokio::test]
async fn the_number_of_units_follows_what_the_pool_wants() {
    let Some(vm) = SystemdVm::restored() else {
        return;
    };
    let Some(packages) = Parts::packages() else {
        return;
    };
    let said = install_package(&vm, &packages, 1).await;
    assert!(said.ends_with("\n0\n"), "{said}");
    vm.sh(SET_UP).await;

    // Nobody serves: no number, and so nothing is done.
    let without = "systemctl start mvm-follow@web 2>/dev/null || echo refused";
    assert_eq!(vm.sh(without).await.trim(), "refused");
    assert_eq!(vm.sh(UNITS).await.trim(), "inactive inactive");

    // `systemctl start` returns when the view is complete.
    assert_eq!(vm.sh(START).await.trim(), "active");
    let ready = "curl -fsS -o /dev/null -w '%{http_code}' http://127.0.0.1:9152/readyz";
    assert_eq!(vm.sh(ready).await.trim(), "200");
    wants(&vm, 1).await;
    units(&vm, "active inactive").await;

    // It works: one more is to be at hand. The timer does what a start by hand does.
    vm.sh("echo '{\"lease_secs\": 86400}' >/var/lib/mvm/vms/web-1/run/busy.d/work")
        .await;
    wants(&vm, 2).await;
    vm.sh("systemctl start mvm-follow@web.timer").await;
    until(&vm, UNITS, "active active").await;
    vm.sh("systemctl stop mvm-follow@web.timer").await;

    // A policy that cannot be is refused, and the one before goes on.
    vm.sh("echo '[[pool' >/etc/mvm/fleet.toml; systemctl reload mvm-fleet")
        .await;
    until(
        &vm,
        "journalctl -u mvm-fleet --output cat | grep -c 'in force before stays so'; true",
        "1",
    )
    .await;
    wants(&vm, 2).await;
    vm.sh("printf '[[pool]]\\nname = \"web\"\\nspare = 1\\n' >/etc/mvm/fleet.toml")
        .await;

    // Neither its end nor a kill touches a VM; without it no number is changed.
    let vms = "systemctl show --value -p MainPID mvm@web-1 mvm@web-2";
    let before = vm.sh(vms).await;
    vm.sh("kill -9 $(systemctl show --value -p MainPID mvm-fleet)")
        .await;
    until(&vm, "systemctl show --value -p NRestarts mvm-fleet", "1").await;
    until(&vm, "systemctl is-active mvm-fleet; true", "active").await;
    vm.sh("systemctl stop mvm-fleet").await;
    assert_eq!(vm.sh(without).await.trim(), "refused");
    assert_eq!(vm.sh(vms).await, before);
    assert_eq!(vm.sh(START).await.trim(), "active");
    wants(&vm, 2).await;

    // Work moves to the other one, and then there is none: who works is not stopped, whatever its number.
    vm.sh(
        "mv /var/lib/mvm/vms/web-1/run/busy.d/work /var/lib/mvm/vms/web-2/run/busy.d/; \
         printf '[[pool]]\\nname = \"web\"\\nspare = 1\\nmax = 1\\n' >/etc/mvm/fleet.toml; systemctl reload mvm-fleet",
    )
    .await;
    wants(&vm, 1).await;
    let web_2 = "mvmctl vm status web-2 --json | jq -r .worker.state";
    let web_2 = format!("export MVM_HOME=/var/lib/mvm; {web_2}; true");
    until(&vm, &web_2, "busy").await;
    for _ in 0..2 {
        vm.sh("systemctl start mvm-follow@web").await;
        assert_eq!(vm.sh(UNITS).await.trim(), "active active");
    }
    vm.sh("rm /var/lib/mvm/vms/web-2/run/busy.d/work").await;
    units(&vm, "active inactive").await;
    the_package_goes(&vm, &packages).await;
}

/// One VM runs by its unit, and one that no unit knows of.
async fn the_package_goes(vm: &SystemdVm, packages: &Path) {
    vm.sh(
        "MVM_HOME=/var/lib/mvm mvmctl vm start solo --backend local --agent /usr/bin/mvm-guest-agent \
         --etc /etc/inner",
    )
    .await;
    let vms = "systemctl show --value -p MainPID mvm@web-1; \
         for vm in web-1 solo; do \
             for it in $(jq .processes[].pid /var/lib/mvm/vms/$vm/vm.json); do \
                 readlink /proc/$it/cwd; echo $it; \
             done; \
         done";
    let fleet = "systemctl show --value -p MainPID mvm-fleet";
    let (vms_before, fleet_before) = (vm.sh(vms).await, vm.sh(fleet).await);
    assert!(vms_before.contains("/vms/solo"), "{vms_before}");

    // An upgrade has the server run what is installed, and touches no VM.
    let said = install_package(vm, packages, 2).await;
    assert!(said.ends_with("\n0\n"), "{said}");
    assert_eq!(vm.sh("systemctl is-active mvm-fleet").await, "active\n");
    assert_ne!(vm.sh(fleet).await, fleet_before);
    let exe = format!("readlink /proc/$({fleet})/exe");
    assert_eq!(vm.sh(&exe).await, "/usr/bin/mvmctl\n");
    assert_eq!(vm.sh(vms).await, vms_before);
    wants(vm, 1).await;

    // Without it no unit runs, what no unit has started runs on, and VMs stay.
    let said = vm.sh("dpkg -P mvmctl 2>&1; echo $?").await;
    assert!(said.contains("/var/lib/mvm is kept, with"), "{said}");
    assert!(said.ends_with("\n0\n"), "{said}");
    let active =
        "systemctl list-units --no-legend --plain 'mvm-f*' 'mvm@*'; systemctl --failed --quiet";
    assert_eq!(vm.sh(active).await, "");
    let left = "readlink /proc/[0-9]*/cwd | grep /var/lib/mvm/vms | sort -u";
    assert_eq!(vm.sh(left).await, "/var/lib/mvm/vms/solo\n");
    let there = "ls /var/lib/mvm/vms; ls /etc/mvm/vms /etc/mvm/pools; \
         systemctl list-unit-files --no-legend 'mvm-f*' 'mvm@*'; true";
    let own = "solo\nweb-1\nweb-2\n\
         /etc/mvm/pools:\nweb.conf\n\n/etc/mvm/vms:\nweb-1.conf\nweb-2.conf\n";
    assert_eq!(vm.sh(there).await, own);
}
