//! Cloud Hypervisor's API, as far as it is used: what is sent, and what comes back.
//!
//! `vm.create` checks no more than JSON's syntax: a field too many is ignored, or shows at `vm.boot`.
//! Its answers are read strictly all the same: one that has more than is known here is of another
//! API, and should be looked at.

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// `PUT vm.create`
#[derive(Debug, Serialize)]
pub(super) struct VmConfig<'a> {
    pub(super) payload: Payload<'a>,
    pub(super) cpus: Cpus,
    pub(super) memory: Memory,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) disks: Vec<Disk<'a>>,
    pub(super) vsock: Vsock<'a>,
    pub(super) console: Console,
    pub(super) serial: Serial<'a>,
    pub(super) rng: Rng<'a>,
}

#[derive(Debug, Serialize)]
pub(super) struct Payload<'a> {
    pub(super) kernel: &'a Path,
    pub(super) cmdline: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) initramfs: Option<&'a Path>,
}

#[derive(Debug, Serialize)]
pub(super) struct Cpus {
    pub(super) boot_vcpus: u32,
    pub(super) max_vcpus: u32,
}

#[derive(Debug, Serialize)]
pub(super) struct Memory {
    /// In bytes.
    pub(super) size: u64,
    pub(super) shared: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct Disk<'a> {
    pub(super) path: &'a Path,
    pub(super) readonly: bool,
    /// Known from version 51 on, and to be given from 52 on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) image_type: Option<ImageType>,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub(super) enum ImageType {
    Raw,
}

#[derive(Debug, Serialize)]
pub(super) struct Vsock<'a> {
    pub(super) cid: u32,
    pub(super) socket: &'a str,
}

#[derive(Debug, Serialize)]
pub(super) struct Console {
    pub(super) mode: Mode,
}

#[derive(Debug, Serialize)]
pub(super) struct Serial<'a> {
    pub(super) mode: Mode,
    pub(super) file: &'a str,
}

#[derive(Debug, Serialize)]
pub(super) enum Mode {
    Off,
    File,
}

#[derive(Debug, Serialize)]
pub(super) struct Rng<'a> {
    pub(super) src: &'a str,
}

/// `PUT vm.snapshot`
#[derive(Debug, Serialize)]
pub(super) struct Snapshot {
    pub(super) destination_url: String,
}

/// `PUT vm.restore`
#[derive(Debug, Serialize)]
pub(super) struct Restore {
    pub(super) source_url: String,
    pub(super) resume: bool,
}

/// What `GET vmm.ping` answers.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Ping {
    pub(super) version: String,
    #[serde(default, rename = "build_version")]
    _build_version: IgnoredAny,
    #[serde(default, rename = "pid")]
    _pid: IgnoredAny,
    #[serde(default, rename = "features")]
    _features: IgnoredAny,
}

/// What `GET vm.info` answers.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Info {
    pub(super) state: State,
    #[serde(default, rename = "config")]
    _config: IgnoredAny,
    #[serde(default, rename = "memory_actual_size")]
    _memory_actual_size: IgnoredAny,
    #[serde(default, rename = "device_tree")]
    _device_tree: IgnoredAny,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) enum State {
    Created,
    Running,
    Shutdown,
    Paused,
    BreakPoint,
}
