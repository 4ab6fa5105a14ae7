//! A cgroup for each run, so that everything it started can be ended at one stroke.
//!
//! `cgroup.kill` (Documentation/admin-guide/cgroup-v2.rst, Linux 5.14) takes children that left
//! their process group, their session and their parent, and leaves nobody time to fork away.

use super::proc::read_small;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use std::cell::{Cell, RefCell};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// By which clone3(2) has a process born in its cgroup. The C library's binding has it as a number that it
/// does not fit.
pub(super) const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// How many cgroups of one run's name may be there: one of each agent before this that was killed.
const MOST_TRIES: u32 = 100;

/// The cgroup under which each run gets its own.
#[derive(Debug)]
pub(crate) struct CgroupRoot {
    path: PathBuf,
    left: Left,
}

/// Those in which somebody was still dying when they were last looked at.
type Left = Rc<RefCell<Vec<PathBuf>>>;

/// One run's cgroup. It is removed with this, or as soon as nobody is in it any more.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
    is_gone: Cell<bool>,
    left: Left,
}

impl CgroupRoot {
    /// Makes the root below the agent's own cgroup, and ends whatever an earlier agent with the
    /// same run directory left there. `None` where cgroup v2 is not there, may not be written, or
    /// cannot kill.
    pub(crate) fn open(run_dir: &Path) -> Option<Self> {
        let mounts = read_small("/proc/self/mountinfo").ok()?;
        let own = read_small("/proc/self/cgroup").ok()?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::"))?;
        let own = mount_point(&mounts)?.join(own.trim_start_matches('/'));
        let path = own.join(name(run_dir));
        match std::fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return None,
            _ => {}
        }
        let root = Self {
            path,
            left: Left::default(),
        };
        root.end_leftovers();
        root.path.join("cgroup.kill").exists().then_some(root)
    }

    fn end_leftovers(&self) {
        let _ = std::fs::write(self.path.join("cgroup.kill"), "1");
        *self.left.borrow_mut() = below(&self.path).collect();
        self.remove_left();
    }

    fn remove_left(&self) {
        self.left.borrow_mut().retain(|path| !remove(path));
    }

    /// Its folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A new cgroup for a run, never one that is there: an earlier agent's may be frozen, and who
    /// joins it stands still before it has become a program.
    pub(crate) fn make(&self, run: u64) -> io::Result<Cgroup> {
        self.remove_left();
        let mut path = self.path.join(format!("run-{run}"));
        let mut more = 0;
        while let Err(error) = std::fs::create_dir(&path) {
            if error.kind() != io::ErrorKind::AlreadyExists || more == MOST_TRIES {
                return Err(error);
            }
            more += 1;
            path.set_file_name(format!("run-{run}.{more}"));
        }
        Ok(Cgroup {
            path,
            is_gone: Cell::new(false),
            left: Rc::clone(&self.left),
        })
    }
}

impl Drop for CgroupRoot {
    fn drop(&mut self) {
        self.end_leftovers();
        let _ = std::fs::remove_dir(&self.path);
    }
}

impl Cgroup {
    /// Its folder, open: a process can be made in it, or join it by its `cgroup.procs`.
    pub(crate) fn open(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::open(&self.path, flags, Mode::empty())?)
    }

    /// Its folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Kills all that is in it.
    pub(crate) fn kill(&self) {
        let _ = std::fs::write(self.path.join("cgroup.kill"), "1");
    }

    /// Removes it. False while a process is in it.
    pub(crate) fn remove(&self) -> bool {
        let removed = remove(&self.path);
        self.is_gone.set(removed);
        removed
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if !self.is_gone.get() && !self.remove() {
            self.left.borrow_mut().push(std::mem::take(&mut self.path));
        }
    }
}

/// With those below it, which what ran in it may have made: they cannot be removed otherwise. The
/// depth is what a path can hold.
pub(super) fn remove(path: &Path) -> bool {
    let is_gone = || {
        matches!(
            rustix::fs::rmdir(path),
            Ok(()) | Err(rustix::io::Errno::NOENT)
        )
    };
    if is_gone() {
        return true;
    }
    // Nothing below it: somebody is in it.
    let removed: Vec<bool> = below(path).map(|one| remove(&one)).collect();
    !removed.is_empty() && removed.iter().all(|removed| *removed) && is_gone()
}

/// The cgroups below one.
pub(super) fn below(path: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.map(|entry| entry.path())
}

/// Where the cgroup v2 hierarchy is mounted: proc_pid_mountinfo(5). Only a mount of its root will
/// do, since paths in `/proc/self/cgroup` count from there.
pub(super) fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (fields, source) = line.split_once(" - ")?;
        let mut fields = fields.split_whitespace().skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        (source.starts_with("cgroup2 ") && root == "/").then(|| PathBuf::from(point))
    })
}

/// One name for each run directory: two agents on one machine do not share one.
fn name(run_dir: &Path) -> String {
    let path = run_dir.to_string_lossy().replace('/', "-");
    let skip = path
        .char_indices()
        .map(|(at, _)| at)
        .find(|at| path.len() - at <= 200);
    format!(
        "mvm-guest-agent{}",
        path.get(skip.unwrap_or(0)..).unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    impl CgroupRoot {
        /// One of a test, which may be skipped where there can be none, but for CI.
        pub(crate) fn of_test(run_dir: &Path) -> Option<Self> {
            let root = Self::open(run_dir);
            if root.is_none() {
                let required = std::env::var_os("CI").is_some_and(|value| !value.is_empty());
                assert!(!required, "no cgroup v2 can be written");
                eprintln!("SKIPPED, NOTHING WAS TESTED: no cgroup v2 can be written");
            }
            root
        }
    }

    #[test]
    fn the_mount_is_found_in_pure_and_hybrid_layouts() {
        let pure = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_point(pure), Some(PathBuf::from("/sys/fs/cgroup")));
        let hybrid = "30 23 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      31 23 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        assert_eq!(
            mount_point(hybrid),
            Some(PathBuf::from("/sys/fs/cgroup/unified"))
        );
        let bound = "31 23 0:27 /docker/x /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_point(bound), None);
    }

    #[test]
    fn a_leftover_cgroup_is_not_reused_and_is_removed_when_empty() {
        let dir = tempfile::tempdir().unwrap();
        let Some(root) = CgroupRoot::of_test(dir.path()) else {
            return;
        };
        let left = root.make(1).unwrap();
        let mut child = std::process::Command::new("sleep").arg("600").spawn();
        let child = child.as_mut().unwrap();
        std::fs::write(left.path.join("cgroup.procs"), child.id().to_string()).unwrap();
        let path = left.path.clone();
        // As it is given up while that is still dying.
        drop(left);
        let new = root.make(1).unwrap();
        assert_ne!(new.path, path);
        child.kill().unwrap();
        child.wait().unwrap();
        root.make(2).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn those_below_go_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::create_dir_all(root.join("c")).unwrap();
        assert!(remove(&root) && remove(&root), "gone is removed");
        assert!(!root.exists());
    }

    #[test]
    fn names_fit_into_a_folder() {
        assert_eq!(name(Path::new("/run/mvm")), "mvm-guest-agent-run-mvm");
        assert!(name(Path::new(&"/ü".repeat(300))).len() < 255);
    }
}
