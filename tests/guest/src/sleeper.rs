//! The guest of the snapshots' stories: it writes down what its lifecycle commands do, and shows who
//! it is.

use crate::bare::AGENT_SOCKET;
use crate::image::{Guest, build_guest, remote};
use crate::parts::Parts;
use mvm_vmm::build::Built;
use serde_json::{Value, json};
use std::path::Path;

/// Its machine-id, until it is a clone.
pub const MACHINE_ID: &str = "0123456789abcdef0123456789abcdef";

/// A day: these run at the agent's start, after a wake and on demand.
const NEVER: u32 = 86_400;

/// `a`, `b`, `c`, loaded in this order. With a `/run/fail-b` the checkpoint of `b` fails.
fn integrations() -> Vec<Value> {
    ["a", "b", "c"]
        .iter()
        .map(|name| {
            let fail = format!("[ -e /run/fail-{name} ] && echo the disk is on fire && exit 3");
            json!({
                "name": name,
                "health_cmd": "true",
                "health_interval_secs": 1,
                "checkpoint_cmd": format!("echo checkpoint {name} >>/run/log; {fail}; true"),
                "restore_cmd": format!("echo restore {name} >>/run/log"),
            })
        })
        .collect()
}

fn probes() -> Vec<Value> {
    [
        // An empty log is no output, and no output is a value.
        ("log", "cat /run/log 2>/dev/null || true"),
        ("random", "guest-probe random 300"),
        ("clock", "guest-probe clock"),
        ("machine-id", "cat /etc/machine-id"),
        ("hostname", "hostname"),
        ("boot-id", "cat /proc/sys/kernel/random/boot_id"),
        ("generation", "cat /run/mvm/generation"),
        ("agent-descriptors", "ls /proc/$PPID/fd | wc -l"),
        ("processes", "ls -d /proc/[0-9]* | wc -l"),
        ("log-lines", "wc -l </run/log"),
    ]
    .iter()
    .map(|(name, command)| json!({"name": name, "command": command, "interval_secs": NEVER}))
    .collect()
}

/// Builds its image in a folder, which has to be there.
pub fn build_sleeper(parts: &Parts, folder: &Path) -> Built {
    let listen = ["vsock:52".to_owned(), format!("unix:{AGENT_SOCKET}")];
    let guest = Guest {
        agent: json!({"listen": listen}),
        integrations: integrations(),
        probes: probes(),
        services: vec![remote()],
        modules: Vec::new(),
        dev: false,
        network_payload: false,
        files: vec![("0123456789abcdef0123456789abcdef\n", "/etc/machine-id")],
    };
    build_guest(parts, folder, guest)
}
