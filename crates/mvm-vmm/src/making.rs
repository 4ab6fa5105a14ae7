//! VMs that are being made, under their lock: if that comes to nothing, nothing is left of one that there
//! was not before.

use crate::error::Error;
use mvm_registry::{Home, Lock, VmFolder, VmName};
use std::io::ErrorKind;

/// Makes something of a VM, and gives the lock under which that was done. If it fails, and nothing was
/// there before, its folder and its lock's file are gone again, unless `stays` wants what it has: clones
/// are made under ever new names.
pub(crate) fn under_lock<T>(
    home: &Home,
    name: &VmName,
    stays: impl FnOnce(&Error) -> bool,
    make: impl FnOnce(&VmFolder) -> Result<T, Error>,
) -> Result<(T, Lock), Error> {
    let lock = home.lock(name)?;
    let folder = home.vm(name);
    let is_new = is_absent(&folder);
    match make(&folder) {
        Ok(done) => Ok((done, lock)),
        Err(error) => {
            if is_new && !stays(&error) {
                // The error says more than one of this would.
                let _ = forget(&folder);
                if is_absent(&folder) {
                    home.remove_lock(name, lock);
                }
            }
            Err(error)
        }
    }
}

/// Whether there is nothing at all. What cannot be looked at is there.
fn is_absent(folder: &VmFolder) -> bool {
    let found = folder.path().symlink_metadata();
    found.is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

/// Removes what there is of a VM, unless something of it still runs.
fn forget(folder: &VmFolder) -> Result<(), Error> {
    match folder.last_record()? {
        Some(record) if !record.alive()?.is_empty() => Ok(()),
        _ => std::fs::remove_dir_all(folder.path()).map_err(Error::io("remove", folder.path())),
    }
}
