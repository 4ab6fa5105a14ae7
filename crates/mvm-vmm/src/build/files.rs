//! Files of this machine that go into the guest.

use super::BuildError;
use super::tree::{Node, Tree};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// Settings and drop-ins. Nothing else may be in the folder: a misspelt name would be a check that
/// is never run.
pub(super) fn add_etc(tree: &mut Tree, etc: &Path) -> Result<(), BuildError> {
    for path in entries(etc)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        match name.as_ref() {
            "agent.json" | "integrations.d" | "probes.d" => {
                add_files(tree, &path, &format!("/etc/mvm/{name}"), |_| Ok(()))?;
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

/// What the guest's init mounts something over: nobody would see what is in the image there.
const MOUNTED_OVER: [&str; 5] = ["dev", "proc", "run", "sys", "tmp"];

/// What the agent reads. It is checked where it comes by `--etc`.
const CHECKED: [&str; 3] = [
    "etc/mvm/agent.json",
    "etc/mvm/integrations.d",
    "etc/mvm/probes.d",
];

/// Files that somebody has asked for, each with its place.
pub(super) fn add_wanted(tree: &mut Tree, from: &Path, to: &str) -> Result<(), BuildError> {
    add_files(tree, from, to, check_place)
}

/// Whether the guest would see a file there, and the agent not go by it unchecked.
fn check_place(place: &str) -> Result<(), BuildError> {
    let path = Path::new(place.trim_start_matches('/'));
    if let Some(folder) = MOUNTED_OVER.iter().find(|it| path.starts_with(it)) {
        return Err(BuildError::Hidden {
            path: place.into(),
            folder: format!("/{folder}"),
        });
    }
    if CHECKED.iter().any(|it| path.starts_with(it)) {
        return Err(BuildError::Unchecked(place.into()));
    }
    Ok(())
}

/// A file, or a folder with all that is in it. Links are followed: they lead to files of this
/// machine. Each file's place is checked before it is read.
fn add_files(
    tree: &mut Tree,
    from: &Path,
    to: &str,
    check: fn(&str) -> Result<(), BuildError>,
) -> Result<(), BuildError> {
    let metadata = std::fs::metadata(from).map_err(|error| match std::fs::read_link(from) {
        Ok(target) if error.kind() == ErrorKind::NotFound => BuildError::BadFile {
            path: from.to_owned(),
            reason: format!(
                "it is a link to {}, which is not on this machine, and links are followed",
                target.display()
            ),
        },
        _ => BuildError::io("read", from)(error),
    })?;
    // As little as its owner lets others do with it here. It is root's in the guest.
    let others = metadata.permissions().mode() & 0o077;
    let private = others == 0;
    let mode = |mode: u32| if private { mode & 0o700 } else { mode };
    if metadata.is_dir() {
        if !tree.has(to) {
            let mode = mode(0o755);
            tree.add(to, Node::Folder { mode })?;
        }
        for path in entries(from)? {
            let name = path.file_name().unwrap_or_default();
            let Some(name) = name.to_str() else {
                return Err(BuildError::BadFile {
                    path: path.clone(),
                    reason: "its name is no text in UTF-8".into(),
                });
            };
            let place = format!("{}/{name}", to.trim_end_matches('/'));
            add_files(tree, &path, &place, check)?;
        }
        return Ok(());
    }
    if !metadata.is_file() {
        return Err(BuildError::BadFile {
            path: from.to_owned(),
            reason: "it is neither a file nor a folder".into(),
        });
    }
    check(to)?;
    let executable = metadata.permissions().mode() & 0o111 != 0;
    let content = std::fs::read(from).map_err(BuildError::io("read", from))?;
    let mode = mode(if executable { 0o755 } else { 0o644 });
    tree.add_file(to, mode, content)
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
        add_wanted(&mut tree, &www, "/srv/www").unwrap();
        let again = tree.add_file("/srv/www/run", 0o644, "");
        assert!(matches!(again, Err(BuildError::Collision(_))));
        let archive = tree.write(Vec::new()).unwrap();
        let text = String::from_utf8(archive).unwrap();
        assert!(
            text.contains("srv/www/run") && text.contains("000081c0"),
            "0o100700: nobody else may run it here either"
        );
    }

    #[test]
    fn what_the_guest_would_not_see_or_not_check_is_refused() {
        let from = tempfile::tempdir().unwrap();
        let file = from.path().join("x");
        std::fs::write(&file, "").unwrap();
        let add = |from: &Path, to: &str| {
            let added = add_wanted(&mut Tree::default(), from, to);
            added.map_err(|error| error.to_string())
        };
        for to in ["/tmp/x", "/run/a/x", "/dev/shm/x", "/proc/x", "/sys/x"] {
            let error = add(&file, to).unwrap_err();
            assert!(
                error.starts_with(&format!("{to} would not be seen")),
                "{error}"
            );
        }
        for to in ["/etc/mvm/agent.json", "/etc/mvm/probes.d/x.json"] {
            let error = add(&file, to).unwrap_err();
            assert!(
                error.contains(to) && error.contains("not be checked"),
                "{error}"
            );
        }
        std::fs::create_dir(from.path().join("probes.d")).unwrap();
        std::fs::write(from.path().join("probes.d/y.json"), "").unwrap();
        let error = add(from.path(), "/etc/mvm").unwrap_err();
        assert!(error.starts_with("/etc/mvm/probes.d/y.json "), "{error}");
        for to in ["/tmpfiles/x", "/etc/mvm/other", "/var/tmp/x"] {
            add(&file, to).unwrap();
        }
    }

    #[test]
    fn a_name_that_is_no_text_and_a_link_to_nothing_are_told() {
        use std::os::unix::ffi::OsStrExt as _;
        let from = tempfile::tempdir().unwrap();
        let odd = from.path().join(std::ffi::OsStr::from_bytes(b"\xff"));
        std::fs::write(&odd, "").unwrap();
        let error = add_wanted(&mut Tree::default(), from.path(), "/srv").unwrap_err();
        assert!(error.to_string().contains("no text in UTF-8"), "{error}");
        std::fs::remove_file(odd).unwrap();
        std::os::unix::fs::symlink("/nonexistent/py", from.path().join("link")).unwrap();
        let error = add_wanted(&mut Tree::default(), from.path(), "/srv").unwrap_err();
        let told = "it is a link to /nonexistent/py, which is not on this machine";
        assert!(error.to_string().contains(told), "{error}");
    }
}
