//! `forward`: a connection joined to a TCP port of the guest's loopback.

use serde::{Deserialize, Serialize};
use std::num::NonZeroU16;

/// Fields of `forward`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Forward {
    /// The port, on 127.0.0.1 or else on `::1`.
    pub port: NonZeroU16,
}

/// The port is connected. Data frames go both ways, channel 0 to it and channel 1 from it; either
/// side says `forward-end` when it has nothing more to send.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ForwardStarted {
    /// The address that took the connection.
    pub address: String,
}

/// Both sides have ended, or the port's side broke off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ForwardDone {
    /// How many bytes went to the port.
    pub sent: u64,
    /// How many came from it.
    pub received: u64,
}
