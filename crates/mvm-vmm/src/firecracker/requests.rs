//! Firecracker's API, as far as it is used: what is sent, and what comes back.
//!
//! Firecracker refuses a request that has a field too many or too few. Its answers are read as
//! strictly: one that has more than is known here is of another API, and should be looked at.

use serde::{Deserialize, Serialize};
use std::path::Path;

/// `PUT /machine-config`
#[derive(Debug, Serialize)]
pub(super) struct MachineConfig {
    pub(super) vcpu_count: u32,
    pub(super) mem_size_mib: u32,
    pub(super) track_dirty_pages: bool,
}

/// `PUT /boot-source`
#[derive(Debug, Serialize)]
pub(super) struct BootSource<'a> {
    pub(super) kernel_image_path: &'a Path,
    pub(super) boot_args: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) initrd_path: Option<&'a Path>,
}

/// `PUT /drives/ID`
#[derive(Debug, Serialize)]
#[expect(clippy::struct_field_names, reason = "Firecracker's names")]
pub(super) struct Drive<'a> {
    pub(super) drive_id: &'a str,
    pub(super) path_on_host: &'a Path,
    pub(super) is_root_device: bool,
    pub(super) is_read_only: bool,
    pub(super) cache_type: CacheType,
}

/// Whether what the guest flushes reaches the disk. The default, `Unsafe`, does not.
#[derive(Debug, Serialize)]
pub(super) enum CacheType {
    Writeback,
}

/// `PUT /vsock`
#[derive(Debug, Serialize)]
pub(super) struct Vsock<'a> {
    pub(super) guest_cid: u32,
    pub(super) uds_path: &'a str,
}

/// `PUT /entropy`
#[derive(Debug, Serialize)]
pub(super) struct Entropy {}

/// `PUT /actions`
#[derive(Debug, Serialize)]
pub(super) struct Action {
    pub(super) action_type: ActionType,
}

#[derive(Debug, Serialize)]
pub(super) enum ActionType {
    InstanceStart,
    SendCtrlAltDel,
}

/// `PATCH /vm`
#[derive(Debug, Serialize)]
pub(super) struct Vm {
    pub(super) state: VmState,
}

#[derive(Debug, Serialize)]
pub(super) enum VmState {
    Paused,
    Resumed,
}

/// `PUT /snapshot/create`
#[derive(Debug, Serialize)]
pub(super) struct SnapshotCreate<'a> {
    pub(super) snapshot_type: SnapshotType,
    pub(super) snapshot_path: &'a Path,
    pub(super) mem_file_path: &'a Path,
}

#[derive(Debug, Serialize)]
pub(super) enum SnapshotType {
    /// All of the guest's memory.
    Full,
    /// What is resident of it, as its dirty pages are not tracked.
    Diff,
}

/// `PUT /snapshot/load`, of what all versions from 1.10 on know. Later ones can be given another
/// path for the vsock socket and have the guest's clock set (`vsock_override`, `clock_realtime`),
/// and neither is needed: see the module.
#[derive(Debug, Serialize)]
pub(super) struct SnapshotLoad<'a> {
    pub(super) snapshot_path: &'a Path,
    pub(super) mem_backend: MemBackend<'a>,
    pub(super) resume_vm: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct MemBackend<'a> {
    pub(super) backend_type: BackendType,
    pub(super) backend_path: &'a Path,
}

#[derive(Debug, Serialize)]
pub(super) enum BackendType {
    File,
}

/// What `GET /` answers.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Instance {
    pub(super) state: InstanceState,
    #[serde(rename = "id")]
    _id: String,
    #[serde(rename = "vmm_version")]
    _vmm_version: String,
    #[serde(rename = "app_name")]
    _app_name: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) enum InstanceState {
    #[serde(rename = "Not started")]
    NotStarted,
    Running,
    Paused,
}

/// What `GET /version` answers.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Version {
    pub(super) firecracker_version: String,
}
