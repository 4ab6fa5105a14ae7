//! Files of this machine that go into the guest.

use super::BuildError;
use super::tree::{Node, Tree};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// Settings and drop-ins. Nothing else may be in the folder: a misspelt name would be a check that
/// is never run.
pub(super) fn add_etc(tree: &mut Tree, etc: &Path) -> Result<(), BuildError> {
    for path in entries(etc)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        match name.as_ref() {
            "agent.json" | "integrations.d" | "probes.d" => {
                add_files(tree, &path, &format!("/etc/mvm/{name}"))?;
            }
            _ => {
                return Err(BuildError::BadFile {
                    path: path.clone(),
                    reason: "only agent.json, integrations.d and probes.d go into a guest".into(),
                });
            }
        }
    }
    Ok(())
}

/// A file, or a folder with all that is in it. Links are followed: they lead to files of this
/// machine.
pub(super) fn add_files(tree: &mut Tree, from: &Path, to: &str) -> Result<(), BuildError> {
    let metadata = std::fs::metadata(from).map_err(BuildError::io("read", from))?;
    if metadata.is_dir() {
        if !tree.has(to) {
            tree.add(to, Node::Folder { mode: 0o755 })?;
        }
        for path in entries(from)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            add_files(tree, &path, &format!("{}/{name}", to.trim_end_matches('/')))?;
        }
        return Ok(());
    }
    if !metadata.is_file() {
        return Err(BuildError::BadFile {
            path: from.to_owned(),
            reason: "it is neither a file nor a folder".into(),
        });
    }
    let executable = metadata.permissions().mode() & 0o111 != 0;
    let content = std::fs::read(from).map_err(BuildError::io("read", from))?;
    tree.add_file(to, if executable { 0o755 } else { 0o644 }, content)
}

pub(super) fn entries(folder: &Path) -> Result<Vec<PathBuf>, BuildError> {
    std::fs::read_dir(folder)
        .map_err(BuildError::io("read", folder))?
        .map(|entry| Ok(entry.map_err(BuildError::io("read", folder))?.path()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;

    #[test]
    fn a_misspelt_name_beside_the_drop_ins_is_told() {
        let etc = tempfile::tempdir().unwrap();
        std::fs::create_dir(etc.path().join("probe.d")).unwrap();
        let error = add_etc(&mut Tree::default(), etc.path()).unwrap_err();
        assert!(
            error.to_string().contains("probe.d: only agent.json"),
            "{error}"
        );
    }

    #[test]
    fn links_are_followed_and_executables_stay_so() {
        let from = tempfile::tempdir().unwrap();
        let target = from.path().join("target");
        std::fs::write(&target, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(&target, Permissions::from_mode(0o700)).unwrap();
        let www = from.path().join("www");
        std::fs::create_dir(&www).unwrap();
        std::os::unix::fs::symlink(&target, www.join("run")).unwrap();
        let mut tree = Tree::default();
        add_files(&mut tree, &www, "/srv/www").unwrap();
        let again = tree.add_file("/srv/www/run", 0o644, "");
        assert!(matches!(again, Err(BuildError::Collision(_))));
        let archive = tree.write(Vec::new()).unwrap();
        let text = String::from_utf8(archive).unwrap();
        assert!(
            text.contains("srv/www/run") && text.contains("000081ed"),
            "0o100755"
        );
    }
}
