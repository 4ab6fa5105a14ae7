//! The guest of the benchmarks: nothing runs in it but the agent, and it has a disk.

use crate::image::{Guest, REMOTE_CGROUP, build_guest, remote};
use crate::parts::Parts;
use mvm_vmm::build::Built;
use serde_json::json;
use std::path::Path;

/// Where programs in that guest reach its agent.
pub const AGENT_SOCKET: &str = "/run/agent.sock";

/// A filesystem on a disk, which in this guest is a piece of its memory.
pub const MOUNT_A_DISK: &str = "mke2fs /dev/ram0 >/dev/null 2>&1 && mount -t ext4 /dev/ram0 /mnt";

/// Builds its image in a folder, which has to be there, with an agent that freezes the guest's work, or
/// with one that does not know of that.
pub fn build_bare(parts: &Parts, folder: &Path, freezes: bool) -> Built {
    let listen = ["vsock:52".to_owned(), format!("unix:{AGENT_SOCKET}")];
    let mut agent = json!({"listen": listen});
    if freezes {
        agent["freeze_exempt"] = json!([REMOTE_CGROUP]);
    }
    let guest = Guest {
        agent,
        integrations: Vec::new(),
        probes: Vec::new(),
        services: vec![remote()],
        modules: vec!["brd".into()],
        dev: false,
        network_payload: false,
        files: Vec::new(),
    };
    build_guest(parts, folder, guest)
}
