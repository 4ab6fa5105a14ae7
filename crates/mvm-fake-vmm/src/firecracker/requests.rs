//! What Firecracker is asked: each field is known, and none may be missing.

use serde::Deserialize;
use std::path::PathBuf;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "what counts is that they are there")]
pub(super) struct MachineConfig {
    pub(super) vcpu_count: u8,
    pub(super) mem_size_mib: u32,
    pub(super) track_dirty_pages: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BootSource {
    pub(super) kernel_image_path: PathBuf,
    pub(super) boot_args: Option<String>,
    pub(super) initrd_path: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "what counts is that they are there")]
#[expect(clippy::struct_field_names, reason = "Firecracker's names")]
pub(super) struct Drive {
    pub(super) drive_id: String,
    pub(super) path_on_host: PathBuf,
    pub(super) is_root_device: bool,
    pub(super) is_read_only: bool,
    pub(super) cache_type: Option<CacheType>,
}

#[derive(Deserialize)]
pub(super) enum CacheType {
    Unsafe,
    Writeback,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "what counts is that they are there")]
pub(super) struct Vsock {
    pub(super) guest_cid: u32,
    pub(super) uds_path: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entropy {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Action {
    pub(super) action_type: ActionType,
}

#[derive(Deserialize)]
pub(super) enum ActionType {
    InstanceStart,
    SendCtrlAltDel,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Vm {
    pub(super) state: VmState,
}

#[derive(Deserialize)]
pub(super) enum VmState {
    Paused,
    Resumed,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "what counts is that they are there")]
pub(super) struct Create {
    pub(super) snapshot_type: SnapshotType,
    pub(super) snapshot_path: PathBuf,
    pub(super) mem_file_path: PathBuf,
}

#[derive(Debug, Deserialize)]
pub(super) enum SnapshotType {
    Full,
    Diff,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Load {
    pub(super) snapshot_path: PathBuf,
    pub(super) mem_backend: MemBackend,
    #[serde(default)]
    pub(super) resume_vm: bool,
    pub(super) vsock_override: Option<Override>,
    #[allow(dead_code, reason = "what counts is that it is known")]
    pub(super) clock_realtime: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "what counts is that they are there")]
pub(super) struct MemBackend {
    pub(super) backend_type: BackendType,
    pub(super) backend_path: PathBuf,
}

#[derive(Deserialize)]
pub(super) enum BackendType {
    File,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Override {
    pub(super) uds_path: String,
}
