//! Where an agent is reached.

use std::fmt;
use std::path::{Path, PathBuf};

/// Where an agent is reached.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// A Unix stream socket that takes `CONNECT 52`: a VMM's hybrid vsock, or the agent's own. The
    /// path may be of any length; over 107 bytes it is opened through its folder.
    Unix(PathBuf),
    /// The host's `AF_VSOCK`, for VMs on vhost-vsock: the guest's CID, 3 or more.
    ///
    /// The tests do not cover dialling it: they never touch the host's own vsock.
    Vsock(u32),
}

/// The lowest CID that a guest can have: 0 is the hypervisor's, 1 loopback, 2 the host's.
const FIRST_GUEST_CID: u32 = 3;

impl Endpoint {
    /// Reads `unix:PATH` or `vsock:CID`; `None` if it is neither, or the CID cannot be a guest's.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            return (!path.is_empty()).then(|| Self::Unix(PathBuf::from(path)));
        }
        let cid: u32 = text.strip_prefix("vsock:")?.parse().ok()?;
        (FIRST_GUEST_CID..u32::MAX)
            .contains(&cid)
            .then_some(Self::Vsock(cid))
    }

    /// The socket's path, if there is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Unix(path) => Some(path),
            Self::Vsock(_) => None,
        }
    }
}

impl fmt::Display for Endpoint {
    /// As [`Endpoint::parse`] reads it.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Vsock(cid) => write!(f, "vsock:{cid}"),
        }
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
