//! The `config.json` of a snapshot, for a VM that is restored elsewhere.
//!
//! Cloud Hypervisor takes the paths of sockets and logs from the snapshot. Ours are right for every VM,
//! since they are relative to its folder or standard output; those of a snapshot that was taken by other means need
//! not be. The snapshot itself stays as it is, since its hashes are in its manifest and other VMs
//! are restored from it: what is loaded is a folder with an edited copy of the one file, and links
//! to the others.

use super::{CONSOLE, VSOCK_SOCKET};
use crate::error::Error;
use crate::snapshot::Snapshot;
use mvm_registry::read_bounded;
use serde_json::Value;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use tempfile::TempDir;

/// What Cloud Hypervisor calls it.
const CONFIG: &str = "config.json";

/// The largest that is read, in bytes. A real one has some thousand.
const MAX_CONFIG: u64 = 1 << 20;

/// A folder to restore from, in the VM's own folder. It is needed until the VM has been restored.
pub(super) fn elsewhere(snapshot: &Snapshot, folder: &Path) -> Result<TempDir, Error> {
    let source = tempfile::Builder::new()
        .prefix("restore-")
        .tempdir_in(folder)
        .map_err(Error::io("make a folder in", folder))?;
    for file in &snapshot.manifest.files {
        let from = snapshot.file(&file.file);
        let to = source.path().join(&file.file);
        if file.file == CONFIG {
            let content = read_bounded(&from, MAX_CONFIG).map_err(Error::io("read", &from))?;
            let edited = edit(&content).map_err(Error::io("use", &from))?;
            std::fs::write(&to, edited).map_err(Error::io("write", &to))?;
        } else {
            symlink(&from, &to).map_err(Error::io("make", &to))?;
        }
    }
    Ok(source)
}

/// All keys that are not known here stay.
fn edit(content: &[u8]) -> io::Result<Vec<u8>> {
    let mut config: Value = serde_json::from_slice(content)?;
    for (pointer, value) in [("/vsock/socket", VSOCK_SOCKET), ("/serial/file", CONSOLE)] {
        let place = config
            .pointer_mut(pointer)
            .ok_or_else(|| io::Error::other(format!("{pointer} is missing in it")))?;
        *place = value.into();
    }
    Ok(serde_json::to_vec(&config)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_sockets_are_moved_and_the_rest_stays() {
        let config = json!({
            "vsock": {"cid": 3, "socket": "/old/v.sock", "id": "_vsock5"},
            "serial": {"mode": "File", "file": "/old/console.log"},
            "cpus": {"boot_vcpus": 1},
        });
        let edited = edit(config.to_string().as_bytes()).unwrap();
        let edited: Value = serde_json::from_slice(&edited).unwrap();
        assert_eq!(
            edited,
            json!({
                "vsock": {"cid": 3, "socket": "v.sock", "id": "_vsock5"},
                "serial": {"mode": "File", "file": "/dev/stdout"},
                "cpus": {"boot_vcpus": 1},
            })
        );
    }

    #[test]
    fn one_without_a_vsock_device_is_told() {
        let error = edit(b"{\"vsock\": null}").unwrap_err().to_string();
        assert!(error.contains("/vsock/socket is missing"), "{error}");
        assert!(edit(b"{").is_err());
    }
}
