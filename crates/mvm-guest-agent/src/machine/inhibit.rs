//! Files in `busy.d` by which a program in the guest says: do not take me for idle.
//!
//! A file holds its owner's process id (`echo $$ > /run/mvm/busy.d/job`), or
//! `{"pid": 42, "lease_secs": 600}` with either field. It counts while its owner is alive, or while
//! it is younger than its lease. A file that names neither has a lease of a minute, so that a
//! forgotten one cannot hold a guest busy, and be paid for, for ever. `touch` renews a lease.
//!
//! Anybody in the guest may write there, and nobody can hide another's word: each user's files are
//! counted apart, and a folder of any size is gone through to its end, in as many samples as that
//! takes.

use super::descriptors::is_shortage;
use super::proc::read_small;
use rustix::fs::{Mode, OFlags};
use serde_json::Value;
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{DirEntry, File, Metadata, ReadDir};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// The lease of a file that names neither owner nor lease.
const DEFAULT_LEASE: Duration = Duration::from_secs(60);

/// How many entries of the folder are looked at for one sample. The next one goes on from there.
const LOOKS: usize = 16 * 1024;

/// How many files of one user are known at once. Of many users each has an equal share of `ALL`,
/// but root and the agent's own user, who have theirs whatever others do.
const PER_OWNER: usize = 1024;
const ALL: usize = 8 * PER_OWNER;

/// How much of a file is read.
const MAX_BYTES: u64 = 4096;

/// One writing of one file, by its inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Writing {
    inode: u64,
    modified: (i64, i64),
    /// What is filled within a tick of the clock after it was made has the same time.
    length: u64,
    owner: u32,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Claim {
    /// While the process with this start time (in ticks since boot) lives, and until this moment on the
    /// monotonic clock, whether it does or not.
    Owner {
        pid: u32,
        started: u64,
        until: Duration,
    },
    /// Until this moment on the monotonic clock.
    Lease { until: Duration },
    /// Its owner was not alive when it was first seen.
    Void,
}

/// A writing that was read.
#[derive(Debug)]
struct Known {
    writing: Writing,
    /// By which it is found again.
    name: OsString,
    claim: Claim,
    /// The pass in which it was last seen.
    pass: u64,
}

/// What is known of the files in `busy.d`. Leases run on the monotonic clock from when a writing
/// was first seen, so that a jump of the wall clock neither ends nor prolongs them; nor is one that was not
/// there when it was last looked taken for older than that, as it is by the wall clock after a wake.
#[derive(Debug)]
pub(crate) struct Inhibitors {
    dir: PathBuf,
    /// By inode.
    known: HashMap<u64, Known>,
    /// How many of those each user has.
    owners: HashMap<u32, usize>,
    /// What is left of the pass under way.
    entries: Option<ReadDir>,
    pass: u64,
    /// When that pass began, and the last one that came to the end.
    begun: Duration,
    last_begun: Option<Duration>,
    /// How many entries are looked at for one sample.
    looks: usize,
}

impl Inhibitors {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            known: HashMap::new(),
            owners: HashMap::new(),
            entries: None,
            pass: 0,
            begun: Duration::ZERO,
            last_begun: None,
            looks: LOOKS,
        }
    }

    /// Whether any file holds the guest busy.
    pub(crate) fn any(&mut self, mono: Duration) -> bool {
        self.look(mono);
        self.known.values().any(|known| {
            let holds = match known.claim {
                // As long as nobody can look, it counts.
                Claim::Owner {
                    pid,
                    started,
                    until,
                } => mono < until || started_at(pid).map_or(true, |now| now == Some(started)),
                Claim::Lease { until } => mono < until,
                Claim::Void => false,
            };
            // The pass need not have come to it since it was removed.
            holds && {
                let meta = std::fs::symlink_metadata(self.dir.join(&known.name));
                meta.is_ok_and(|meta| Writing::of(&meta) == known.writing)
            }
        })
    }

    /// Goes through the folder, or through the next part of it.
    fn look(&mut self, mono: Duration) {
        let mut entries = self.entries.take();
        if entries.is_none() {
            entries = match std::fs::read_dir(&self.dir) {
                // That says nothing of what is there.
                Err(error) if is_shortage(&error) => return,
                opened => opened.ok(),
            };
            self.pass += 1;
            self.begun = mono;
        }
        for _ in 0..self.looks {
            match entries.as_mut().and_then(Iterator::next) {
                Some(Ok(entry)) => self.see(&entry, mono),
                Some(Err(_)) => {}
                None => return self.forget_what_is_gone(),
            }
        }
        self.entries = entries;
    }

    /// The pass is over: what it has not seen is not there any more.
    fn forget_what_is_gone(&mut self) {
        self.last_begun = Some(self.begun);
        let Self { known, pass, .. } = self;
        known.retain(|_, known| known.pass == *pass);
        self.owners.clear();
        for known in self.known.values() {
            *self.owners.entry(known.writing.owner).or_default() += 1;
        }
    }

    fn see(&mut self, entry: &DirEntry, mono: Duration) {
        let Some(meta) = entry.metadata().ok().filter(Metadata::is_file) else {
            return;
        };
        let writing = Writing::of(&meta);
        match self.known.get_mut(&writing.inode) {
            Some(known) if known.writing == writing => {
                known.pass = self.pass;
                known.name = entry.file_name();
                return;
            }
            // Written anew.
            Some(known) if known.writing.owner == writing.owner => {}
            _ => {
                let count = self.owners.entry(writing.owner).or_default();
                *count += 1;
                let count = *count;
                if count > self.share(writing.owner) {
                    return;
                }
            }
        }
        let Some(file) = open(&entry.path()) else {
            return;
        };
        // What cannot be known yet is looked at again in the next pass.
        let Some(claim) = read_claim(&file, mono, self.last_begun) else {
            return;
        };
        let known = Known {
            // Of the file that was read, should it be another one by now.
            writing: file.metadata().map_or(writing, |meta| Writing::of(&meta)),
            name: entry.file_name(),
            claim,
            pass: self.pass,
        };
        self.known.insert(known.writing.inode, known);
    }

    /// How many files of a user are known at once.
    fn share(&self, owner: u32) -> usize {
        if owner == 0 || owner == rustix::process::geteuid().as_raw() {
            PER_OWNER
        } else {
            PER_OWNER.min(ALL / self.owners.len().max(1)).max(1)
        }
    }
}

impl Writing {
    fn of(meta: &Metadata) -> Self {
        Self {
            inode: meta.ino(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            length: meta.len(),
            owner: meta.uid(),
        }
    }
}

/// Opens a regular file without following a link or waiting for a FIFO's other end.
fn open(path: &Path) -> Option<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty()).ok()?);
    file.metadata().ok()?.is_file().then_some(file)
}

/// Nothing if its owner cannot be looked at for want of descriptors. It was not there, or not so, at that
/// moment, if there is one.
fn read_claim(mut file: &File, mono: Duration, not_yet: Option<Duration>) -> Option<Claim> {
    let mut text = String::new();
    let readable = file
        .by_ref()
        .take(MAX_BYTES)
        .read_to_string(&mut text)
        .is_ok();
    let value: Value = readable
        .then(|| serde_json::from_str(&text).ok())
        .flatten()
        .unwrap_or_default();
    let pid = value.as_u64().or_else(|| value.get("pid")?.as_u64());
    let lease = value.get("lease_secs").and_then(Value::as_f64);
    let lease = lease.map(|secs| match Duration::try_from_secs_f64(secs) {
        Ok(lease) => lease,
        // Longer than can be counted.
        Err(_) if secs > 0.0 => Duration::MAX,
        Err(_) => Duration::ZERO,
    });
    let until = |lease: Duration| {
        let age = file.metadata().and_then(|meta| meta.modified()).ok();
        let age = age.and_then(|at| SystemTime::now().duration_since(at).ok());
        let passed = not_yet.map_or(Duration::MAX, |at| mono.saturating_sub(at));
        mono.saturating_add(lease.saturating_sub(age.unwrap_or_default().min(passed)))
    };
    let owner = match pid.map(|pid| u32::try_from(pid).unwrap_or_default()) {
        Some(pid) => started_at(pid).ok()?.map(|started| (pid, started)),
        None => None,
    };
    Some(match (owner, pid) {
        (Some((pid, started)), _) => Claim::Owner {
            pid,
            started,
            until: lease.map_or(Duration::ZERO, until),
        },
        (None, Some(_)) if lease.is_none() => Claim::Void,
        _ => Claim::Lease {
            until: until(lease.unwrap_or(DEFAULT_LEASE)),
        },
    })
}

/// When a process started, in ticks since boot: field 22 of proc_pid_stat(5). With the process id it
/// tells a process from a later one with the same number. `None` if it is not alive.
///
/// # Errors
///
/// For want of descriptors or memory nobody can look.
fn started_at(pid: u32) -> io::Result<Option<u64>> {
    match read_small(format!("/proc/{pid}/stat")) {
        Ok(stat) => Ok(start_of(&stat)),
        Err(error) if is_shortage(&error) => Err(error),
        Err(_) => Ok(None),
    }
}

fn start_of(stat: &str) -> Option<u64> {
    // The second field is the program's name in parentheses, which may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut words = rest.split_whitespace();
    let state = words.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    words.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    const MONO: Duration = Duration::from_secs(1000);

    fn busy(content: &str) -> (tempfile::TempDir, Inhibitors) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("job"), content).unwrap();
        let inhibitors = Inhibitors::new(dir.path().to_owned());
        (dir, inhibitors)
    }

    #[test]
    fn a_living_owner_holds_and_a_dead_one_does_not() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        for content in [
            format!("{}\n", child.id()),
            format!("{{\"pid\":{}}}", child.id()),
        ] {
            let (_dir, mut inhibitors) = busy(&content);
            assert!(inhibitors.any(MONO));
            assert!(inhibitors.any(MONO + Duration::from_secs(100_000)));
        }
        let (_dir, mut inhibitors) = busy(&child.id().to_string());
        assert!(inhibitors.any(MONO));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(!inhibitors.any(MONO));
        let (_dir, mut inhibitors) = busy(&child.id().to_string());
        assert!(!inhibitors.any(MONO));
    }

    #[test]
    fn a_lease_ends_on_the_monotonic_clock() {
        let (_dir, mut inhibitors) = busy("{\"lease_secs\":600}");
        assert!(inhibitors.any(MONO));
        assert!(inhibitors.any(MONO + Duration::from_secs(590)));
        assert!(!inhibitors.any(MONO + Duration::from_secs(600)));
    }

    #[test]
    fn an_owner_with_a_lease_holds_while_either_does() {
        let later = MONO + Duration::from_secs(590);
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let content = format!("{{\"pid\":{},\"lease_secs\":600}}", child.id());
        let (_dir, mut inhibitors) = busy(&content);
        assert!(inhibitors.any(MONO) && inhibitors.any(MONO + Duration::from_secs(700)));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(inhibitors.any(later) && !inhibitors.any(later + Duration::from_secs(20)));
        // The same if it was seen for the first time when its owner was gone.
        let (_dir, mut inhibitors) = busy(&content);
        assert!(inhibitors.any(MONO));
        assert!(inhibitors.any(later) && !inhibitors.any(later + Duration::from_secs(20)));
    }

    #[test]
    fn a_lease_longer_than_can_be_counted_has_no_end_and_one_below_0_is_over() {
        let (_dir, mut inhibitors) = busy("{\"lease_secs\":1e20}");
        assert!(inhibitors.any(MONO) && inhibitors.any(Duration::from_secs(1_000_000_000)));
        let (_dir, mut inhibitors) = busy("{\"lease_secs\":-1}");
        assert!(!inhibitors.any(MONO));
    }

    #[test]
    fn an_empty_or_unreadable_file_has_a_minute_and_touch_renews_it() {
        for content in ["", "whatever", "{\"pid\":\"x\"}"] {
            let (dir, mut inhibitors) = busy(content);
            assert!(inhibitors.any(MONO));
            let later = MONO + Duration::from_secs(61);
            assert!(!inhibitors.any(later));
            std::fs::write(dir.path().join("job"), content).unwrap();
            assert!(inhibitors.any(later), "written anew");
        }
    }

    /// As after a wake, which sets the clock.
    #[test]
    fn a_lease_that_was_written_just_before_the_clock_was_set_ahead_is_as_old_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let mut inhibitors = Inhibitors::new(dir.path().to_owned());
        assert!(!inhibitors.any(MONO));
        let file = File::create(dir.path().join("job")).unwrap();
        let long_ago = SystemTime::now() - Duration::from_secs(3600);
        file.set_modified(long_ago).unwrap();
        let later = MONO + Duration::from_secs(5);
        assert!(inhibitors.any(later));
        assert!(inhibitors.any(MONO + Duration::from_secs(59)));
        assert!(!inhibitors.any(MONO + Duration::from_secs(60)));
        // One that was there before the agent is as old as the clock says.
        assert!(!Inhibitors::new(dir.path().to_owned()).any(later));
    }

    #[test]
    fn a_file_that_is_filled_within_a_tick_is_read_again() {
        let (dir, mut inhibitors) = busy("");
        assert!(inhibitors.any(MONO));
        let file = File::options().write(true).open(dir.path().join("job"));
        let mut file = file.unwrap();
        let made = file.metadata().unwrap().modified().unwrap();
        file.write_all(b"{\"lease_secs\":600}").unwrap();
        file.set_modified(made).unwrap();
        assert!(inhibitors.any(MONO + Duration::from_secs(5)));
        assert!(inhibitors.any(MONO + Duration::from_secs(500)));
    }

    #[test]
    fn files_that_are_not_regular_are_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            Mode::RUSR,
            0,
        )
        .unwrap();
        std::os::unix::fs::symlink("/etc/hostname", dir.path().join("link")).unwrap();
        std::fs::create_dir(dir.path().join("folder")).unwrap();
        assert!(!Inhibitors::new(dir.path().to_owned()).any(MONO));
        assert!(!Inhibitors::new("/nonexistent".into()).any(MONO));
    }

    /// Who may write there, and what: root's claim is one file among others'.
    fn flooded(owners: &[u32], files: usize) -> (tempfile::TempDir, Inhibitors) {
        assert!(rustix::process::geteuid().is_root(), "this test needs root");
        let dir = tempfile::tempdir().unwrap();
        for owner in owners {
            for number in 0..files {
                let path = dir.path().join(format!("{owner}-{number}"));
                std::fs::write(&path, "0").unwrap();
                std::os::unix::fs::chown(&path, Some(*owner), None).unwrap();
            }
        }
        let inhibitors = Inhibitors::new(dir.path().to_owned());
        (dir, inhibitors)
    }

    #[test]
    fn nobody_hides_anothers_claim() {
        let own = std::process::id().to_string();
        for claimant in [0, 1000] {
            for before in [false, true] {
                let (dir, mut inhibitors) = flooded(&[65534], 3000);
                assert!(!inhibitors.any(MONO));
                if before {
                    inhibitors = Inhibitors::new(dir.path().to_owned());
                }
                let claim = dir.path().join("claim");
                std::fs::write(&claim, &own).unwrap();
                std::os::unix::fs::chown(&claim, Some(claimant), None).unwrap();
                assert!(inhibitors.any(MONO), "of {claimant}");
                assert!(inhibitors.known.len() <= PER_OWNER + 1);
                std::fs::remove_file(&claim).unwrap();
                assert!(!inhibitors.any(MONO));
            }
        }
    }

    #[test]
    fn many_users_have_equal_shares() {
        let owners: Vec<u32> = (100_000..100_040).collect();
        let (dir, mut inhibitors) = flooded(&owners, 300);
        for _ in 0..3 {
            assert!(!inhibitors.any(MONO));
            assert!(
                inhibitors.known.len() <= 2 * ALL,
                "{}",
                inhibitors.known.len()
            );
        }
        let claim = dir.path().join("claim");
        std::fs::write(&claim, std::process::id().to_string()).unwrap();
        std::os::unix::fs::chown(&claim, Some(33), None).unwrap();
        assert!(inhibitors.any(MONO));
    }

    #[test]
    fn a_folder_that_is_too_large_for_one_sample_is_gone_through_in_several() {
        let (dir, mut inhibitors) = flooded(&[65534], 300);
        inhibitors.looks = 100;
        std::fs::write(dir.path().join("claim"), std::process::id().to_string()).unwrap();
        assert!((0..5).any(|_| inhibitors.any(MONO)), "within a pass");
        for _ in 0..10 {
            assert!(inhibitors.any(MONO), "once it is known it is at once");
        }
        std::fs::remove_file(dir.path().join("claim")).unwrap();
        assert!(!inhibitors.any(MONO), "and so is its end");
        for _ in 0..10 {
            assert!(!inhibitors.any(MONO));
        }
    }
}
