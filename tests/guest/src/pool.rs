//! The guest of the fleet's stories: a web server on a port that its agent exposes, which is idle unless
//! it is told otherwise, and a checkpoint that fails when it is told to.

use crate::image::{Guest, REMOTE_CGROUP, build_guest, remote};
use crate::parts::Parts;
use mvm_vmm::build::{Built, Service};
use serde_json::json;
use std::path::Path;

/// Builds its image in a folder, which has to be there. With `dev` its agent is a dev build.
pub fn build_pool(parts: &Parts, folder: &Path, dev: bool) -> Built {
    let guest = Guest {
        // Not by its load: what a boot under emulation costs would make it busy for a minute.
        agent: json!({
            "busy_signals": ["inhibit", "session"],
            "sample_interval_secs": 1,
            "expose": [8080],
            "freeze_exempt": [REMOTE_CGROUP],
        }),
        integrations: vec![json!({
            "name": "web",
            "health_cmd": "true",
            "checkpoint_cmd": "[ -e /run/fail ] && echo the disk is on fire && exit 3; true",
        })],
        probes: Vec::new(),
        services: vec![
            Service {
                name: "web".into(),
                command: "exec httpd -f -p 127.0.0.1:8080 -h /www".into(),
            },
            remote(),
        ],
        modules: Vec::new(),
        dev,
        network_payload: false,
        files: vec![("It works\n", "/www/index.html")],
    };
    build_guest(parts, folder, guest)
}
