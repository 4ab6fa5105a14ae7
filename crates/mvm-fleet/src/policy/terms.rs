//! What a policy says of one pool.

use crate::state::Bounds;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// What a policy says of one pool. What is not said is not done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PoolPolicy {
    /// An idle one is paused after so long.
    pub idle_pause_after: Option<Duration>,
    /// An idle one is put to sleep after so long.
    pub idle_sleep_after: Option<Duration>,
    /// One that has been asleep for so long is removed.
    pub asleep_remove_after: Option<Duration>,
    /// One that has lived for so long is ended when it is idle, at twice that in any case.
    pub max_lifetime: Option<Duration>,
    /// How many there may be.
    pub bounds: Bounds,
    /// The snapshot from which new ones are made.
    pub golden: Option<PathBuf>,
    /// The file that is handed to each clone.
    pub payload: Option<PathBuf>,
    /// Where connections wake one.
    pub wake: Vec<WakeListener>,
}

/// Where a connection wakes a VM, and where in the guest it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WakeListener {
    /// The address of the host on which it comes.
    pub listen: SocketAddr,
    /// The port in the guest to which it is joined.
    pub port: Port,
}

/// A port in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// TCP on the guest's loopback, which its agent exposes.
    Tcp(u16),
    /// A vsock port.
    Vsock(u32),
}
