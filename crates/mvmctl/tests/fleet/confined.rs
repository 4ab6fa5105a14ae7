//! What `fleet serve` may do itself. That it is confined shows by the privileges that it has given up for
//! it (proc_pid_status(5)); what it is confined to is tested where that is laid down.

use super::server::{Fleet, Server};

fn has_given_up_privileges(server: &Server) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.child.id())).unwrap();
    status.lines().any(|line| line == "NoNewPrivs:\t1")
}

#[test]
fn without_a_policy_it_only_reads() {
    let fleet = Fleet::new();
    let server = fleet.serve("").ready();
    assert!(has_given_up_privileges(&server));
}

/// Its VMs would be confined with it.
#[test]
fn with_a_policy_it_is_as_it_was_started() {
    let fleet = Fleet::new();
    let policy = fleet.write("fleet.toml", "");
    let server = fleet.serve(&format!("--policy {policy}")).ready();
    assert!(!has_given_up_privileges(&server));
}
