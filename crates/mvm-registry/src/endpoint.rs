//! Where an agent is reached.

use mvm_protocol::PORT;
use std::fmt;
use std::path::{Path, PathBuf};

/// Where an agent is reached: an address and a port of the guest's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    address: Address,
    port: u32,
}

/// Where the stream to a guest begins.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// The path of a Unix socket.
    Unix(PathBuf),
    /// The CID of a guest on the host's `AF_VSOCK`.
    Vsock(u32),
}

/// The lowest CID that a guest can have: 0 is the hypervisor's, 1 loopback, 2 the host's.
const FIRST_GUEST_CID: u32 = 3;

impl Endpoint {
    /// A Unix stream socket that takes `CONNECT 52`: a VMM's hybrid vsock, or the agent's own. The
    /// path may be of any length; over 107 bytes it is opened through its folder.
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Self {
            address: Address::Unix(path.into()),
            port: PORT,
        }
    }

    /// The host's `AF_VSOCK`, for VMs on vhost-vsock; `None` if the CID cannot be a guest's.
    ///
    /// A test dials it from within a guest, where the guest plays the host: no test touches the vsock
    /// of the machine that it runs on, and vhost-vsock itself was not tried.
    pub fn vsock(cid: u32) -> Option<Self> {
        (FIRST_GUEST_CID..u32::MAX).contains(&cid).then_some(Self {
            address: Address::Vsock(cid),
            port: PORT,
        })
    }

    /// The same with another port of the guest's than 52.
    #[must_use]
    pub fn with_port(self, port: u32) -> Self {
        Self { port, ..self }
    }

    /// Reads `unix:PATH` or `vsock:CID`; `None` if it is neither, or the CID cannot be a guest's.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            return (!path.is_empty()).then(|| Self::unix(path));
        }
        Self::vsock(text.strip_prefix("vsock:")?.parse().ok()?)
    }

    /// The socket's path, if it is a Unix socket.
    pub fn path(&self) -> Option<&Path> {
        match &self.address {
            Address::Unix(path) => Some(path),
            Address::Vsock(_) => None,
        }
    }

    /// The address alone.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The port of the guest's.
    pub fn port(&self) -> u32 {
        self.port
    }
}

impl fmt::Display for Endpoint {
    /// The address as [`Endpoint::parse`] reads it; the port where it is not 52.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match &self.address {
            Address::Unix(path) => write!(f, "unix:{}", path.display())?,
            Address::Vsock(cid) => write!(f, "vsock:{cid}")?,
        }
        if self.port != PORT {
            write!(f, " port {}", self.port)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_as_they_are_shown() {
        for text in [
            "unix:/run/a.sock",
            "unix:relative",
            "vsock:3",
            "vsock:4294967294",
        ] {
            assert_eq!(Endpoint::parse(text).unwrap().to_string(), text);
        }
        for text in [
            "",
            "web",
            "unix:",
            "vsock:",
            "vsock:x",
            "vsock:2",
            "vsock:4294967295",
        ] {
            assert_eq!(Endpoint::parse(text), None, "{text}");
        }
    }
}
