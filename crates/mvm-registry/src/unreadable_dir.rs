//! Folders in which there may be VMs, and that could not be looked at.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// A folder that could not be looked at.
#[derive(Debug)]
pub struct UnreadableDir {
    /// The folder.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
    /// Whether a pattern of the settings leads there. Otherwise it is `$MVM_HOME/vms`.
    pub is_discovered: bool,
}

impl fmt::Display for UnreadableDir {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let path = self.path.display();
        write!(f, "cannot look for VMs in {path}: {}", self.source)
    }
}

impl UnreadableDir {
    /// What to do next.
    pub fn hint(&self) -> &'static str {
        if self.is_discovered {
            "become a user who may read the folder, or take it out of `discover` in mvmctl.toml"
        } else {
            "set MVM_HOME to the folder in which the VMs are kept, or become a user who may read it"
        }
    }
}
