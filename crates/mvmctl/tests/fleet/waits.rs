//! `mvmctl vm wait` for a guest that has work, or none.

use crate::server::Fleet;
use mvm_fake_fleet::Behaviour;

/// Its worker is idle by the signals that count, and a command is open in it.
#[test]
fn a_guest_that_is_held_is_not_idle_but_busy() {
    let fleet = Fleet::new().and("web-1", Behaviour::Held);
    let ran = |args: &str| {
        let output = fleet.mvmctl(args).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        (output.status.success(), stderr)
    };
    let (is_idle, stderr) = ran("vm wait web-1 --for idle --timeout 1s");
    assert!(!is_idle);
    assert!(stderr.contains("held: session"), "{stderr}");
    let (is_busy, stderr) = ran("vm wait web-1 --for busy --timeout 30s");
    assert!(is_busy, "{stderr}");
}
