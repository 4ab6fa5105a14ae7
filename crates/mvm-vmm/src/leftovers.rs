//! What programs have left that were killed while they removed a VM.

use crate::error::Error;
use mvm_registry::Home;
use std::io::ErrorKind;
use std::path::Path;

/// Removes what programs have left that were killed while they removed a VM: nobody knows of it any more,
/// and a guest's memory may be in it. What another one is at just now is left to it.
pub(crate) fn sweep_removed(home: &Home) {
    for entry in entries(&home.removing()).unwrap_or_default() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.rsplit_once('.'));
        let runs = pid.is_some_and(|(_, pid)| Path::new("/proc").join(pid).exists());
        if !runs {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// What is in a folder; nothing if there is none.
pub(crate) fn entries(folder: &Path) -> Result<Vec<std::fs::DirEntry>, Error> {
    match std::fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        entries => Ok(entries
            .map_err(Error::io("look into", folder))?
            .flatten()
            .collect()),
    }
}
