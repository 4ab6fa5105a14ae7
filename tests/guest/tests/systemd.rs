//! The agent in a Debian with systemd, as its users install it.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use mvm_guest_tests::SystemdVm;

/// That `vm start` has succeeded at all, with the unit as it is shipped, is what all tests of this
/// file begin with.
#[tokio::test]
async fn a_guest_with_systemd_is_started() {
    let Some(vm) = SystemdVm::restored() else {
        return;
    };
    let console = vm.console_of_the_boot();
    assert!(
        console.contains("mvm-guest-agent: listening on vsock:52"),
        "{console}"
    );
    let unit = "systemctl show --value -p ActiveState -p Slice mvm-guest-agent";
    assert_eq!(vm.sh(unit).await, "mvm.slice\nactive\n");
    let namespaces = "pid=$(systemctl show --value -p MainPID mvm-guest-agent); \
         for one in mnt uts; do \
         [ $(readlink /proc/$pid/ns/$one) = $(readlink /proc/1/ns/$one) ] || echo $one; done";
    assert_eq!(vm.sh(namespaces).await, "", "namespaces of its own");
}
