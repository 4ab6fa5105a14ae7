//! Folders below another, which no link leads out of: not one of an archive's, and not one that another
//! process of the guest puts there meanwhile.

use super::report::shown;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::fs::{mkdirat, openat, openat2, statat};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Whether folders that are missing are made, with the usual mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    Make,
    Fail,
}

/// The folder of that path below the root. The path has neither `..` in it nor a beginning of its own.
pub(super) fn folder(root: &OwnedFd, path: &Path, missing: Missing) -> io::Result<OwnedFd> {
    if path.as_os_str().is_empty() {
        return root.try_clone();
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    if let Ok(folder) = openat2(root, path, FOLDER, Mode::empty(), resolve) {
        return Ok(folder);
    }
    // What is in the way is found name by name; and so it is gone where the kernel does not know the
    // call (before 5.6).
    let mut folder = root.try_clone()?;
    let mut above = PathBuf::new();
    for name in path {
        above.push(name);
        if missing == Missing::Make {
            make(&folder, name)?;
        }
        folder = open(&folder, name, &above)?;
    }
    Ok(folder)
}

/// Makes a folder, unless something of that name is there.
pub(super) fn make(folder: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match mkdirat(folder, name, Mode::RWXU | Mode::RWXG | Mode::RWXO) {
        Err(error) if error != Errno::EXIST => Err(error.into()),
        _ => Ok(()),
    }
}

/// A folder in another, and its whole path for what is said of it.
pub(super) fn open(folder: &OwnedFd, name: &OsStr, path: &Path) -> io::Result<OwnedFd> {
    let error = match openat(folder, name, FOLDER, Mode::empty()) {
        Ok(folder) => return Ok(folder),
        Err(error) => error,
    };
    let found = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW);
    let path = shown(path);
    match found.map(|found| FileType::from_raw_mode(found.st_mode)) {
        Ok(FileType::Symlink) => Err(io::Error::other(format!(
            "it would be written through the link {path}: refused"
        ))),
        Ok(FileType::Directory) | Err(_) => Err(error.into()),
        Ok(_) => Err(io::Error::other(format!("{path} is no folder"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn no_link_is_followed_and_what_is_missing_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(path("root/a")).unwrap();
        std::fs::create_dir(path("out")).unwrap();
        std::fs::write(path("root/file"), "").unwrap();
        symlink("../../out", path("root/a/up")).unwrap();
        symlink("a", path("root/b")).unwrap();
        symlink("/proc/self/cwd", path("root/magic")).unwrap();
        let root = rustix::fs::open(path("root"), FOLDER, Mode::empty()).unwrap();
        for (name, says) in [
            ("a/up", "through the link"),
            ("a/up/new", "through the link"),
            ("b", "through the link"),
            ("b/new", "through the link"),
            ("magic/new", "through the link"),
            ("file/new", "is no folder"),
        ] {
            for missing in [Missing::Make, Missing::Fail] {
                let error = folder(&root, Path::new(name), missing).unwrap_err();
                assert!(error.to_string().contains(says), "{name}: {error}");
            }
        }
        assert!(folder(&root, Path::new("a/new/er"), Missing::Fail).is_err());
        assert!(!path("root/a/new").exists());
        folder(&root, Path::new("a/new/er"), Missing::Make).unwrap();
        assert!(path("root/a/new/er").is_dir());
        assert_eq!(std::fs::read_dir(path("out")).unwrap().count(), 0);
    }
}
