//! `manifest.json`, as an image's and as a snapshot's, in a folder with a kernel and a state: it names
//! no file outside of its folder, and reads the same when it is written again.

use mvm_vmm::{Image, Snapshot};
use std::path::Path;

/// The manifest's text.
pub fn manifests() -> impl FnMut(&[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::create_dir(path("folder")).unwrap();
    for (file, content) in [
        ("outside", "x"),
        ("folder/kernel", "k"),
        ("folder/state", "s"),
    ] {
        std::fs::write(path(file), content).unwrap();
    }
    let inside = path("folder");
    let manifest = inside.join("manifest.json");
    move |content| {
        // It is removed when the target is.
        let _ = &folder;
        std::fs::write(&manifest, content).unwrap();
        if let Ok(image) = Image::open(&inside) {
            let files = [Some(image.kernel()), image.initrd(), image.rootfs()];
            for file in files.into_iter().flatten() {
                assert!(is_in(&file, &inside));
            }
            let written = serde_json::to_vec(&image.manifest).unwrap();
            std::fs::write(&manifest, written).unwrap();
            assert_eq!(Image::open(&inside).unwrap().manifest, image.manifest);
        }
        std::fs::write(&manifest, content).unwrap();
        if let Ok(snapshot) = Snapshot::open(&inside) {
            for file in &snapshot.manifest.files {
                assert!(is_in(&snapshot.file(&file.file), &inside));
            }
            let written = serde_json::to_vec(&snapshot.manifest).unwrap();
            std::fs::write(&manifest, written).unwrap();
            let again = Snapshot::open(&inside).unwrap();
            assert_eq!(again.manifest, snapshot.manifest);
        }
    }
}

/// Whether it is a file that lies in the folder itself.
fn is_in(file: &Path, folder: &Path) -> bool {
    let canonical = file.canonicalize().unwrap();
    canonical.parent() == Some(&*folder.canonicalize().unwrap())
}
