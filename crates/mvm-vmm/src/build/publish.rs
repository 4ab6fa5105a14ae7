//! The image folder, put in its place at once.

use super::BuildError;
use super::files::entries;
use crate::Error;
use crate::image::{MANIFEST, Manifest};
use mvm_registry::write_whole;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// Writes the folder beside its place and puts it there at once. An image that is there already is
/// replaced; a VM that was started from it has it in memory.
pub(super) fn publish(
    out: &Path,
    manifest: &Manifest,
    kernel: &[u8],
    initrd: &[u8],
) -> Result<(), BuildError> {
    let out = std::path::absolute(out).map_err(BuildError::io("resolve", out))?;
    let parent = out.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(parent).map_err(BuildError::io("make the folder", parent))?;
    let replaces = out.exists();
    if replaces && !out.join(MANIFEST).is_file() {
        return Err(BuildError::InTheWay(out));
    }
    let draft = tempfile::Builder::new()
        .prefix(".mvm-image-")
        .tempdir_in(parent)
        .map_err(BuildError::io("make a folder in", parent))?;
    let folder = draft.path();
    write_whole(&folder.join(&manifest.kernel), kernel).map_err(Error::from)?;
    if let Some(name) = &manifest.initrd {
        write_whole(&folder.join(name), initrd).map_err(Error::from)?;
    }
    let mut text = serde_json::to_vec_pretty(manifest)
        .map_err(|error| BuildError::io("write", folder)(error.into()))?;
    text.push(b'\n');
    write_whole(&folder.join(MANIFEST), &text).map_err(Error::from)?;
    for path in entries(folder)? {
        std::fs::set_permissions(&path, Permissions::from_mode(0o644))
            .map_err(BuildError::io("set the mode of", &path))?;
    }
    std::fs::set_permissions(folder, Permissions::from_mode(0o755))
        .map_err(BuildError::io("set the mode of", folder))?;
    let flags = if replaces {
        // What was there is now the draft, which is removed.
        RenameFlags::EXCHANGE
    } else {
        RenameFlags::NOREPLACE
    };
    renameat_with(CWD, folder, CWD, &out, flags)
        .map_err(|error| BuildError::io("put the image at", &out)(error.into()))?;
    if !replaces {
        // It has moved away: there is nothing left to remove.
        let _ = draft.keep();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{self, Agent, Image};

    fn manifest(cmdline: &str) -> Manifest {
        Manifest {
            version: image::VERSION,
            kernel: "vmlinuz".into(),
            initrd: Some("initrd".into()),
            rootfs: None,
            cmdline: cmdline.into(),
            agent: Agent {
                version: "0.1.0".into(),
                profile: "prod".into(),
                port: 52,
            },
        }
    }

    #[test]
    fn an_image_is_replaced_whole_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("a/guest");
        publish(&out, &manifest("one"), b"k", b"i").unwrap();
        publish(&out, &manifest("two"), b"k", b"i").unwrap();
        assert_eq!(Image::open(&out).unwrap().manifest.cmdline, "two");
        let left = entries(&folder.path().join("a")).unwrap();
        assert_eq!(left, std::slice::from_ref(&out), "no draft is left");
        let other = folder.path().join("precious");
        std::fs::create_dir(&other).unwrap();
        let refused = publish(&other, &manifest("x"), b"k", b"i");
        assert!(matches!(refused, Err(BuildError::InTheWay(_))));
        assert!(entries(folder.path()).unwrap().len() == 2);
    }
}
