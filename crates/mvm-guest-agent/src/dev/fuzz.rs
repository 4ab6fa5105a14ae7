//! The archive of a `put`, as its entries describe it, and that of a `get` of what came of it.
//!
//! Whatever the archive says, nothing outside of its folder is made or changed; what is refused leaves
//! nothing; and what is packed again and unpacked once more is the same.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a target fails by panicking"
)]

use super::files::fuzz::{pack, unpack};
use mvm_fuzz_targets::archive;

/// An archive's description.
pub fn agent_unpack() -> impl FnMut(&[u8]) {
    let above = tempfile::tempdir().unwrap();
    let path = |name: &str| above.path().join(name);
    let (target, again, outside) = (path("target"), path("again"), path("outside"));
    std::fs::write(&outside, "untouched").unwrap();
    let before = archive::tree(above.path());
    move |description| {
        let stream = archive::build(description, above.path());
        if unpack(&stream, &target) {
            let unpacked = archive::tree(&target);
            assert!(unpack(&pack(&target), &again));
            assert_eq!(archive::tree(&again), unpacked);
            std::fs::remove_dir_all(&target).unwrap();
            std::fs::remove_dir_all(&again).unwrap();
        }
        assert_eq!(archive::tree(above.path()), before);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn agent_unpack() {
        mvm_fuzz_targets::corpus::run("agent_unpack", super::agent_unpack());
    }
}
