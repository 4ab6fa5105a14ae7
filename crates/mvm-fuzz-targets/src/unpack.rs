//! The archive of a folder that a guest sends, as its entries describe it, and the one that is sent of
//! what came of it.
//!
//! Whatever the archive says, nothing outside of its folder is made or changed; and what is packed
//! again and unpacked once more is the same.

use crate::archive::{build, tree};
use mvm_client::dev::archive;

/// An archive's description.
pub fn unpack() -> impl FnMut(&[u8]) {
    let above = tempfile::tempdir().unwrap();
    let path = |name: &str| above.path().join(name);
    let (target, again, outside) = (path("target"), path("again"), path("outside"));
    std::fs::write(&outside, "untouched").unwrap();
    let before = tree(above.path());
    move |description| {
        let stream = build(description, above.path());
        std::fs::create_dir(&target).unwrap();
        if archive::unpack(&*stream, &target).is_ok() {
            let mut packed = Vec::new();
            archive::pack(&target, &mut packed).unwrap();
            std::fs::create_dir(&again).unwrap();
            archive::unpack(&*packed, &again).unwrap();
            assert_eq!(tree(&again), tree(&target));
            std::fs::remove_dir_all(&again).unwrap();
        }
        std::fs::remove_dir_all(&target).unwrap();
        assert_eq!(tree(above.path()), before);
    }
}
