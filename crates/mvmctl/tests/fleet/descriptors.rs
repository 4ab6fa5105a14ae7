//! Where few descriptors are allowed.

use crate::server::Fleet;
use mvm_fake_fleet::Behaviour;
use std::process::Command;
use std::time::Duration;

#[test]
fn all_are_asked_a_few_at_a_time() {
    let mut fleet = Fleet::new();
    for number in 0..400 {
        fleet.agents.set(
            &format!("web-{number:03}"),
            Behaviour::Idle(Duration::from_secs(9)),
        );
    }
    let mvmctl = fleet.mvmctl("vm status");
    // The shell's own limit, hard and soft, is the program's.
    let mut limited = Command::new("sh");
    limited
        .args(["-c", "ulimit -n 256; exec \"$0\" \"$@\""])
        .arg(mvmctl.get_program())
        .args(mvmctl.get_args());
    for (name, value) in mvmctl.get_envs() {
        if let Some(value) = value {
            limited.env(name, value);
        }
    }
    let ran = limited.output().unwrap();
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{said}");
    assert!(
        said.contains("108 VMs are asked at once and not 256"),
        "{said}"
    );
    assert_eq!(
        String::from_utf8_lossy(&ran.stdout)
            .matches(" healthy ")
            .count(),
        400
    );
}
