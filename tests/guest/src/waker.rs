//! The guest of the stories about what is still true after a wake: its service is stopped by its own
//! checkpoint, and its checkpoint computes for a while.

use crate::image::{Guest, build_guest, remote};
use crate::parts::Parts;
use mvm_vmm::build::Built;
use serde_json::json;
use std::path::Path;

/// A shell's words that compute for so many hundredths of a second.
pub fn compute(hundredths: u32) -> String {
    format!(
        "read now _ </proc/uptime; end=$(( ${{now%.*}}${{now#*.}} + {hundredths} )); \
         while read now _ </proc/uptime; [ ${{now%.*}}${{now#*.}} -lt $end ]; do :; done"
    )
}

/// Builds its image in a folder, which has to be there. The service `svc` runs while there is a
/// `/run/svc-up`.
pub fn build_waker(parts: &Parts, folder: &Path) -> Built {
    let guest = Guest {
        agent: json!({}),
        integrations: vec![
            json!({
                "name": "svc",
                "health_cmd": "[ -e /run/svc-up ]",
                "health_interval_secs": 60,
                "checkpoint_cmd": "rm -f /run/svc-up",
            }),
            json!({"name": "cache", "checkpoint_cmd": compute(1000)}),
        ],
        probes: vec![json!({"name": "up", "command": "cat /proc/uptime", "interval_secs": 60})],
        services: vec![remote()],
        modules: Vec::new(),
        dev: false,
        network_payload: false,
        files: Vec::new(),
    };
    build_guest(parts, folder, guest)
}
