//! On which cores what is measured runs. Left to the scheduler, an agent that shares its client's core
//! is compared with a bare server that does not, or the other way round.

use crate::Result;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::fmt;

/// Where a client and its server run, whichever server it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cores {
    /// Both on one core: whatever one does, the other waits for.
    One,
    /// Each on its own.
    Two,
}

impl fmt::Display for Cores {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::One => "on one core",
            Self::Two => "across two cores",
        })
    }
}

/// This thread's leave to run on all of its cores, given back when this is dropped.
pub(crate) struct Pinned {
    before: CpuSet,
    client: usize,
    server: usize,
}

impl Cores {
    /// Pins this thread, and what it starts from now on, as a client.
    pub(crate) fn pin(self) -> Result<Pinned> {
        let before = sched_getaffinity(None)?;
        let mut cores = (0..CpuSet::MAX_CPU).filter(|core| before.is_set(*core));
        let client = cores.next().ok_or("there is no core to run on")?;
        let server = match self {
            Self::One => client,
            Self::Two => cores.next().ok_or("there is no second core to run on")?,
        };
        let pinned = Pinned {
            before,
            client,
            server,
        };
        run_on(pinned.client)?;
        Ok(pinned)
    }
}

impl Pinned {
    /// Has what is started in there run where servers do.
    pub(crate) fn server<T>(&self, start: impl FnOnce() -> Result<T>) -> Result<T> {
        run_on(self.server)?;
        let started = start();
        run_on(self.client)?;
        started
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // What cannot be undone shows in what is measured next as what it is: one core.
        let _ = sched_setaffinity(None, &self.before);
    }
}

fn run_on(core: usize) -> Result<()> {
    let mut only = CpuSet::new();
    only.set(core);
    Ok(sched_setaffinity(None, &only)?)
}
