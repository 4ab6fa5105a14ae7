//! Freezes a process and all that it started, and thaws them.

use rustix::process::{Pid, Signal, kill_process_group};
use std::cell::Cell;
use std::path::PathBuf;
use std::rc::Rc;

/// Freezes by the cgroup's freezer, or without cgroups the process group alone, by STOP. Does nothing
/// once the process is finished: its number may be another's by then.
#[derive(Debug, Clone)]
pub(crate) struct Freezer {
    pid: Pid,
    cgroup: Option<PathBuf>,
    finished: Rc<Cell<bool>>,
}

impl Freezer {
    pub(super) fn new(pid: Pid, cgroup: Option<PathBuf>, finished: Rc<Cell<bool>>) -> Self {
        Self {
            pid,
            cgroup,
            finished,
        }
    }

    /// Freezes or thaws.
    pub(crate) fn set(&self, frozen: bool) {
        if self.finished.get() {
            return;
        }
        if let Some(cgroup) = &self.cgroup {
            let _ = std::fs::write(cgroup.join("cgroup.freeze"), if frozen { "1" } else { "0" });
        } else {
            let signal = if frozen { Signal::STOP } else { Signal::CONT };
            let _ = kill_process_group(self.pid, signal);
        }
    }
}
