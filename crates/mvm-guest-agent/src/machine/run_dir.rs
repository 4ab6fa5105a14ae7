//! The run directory: the lock of the one agent that uses it, and `busy.d`.

use rustix::fd::OwnedFd;
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A run directory that is this agent's for as long as it runs.
#[derive(Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
    _lock: OwnedFd,
}

impl RunDir {
    /// Makes the folder and locks it. Two agents with one run directory would end each other's
    /// commands as leftovers.
    pub(crate) fn take(path: &Path) -> Result<Self, String> {
        let failed = |error: io::Error| format!("run directory {}: {error}", path.display());
        std::fs::create_dir_all(path).map_err(failed)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let lock = open(path.join("lock"), flags, Mode::RUSR | Mode::WUSR)
            .map_err(|error| failed(error.into()))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
            rustix::io::Errno::WOULDBLOCK => {
                format!(
                    "run directory {}: another agent uses it; give this one its own --run-dir",
                    path.display()
                )
            }
            error => failed(error.into()),
        })?;
        // Runs are marked with the path, so it has to mean the same wherever it is read.
        let path = std::fs::canonicalize(path).map_err(failed)?;
        let run_dir = Self { path, _lock: lock };
        run_dir.make_busy_d().map_err(failed)?;
        Ok(run_dir)
    }

    fn make_busy_d(&self) -> io::Result<()> {
        let busy = self.busy_d();
        match std::fs::create_dir(&busy) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        // As for /tmp: any program may say that it is busy, and none may take back another's word.
        std::fs::set_permissions(&busy, PermissionsExt::from_mode(0o1777))
    }

    /// Where programs say that they are busy.
    pub(crate) fn busy_d(&self) -> PathBuf {
        self.path.join("busy.d")
    }

    /// The folder itself.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_agent_at_a_time_holds_the_run_directory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mvm");
        let first = RunDir::take(&path).unwrap();
        let error = RunDir::take(&path).unwrap_err();
        assert!(error.contains("another agent uses it"), "{error}");
        drop(first);
        RunDir::take(&path).unwrap();
    }
}
