//! Where a path leads: the names on the way that decide it.

use std::collections::VecDeque;
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
    let mut folder = PathBuf::from("/");
    let Ok(path) = std::path::absolute(path) else {
        return found;
    };
    let mut rest: VecDeque<OsString> = names(&path).collect();
    let mut links = 0;
    for _ in 0..MAX_NAMES {
        let Some(name) = rest.pop_front() else { break };
        if name == ".." {
            folder.pop();
            continue;
        }
        let here = folder.join(&name);
        match std::fs::read_link(&here) {
            Ok(target) => {
                found.push((folder.clone(), name));
                links += 1;
                if links > MAX_LINKS {
                    break;
                }
                if target.is_absolute() {
                    folder = PathBuf::from("/");
                }
                for name in names(&target).rev() {
                    rest.push_front(name);
                }
            }
            // Not a link (readlink(2)): a file or a folder.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                if rest.is_empty() {
                    found.push((folder, name));
                    break;
                }
                folder = here;
            }
            Err(_) => {
                found.push((folder, name));
                break;
            }
        }
    }
    found
}

fn names(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    })
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
            let names = names.map(|(folder, name)| folder.join(name));
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
