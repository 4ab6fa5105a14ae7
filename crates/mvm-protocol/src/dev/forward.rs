//! `forward`: a connection joined to a TCP port of the guest's loopback.
//!
//! Dev builds reach any port, prod builds those that the guest's configuration exposes. So what belongs
//! to it are types of its own, too: a prod build has them alone.

use crate::answer::ErrorAnswer;
use crate::object::{Object, Problem};
use crate::request::FromObject;
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

/// What a build that exposes ports serves of the [dev requests](super::DevRequest).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortRequest {
    /// Join this connection to a TCP port of the guest's loopback.
    Forward(Forward),
}

impl FromObject for PortRequest {
    fn from_object(kind: &str, object: Object) -> Option<Result<Self, Problem>> {
        (kind == "forward").then(|| object.into_shape().map(Self::Forward))
    }
}

/// What is answered to it: those of the [dev answers](super::DevAnswer) that belong to `forward`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum PortAnswer {
    /// The port is connected: data frames go both ways.
    ForwardStarted(ForwardStarted),
    /// The port has nothing more to send.
    ForwardEnd,
    /// Both sides have ended.
    ForwardDone(ForwardDone),
    /// The request was refused, or failed.
    Error(ErrorAnswer),
}

/// What a client may send for it, besides data frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortControl {
    /// The client has nothing more to send.
    ForwardEnd,
    /// What belongs to another of the [requests](super::Control) that have a connection to themselves.
    Foreign,
}

impl FromObject for PortControl {
    fn from_object(kind: &str, object: Object) -> Option<Result<Self, Problem>> {
        Some(match kind {
            "forward-end" => object.into_empty().map(|()| Self::ForwardEnd),
            "stdin-close" | "signal" | "resize" | "put-end" => Ok(Self::Foreign),
            _ => return None,
        })
    }
}
