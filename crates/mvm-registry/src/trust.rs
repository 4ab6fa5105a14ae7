//! Whose word is taken: root's, and that of the user who runs `mvmctl`.
//!
//! A `vm.json` says which program to run, which process to end and which folder to remove. It counts
//! only where nobody else can have written it, nor put it, or a folder on the way to it, in that place.

use crate::Error;
use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Others than the owner.
pub(crate) const ANYBODY_ELSE: u32 = 0o022;

/// Others than the owner and the group.
pub(crate) const THE_WORLD: u32 = 0o002;

const STICKY: u32 = 0o1000;

/// An error unless the file or folder is root's or this user's own, and none of those may write to it.
pub(crate) fn check(path: &Path, metadata: &Metadata, but_for: u32) -> Result<(), Error> {
    let owner = metadata.uid();
    let own = rustix::process::geteuid().as_raw();
    let problem = if owner != 0 && owner != own {
        format!("it belongs to user {owner}, and neither to root nor to you (user {own})")
    } else if metadata.mode() & but_for != 0 {
        let mode = metadata.mode() & 0o7777;
        format!("others than its owner may write to it (mode {mode:o})")
    } else {
        return Ok(());
    };
    Err(Error::NotTrusted {
        path: path.to_owned(),
        problem,
    })
}

/// The same of a folder, by its name. A link to it has to be root's or one's own as well. One that is
/// not there is nobody's.
pub(crate) fn check_folder(path: &Path, but_for: u32) -> Result<(), Error> {
    let look = |metadata: std::io::Result<Metadata>| match metadata {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(None)
        }
        metadata => metadata.map(Some).map_err(Error::io("look at", path)),
    };
    if let Some(link) = look(path.symlink_metadata())?.filter(Metadata::is_symlink) {
        // A link's own mode says nothing.
        check(path, &link, 0)?;
    }
    look(path.metadata())?.map_or(Ok(()), |folder| check(path, &folder, but_for))
}

/// The same of a folder in which others may make their own things, but not touch those of others, as
/// `/tmp`. What is in it is looked at by itself.
pub(crate) fn check_parent(path: &Path) -> Result<(), Error> {
    let is_sticky = path
        .metadata()
        .is_ok_and(|folder| folder.mode() & STICKY != 0);
    check_folder(path, if is_sticky { 0 } else { THE_WORLD })
}
