//! Clones that crash as soon as they are made.

use crate::server::{Fleet, Server};
use serde_json::{Value, json};
use std::fs;
use std::time::{Duration, SystemTime};

/// A clone of the fleet's that was made just now, and whose processes are gone.
fn crashed(fleet: &Fleet, name: &str) {
    let folder = fleet.path().join("vms").join(name);
    fs::create_dir_all(&folder).unwrap();
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let made = SystemTime::now() - Duration::from_secs(5);
    let made = made.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let made = mvm_protocol::Timestamp(i64::try_from(made.as_millis()).unwrap());
    let record = json!({
        "version": 1, "name": name, "backend": "qemu", "state": "running", "since": made,
        "started_at": made, "image": "/images/web", "cpus": 1, "memory_mib": 128, "port": 52,
        "accelerator": "tcg", "boot_id": boot_id.trim(), "processes": [],
    });
    fs::write(folder.join("fleet.json"), r#"{"made":true}"#).unwrap();
    fs::write(folder.join("vm.json"), record.to_string()).unwrap();
}

fn noted(fleet: &Fleet, file: &str) -> Value {
    serde_json::from_slice(&fs::read(fleet.path().join(file)).unwrap()).unwrap()
}

fn failed_clones(server: &Server) -> Value {
    let fleet = server.get("/v1/fleet").json();
    let actions = fleet["last_actions"].as_array().unwrap().iter();
    let clones = actions.filter(|it| it["action"] == "clone" && it["outcome"] == "failed");
    clones.map(|clone| clone["vm"].clone()).collect()
}

#[test]
fn a_clone_that_crashes_counts_as_one_that_failed_once_and_for_the_next_server_too() {
    let fleet = Fleet::new();
    crashed(&fleet, "web-1");
    let policy = fleet.write(
        "fleet.toml",
        "[[pool]]\nname = \"web\"\nmin = 1\nmax = 9\ngolden = \"/nowhere\"\n",
    );
    let serve = format!("--policy {policy}");
    let mut server = fleet.serve(&serve).ready();
    let line = server.says("clone web-1 (it was made, and did not last): failed: it crashed ");
    assert!(
        line.contains("after it was made: its process is gone"),
        "{line}"
    );
    assert_eq!(failed_clones(&server), json!(["web-1"]));
    let metrics = server.get("/metrics").body;
    let counted = r#"mvm_fleet_actions_total{pool="web",action="clone",outcome="failed"} 1"#;
    assert!(metrics.contains(counted), "{metrics}");
    assert_eq!(noted(&fleet, "failed-clones.json")["web"]["times"], 1);
    // Killed, so that it can note nothing more.
    drop(server);
    assert_eq!(
        noted(&fleet, "vms/web-1/fleet.json")["failed"]["action"],
        "clone"
    );
    let mut server = fleet.serve(&serve).ready();
    let held = server.get("/v1/plan").json()["held"].to_string();
    assert!(held.contains("the next try is in"), "{held}");
    // And then it is the second one, whose pause is longer.
    server.says("clone web-2 (0 up, min is 1): failed");
    assert_eq!(failed_clones(&server), json!(["web-2"]));
    assert_eq!(noted(&fleet, "failed-clones.json")["web"]["times"], 2);
}
