//! The guest whose work is watched: a service that draws random numbers all the time and writes down
//! when.

use crate::image::{Guest, REMOTE_CGROUP, build_guest, remote};
use crate::parts::Parts;
use mvm_vmm::build::{Built, Service};
use serde_json::{Value, json};
use std::path::Path;

/// What it has drawn: a line a number, with the generation before it and both clocks behind it.
pub const DRAWN: &str = "/run/drawn";

/// Builds its image in a folder, which has to be there; `settings` are the agent's beyond the exemption
/// of the service by which tests look into the guest.
pub fn build_drawer(
    parts: &Parts,
    folder: &Path,
    settings: &Value,
    integrations: Vec<Value>,
) -> Built {
    let mut agent = json!({"freeze_exempt": [REMOTE_CGROUP]});
    for (name, value) in settings.as_object().into_iter().flatten() {
        agent[name] = value.clone();
    }
    let draw = Service {
        name: "draw".into(),
        command: format!("exec guest-probe draw {DRAWN}"),
    };
    let guest = Guest {
        agent,
        integrations,
        probes: vec![json!({
            "name": "reseed",
            "command": "guest-probe reseed",
            "interval_secs": 86_400,
        })],
        services: vec![draw, remote()],
        modules: vec!["brd".into()],
        dev: false,
        network_payload: false,
        files: Vec::new(),
    };
    build_guest(parts, folder, guest)
}
