//! Where a path leads: the names on the way that decide it.

use std::ffi::OsString;
use std::io;
use std::path::{Component, Path, PathBuf};

/// How many links on the way to a file are followed: the kernel's own limit (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// How many names of a path are looked at.
const MAX_NAMES: usize = 256;

/// The names that decide where a path leads, each with its folder: those that are links, and the
/// last. Where the path comes to an end before that, the name that is missing is the last.
pub(super) fn deciding_names(path: &Path) -> Vec<(PathBuf, OsString)> {
    let mut found = Vec::new();
    // Names that are still to be looked at, the next one last.
    let mut rest = Vec::new();
    let mut folder = PathBuf::from(".");
    go_on_with(path, &mut folder, &mut rest);
    for _ in 0..MAX_NAMES {
        let Some(name) = rest.pop() else { break };
        let here = folder.join(&name);
        let is_last = match std::fs::read_link(&here) {
            Ok(target) => {
                go_on_with(&target, &mut folder, &mut rest);
                false
            }
            // Not a link (readlink(2)): a file or a folder.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput && !rest.is_empty() => {
                folder = here;
                continue;
            }
            Err(_) => true,
        };
        // Of a link the folder may be the root by now.
        let of = here.parent().unwrap_or(&folder).to_owned();
        found.push((of, name));
        if is_last || found.len() > MAX_LINKS {
            break;
        }
    }
    found
}

/// Puts a path's names before those that are left. `..` is one like others: by now all before it
/// are folders.
fn go_on_with(path: &Path, folder: &mut PathBuf, rest: &mut Vec<OsString>) {
    if path.is_absolute() {
        *folder = PathBuf::from("/");
    }
    for part in path.components().rev() {
        if let Component::Normal(_) | Component::ParentDir = part {
            rest.push(part.as_os_str().to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_and_the_last_name_decide() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let at = |name: &str| dir.join(name);
        for folder in ["etc", "app/v1", "app/v2"] {
            std::fs::create_dir_all(at(folder)).unwrap();
        }
        std::fs::write(at("app/v1/a.json"), "{}").unwrap();
        symlink("v1", at("app/current")).unwrap();
        symlink("../app/current/a.json", at("etc/a.json")).unwrap();
        symlink(at("etc/a.json"), at("etc/b.json")).unwrap();
        symlink("loop.json", at("etc/loop.json")).unwrap();
        let decide = |name: &str| -> Vec<String> {
            let names = deciding_names(&at(name)).into_iter();
            // The folder is one that is there.
            let names = names.map(|(folder, name)| folder.canonicalize().unwrap().join(name));
            names
                .map(|path| path.strip_prefix(&dir).unwrap().display().to_string())
                .collect()
        };
        assert_eq!(decide("app/v1/a.json"), ["app/v1/a.json"]);
        let chain = ["etc/a.json", "app/current", "app/v1/a.json"];
        assert_eq!(decide("etc/a.json"), chain);
        assert_eq!(decide("etc/b.json"), [&["etc/b.json"], &chain[..]].concat());
        std::fs::remove_file(at("app/current")).unwrap();
        symlink("v2", at("app/current")).unwrap();
        assert_eq!(decide("etc/a.json").last().unwrap(), "app/v2/a.json");
        std::fs::remove_file(at("app/current")).unwrap();
        assert_eq!(decide("etc/a.json").last().unwrap(), "app/current");
        assert!(decide("etc/loop.json").len() <= MAX_LINKS + 1);
    }
}
