//! The agent as a service: its unit, its console, its commands.

use mvm_guest_tests::SystemdVm;
use mvm_protocol::request::{Check, CheckKind};
use serde_json::Value;

/// Of the variables by which systemd tells a service about itself, or the beginnings of their names.
const OF_THE_SERVICE: [&str; 7] = [
    "NOTIFY_SOCKET=",
    "JOURNAL_STREAM=",
    "INVOCATION_ID=",
    "SYSTEMD_EXEC_PID=",
    "RUNTIME_DIRECTORY=",
    "WATCHDOG_",
    "LISTEN_",
];

/// That `vm start` has succeeded at all, with the unit as it is shipped, is what all tests here begin
/// with.
#[tokio::test]
async fn a_guest_with_systemd_is_started() {
    let Some(vm) = SystemdVm::restored() else {
        return;
    };
    let console = vm.console_of_the_boot();
    let line = "mvm-guest-agent: listening on vsock:52";
    assert!(console.contains(line), "{console}");
    let unit = "systemctl show --value -p ActiveState -p Slice mvm-guest-agent";
    assert_eq!(vm.sh(unit).await, "mvm.slice\nactive\n");
    let namespaces = "pid=$(systemctl show --value -p MainPID mvm-guest-agent); \
         for one in mnt uts; do \
         [ $(readlink /proc/$pid/ns/$one) = $(readlink /proc/1/ns/$one) ] || echo $one; done";
    assert_eq!(vm.sh(namespaces).await, "", "namespaces of its own");

    // A console that tears a line gets it again. A pipe stands in for it here.
    vm.sh("mkfifo /run/console; cat /run/console >/run/console.log & \
         exec 3>/run/console; mount --bind /run/console /dev/console; \
         systemctl restart mvm-guest-agent; \
         until [ $(grep -c 'listening on vsock:52' /run/console.log) -gt 1 ]; do sleep 0.1; done; \
         exec 3>&-; umount /dev/console")
        .await;
}

#[tokio::test]
async fn no_command_is_taken_for_the_agent() {
    let Some(vm) = SystemdVm::restored() else {
        return;
    };
    let service = vm.sh("tr '\\0' '\\n' </proc/$(pidof mvm-guest-agent)/environ");
    let service = service.await;
    for variable in ["NOTIFY_SOCKET=", "JOURNAL_STREAM=", "RUNTIME_DIRECTORY="] {
        assert!(service.contains(variable), "{service}");
    }
    let of_a_check = probe(&vm, "env").await;
    let of_an_exec = vm
        .mvmctl()
        .ok(&["vm", "exec", vm.name(), "--", "env"])
        .stdout;
    let of_a_checkpoint = vm.sh("cat /run/life.env").await;
    for environment in [of_a_check, of_an_exec, of_a_checkpoint] {
        assert!(environment.contains("PATH="), "{environment}");
        for line in environment.lines() {
            let own = OF_THE_SERVICE.iter().any(|it| line.starts_with(it));
            assert!(!own, "{line}");
        }
    }
    // Nor does systemd hear from any.
    probe(&vm, "notify").await;
    let said = vm.sh("journalctl --sync; journalctl --output cat").await;
    let refused = said
        .lines()
        .find(|line| line.contains("reception only permitted"));
    assert_eq!(refused, None);
}

/// What a probe prints now.
async fn probe(vm: &SystemdVm, name: &str) -> String {
    let check = Check {
        kind: CheckKind::Probe,
        name: name.to_owned(),
    };
    let checked = vm.session().await.check(check).await.unwrap();
    match checked.probe.unwrap().value {
        Value::String(text) => text,
        other => panic!("{other}"),
    }
}
