//! Files in `busy.d` by which a program in the guest says: do not take me for idle.
//!
//! A file holds its owner's process id (`echo $$ > /run/mvm/busy.d/job`), or
//! `{"pid": 42, "lease_secs": 600}` with either field. It counts while its owner is alive, or while
//! it is younger than its lease. A file that names neither has a lease of a minute, so that a
//! forgotten one cannot hold a guest busy, and be paid for, for ever. `touch` renews a lease.

use super::proc::read_small;
use rustix::fs::{Mode, OFlags};
use serde_json::Value;
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// The lease of a file that names neither owner nor lease.
const DEFAULT_LEASE: Duration = Duration::from_secs(60);

/// How many files are looked at, and how much of each: anybody in the guest may write there.
const MAX_FILES: usize = 1024;
const MAX_BYTES: u64 = 4096;

/// One writing of one file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Writing {
    name: PathBuf,
    inode: u64,
    modified: (i64, i64),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Claim {
    /// While the process with this start time (in ticks since boot) lives.
    Owner { pid: u32, started: u64 },
    /// Until this moment on the monotonic clock.
    Lease { until: Duration },
    /// Its owner was not alive when it was first seen.
    Void,
}

/// What is known of the files in `busy.d`. Leases run on the monotonic clock from when a writing
/// was first seen, so that a jump of the wall clock neither ends nor prolongs them.
#[derive(Debug)]
pub(crate) struct Inhibitors {
    dir: PathBuf,
    seen: HashMap<Writing, Claim>,
}

impl Inhibitors {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            seen: HashMap::new(),
        }
    }

    /// Whether any file holds the guest busy.
    pub(crate) fn any(&mut self, mono: Duration) -> bool {
        let Ok(entries) = std::fs::read_dir(&self.dir) else {
            return false;
        };
        let mut before = std::mem::take(&mut self.seen);
        for entry in entries.flatten().take(MAX_FILES) {
            let path = entry.path();
            let Some((writing, file)) = open(&path) else {
                continue;
            };
            let claim = before
                .remove(&writing)
                .unwrap_or_else(|| read_claim(file, mono));
            self.seen.insert(writing, claim);
        }
        self.seen.values().any(|claim| match claim {
            Claim::Owner { pid, started } => started_at(*pid) == Some(*started),
            Claim::Lease { until } => mono < *until,
            Claim::Void => false,
        })
    }
}

/// Opens a regular file without following a link or waiting for a FIFO's other end.
fn open(path: &Path) -> Option<(Writing, File)> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty()).ok()?);
    let meta = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
    let modified = (meta.mtime(), meta.mtime_nsec());
    Some((
        Writing {
            name: path.to_owned(),
            inode: meta.ino(),
            modified,
        },
        file,
    ))
}

fn read_claim(mut file: File, mono: Duration) -> Claim {
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
    let lease = lease.map(|secs| Duration::try_from_secs_f64(secs).unwrap_or_default());
    if let Some(pid) = pid {
        let pid = u32::try_from(pid).unwrap_or_default();
        if let Some(started) = started_at(pid) {
            return Claim::Owner { pid, started };
        }
    }
    match (lease, pid) {
        (None, Some(_)) => Claim::Void,
        (lease, _) => {
            let age = file.metadata().and_then(|meta| meta.modified()).ok();
            let age = age.and_then(|at| SystemTime::now().duration_since(at).ok());
            let left = lease
                .unwrap_or(DEFAULT_LEASE)
                .saturating_sub(age.unwrap_or_default());
            Claim::Lease {
                until: mono.saturating_add(left),
            }
        }
    }
}

/// When a process started, in ticks since boot: field 22 of proc_pid_stat(5). With the process id it
/// tells a process from a later one with the same number. `None` if it is not alive.
fn started_at(pid: u32) -> Option<u64> {
    let stat = read_small(format!("/proc/{pid}/stat")).ok()?;
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
}
