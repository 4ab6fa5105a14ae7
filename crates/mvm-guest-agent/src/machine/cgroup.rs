//! A cgroup for each run, so that everything it started can be ended at one stroke.
//!
//! `cgroup.kill` (Documentation/admin-guide/cgroup-v2.rst, Linux 5.14) takes children that left
//! their process group, their session and their parent, and leaves nobody time to fork away.

use super::cgroup_watch::{CgroupWatch, Watched};
use super::mounts;
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
    shared: Rc<Shared>,
}

/// What the cgroups of one root share.
#[derive(Debug, Default)]
struct Shared {
    /// Those in which somebody was still dying when they were last looked at.
    left: RefCell<Vec<PathBuf>>,
    /// One that a run has left as it was made, for the next run: the kernel takes longer to make and
    /// to remove one than for anything else that the agent asks for a command.
    spare: RefCell<Option<Rc<Place>>>,
    /// By which that is known; where it is not, each run has a new one.
    watch: Option<CgroupWatch>,
}

/// A cgroup's folder.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    watched: Option<Watched>,
}

/// One run's cgroup. It is removed with this, or as soon as nobody is in it any more, unless it is
/// kept for the next run.
#[derive(Debug)]
pub(crate) struct Cgroup {
    place: Rc<Place>,
    is_given_back: Cell<bool>,
    shared: Rc<Shared>,
}

impl CgroupRoot {
    /// Makes the root below the agent's own cgroup, and ends whatever an earlier agent with the
    /// same run directory left there. `None` where cgroup v2 is not there, may not be written, or
    /// cannot kill.
    pub(crate) fn open(run_dir: &Path) -> Option<Self> {
        let mounts = mounts::mountinfo().ok()?;
        let own = read_small("/proc/self/cgroup").ok()?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::"))?;
        let own = mount_point(&mounts)?.join(own.trim_start_matches('/'));
        let path = own.join(name(run_dir));
        match std::fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return None,
            _ => {}
        }
        let shared = Shared {
            watch: CgroupWatch::new().ok(),
            ..Shared::default()
        };
        let root = Self {
            path,
            shared: Rc::new(shared),
        };
        root.end_leftovers();
        root.path.join("cgroup.kill").exists().then_some(root)
    }

    fn end_leftovers(&self) {
        let _ = std::fs::write(self.path.join("cgroup.kill"), "1");
        *self.shared.left.borrow_mut() = below(&self.path).collect();
        self.shared.remove_left();
    }

    /// Its folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A cgroup for a run: a new one, or one that this agent has made and that is as new. Never one
    /// that is merely there: an earlier agent's may be frozen, and who joins it stands still before it
    /// has become a program.
    pub(crate) fn make(&self, run: u64) -> io::Result<Cgroup> {
        let shared = &self.shared;
        shared.remove_left();
        // Whoever has put something into it, or changed it, since then has it removed when it is empty.
        let spare = shared.spare.take().map(|place| self.cgroup(place));
        if let Some(spare) = spare
            && shared.is_unchanged(&spare.place)
        {
            return Ok(spare);
        }
        let mut path = self.path.join(format!("run-{run}"));
        let mut more = 0;
        while let Err(error) = std::fs::create_dir(&path) {
            if error.kind() != io::ErrorKind::AlreadyExists || more == MOST_TRIES {
                return Err(error);
            }
            more += 1;
            path.set_file_name(format!("run-{run}.{more}"));
        }
        let watch = shared.watch.as_ref();
        let watched = watch.and_then(|watch| watch.add(&path).ok());
        Ok(self.cgroup(Rc::new(Place { path, watched })))
    }

    fn cgroup(&self, place: Rc<Place>) -> Cgroup {
        Cgroup {
            place,
            is_given_back: Cell::new(false),
            shared: Rc::clone(&self.shared),
        }
    }
}

impl Shared {
    fn remove_left(&self) {
        self.left.borrow_mut().retain(|path| !remove(path));
    }

    fn is_unchanged(&self, place: &Place) -> bool {
        let watched = self.watch.as_ref().zip(place.watched.as_ref());
        watched.is_some_and(|(watch, one)| watch.is_unchanged(one))
    }

    /// Keeps it for the next run. False if there is one already, or if it is not as it was made.
    fn keep(&self, place: &Rc<Place>) -> bool {
        let mut spare = self.spare.borrow_mut();
        let kept = spare.is_none() && self.is_unchanged(place);
        if kept {
            *spare = Some(Rc::clone(place));
        }
        kept
    }

    fn remove(&self, place: &Place) -> bool {
        let removed = remove(&place.path);
        if removed {
            self.forget(place);
        }
        removed
    }

    fn forget(&self, place: &Place) {
        if let Some((watch, one)) = self.watch.as_ref().zip(place.watched.as_ref()) {
            watch.forget(one);
        }
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
        // By a path alone nothing of it can be changed, and it counts for no change.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::open(self.path(), flags, Mode::empty())?)
    }

    /// Its folder.
    pub(crate) fn path(&self) -> &Path {
        &self.place.path
    }

    /// Kills all that is in it.
    pub(crate) fn kill(&self) {
        let _ = std::fs::write(self.path().join("cgroup.kill"), "1");
    }

    /// Gives it back: it is removed, or kept for another run. False while a process is in it.
    pub(crate) fn give_back(&self) -> bool {
        let is_given_back = self.shared.keep(&self.place) || self.shared.remove(&self.place);
        self.is_given_back.set(is_given_back);
        is_given_back
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if !self.is_given_back.get() && !self.give_back() {
            self.shared.forget(&self.place);
            let path = self.place.path.clone();
            self.shared.left.borrow_mut().push(path);
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
        std::fs::write(left.path().join("cgroup.procs"), child.id().to_string()).unwrap();
        let path = left.path().to_owned();
        // As it is given up while that is still dying.
        drop(left);
        let new = root.make(1).unwrap();
        assert_ne!(new.path(), path);
        child.kill().unwrap();
        child.wait().unwrap();
        root.make(2).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn one_that_is_as_it_was_made_is_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let Some(root) = CgroupRoot::of_test(dir.path()) else {
            return;
        };
        let first = root.make(1).unwrap();
        let path = first.path().to_owned();
        let other = root.make(2).unwrap();
        for cgroup in [&first, &other] {
            assert!(cgroup.open().is_ok() && cgroup.give_back());
        }
        let gone = other.path().to_owned();
        drop((first, other));
        assert!(path.exists() && !gone.exists(), "one is kept");
        for run in 3..6 {
            let again = root.make(run).unwrap();
            let more = root.make(100 + run).unwrap();
            assert_eq!(again.path(), path);
            assert_ne!(more.path(), path, "it is taken");
            // The first that is given back is the one that is kept.
            drop((again, more));
        }
        let root_path = root.path().to_owned();
        drop(root);
        assert!(!root_path.exists());
    }

    /// Whatever somebody does to one, while it is a run's or when it waits for the next.
    #[test]
    fn one_that_was_changed_is_not_used_again() {
        type Change = fn(&Path);
        let changes: [(&str, Change); 6] = [
            ("a limit", |cgroup| {
                std::fs::write(cgroup.join("cgroup.max.descendants"), "7").unwrap();
            }),
            ("the limit that it has", |cgroup| {
                std::fs::write(cgroup.join("cgroup.max.depth"), "max").unwrap();
            }),
            ("frozen", |cgroup| {
                std::fs::write(cgroup.join("cgroup.freeze"), "1").unwrap();
            }),
            ("another mode", |cgroup| {
                let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
                std::fs::set_permissions(cgroup.join("cgroup.procs"), mode).unwrap();
            }),
            ("another owner", |cgroup| {
                std::os::unix::fs::chown(cgroup, Some(12), Some(12)).unwrap();
            }),
            ("one below it", |cgroup| {
                std::fs::create_dir(cgroup.join("below")).unwrap();
            }),
        ];
        let dir = tempfile::tempdir().unwrap();
        let Some(root) = CgroupRoot::of_test(dir.path()) else {
            return;
        };
        for (run, (what, change)) in (1..).zip(changes) {
            let taken = root.make(10 * run).unwrap();
            change(taken.path());
            let path = taken.path().to_owned();
            drop(taken);
            let next = root.make(10 * run + 1).unwrap();
            assert_ne!(next.path(), path, "{what}");
            assert!(!path.exists(), "{what}");

            let path = next.path().to_owned();
            drop(next);
            assert!(path.exists(), "{what}: it is kept");
            change(&path);
            assert_ne!(root.make(10 * run + 2).unwrap().path(), path, "{what}");
            assert!(!path.exists(), "{what}");
        }
    }

    #[test]
    fn one_that_somebody_is_put_into_is_removed_when_it_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let Some(root) = CgroupRoot::of_test(dir.path()) else {
            return;
        };
        let path = root.make(1).unwrap().path().to_owned();
        assert!(path.exists(), "it is kept");
        let mut child = std::process::Command::new("sleep").arg("600").spawn();
        let child = child.as_mut().unwrap();
        std::fs::write(path.join("cgroup.procs"), child.id().to_string()).unwrap();
        assert_ne!(root.make(2).unwrap().path(), path);
        child.kill().unwrap();
        child.wait().unwrap();
        root.make(3).unwrap();
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
