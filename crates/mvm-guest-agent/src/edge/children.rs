//! The agent's children: who they are, and the end of whole trees.
//!
//! What a run started is in its cgroup, where there are cgroups. Without them there are two traces:
//! its process group, and, since the agent is a child subreaper (prctl(2)), that every process
//! whose parent died becomes the agent's own child. `MVM_RUN` in its environment tells whose it
//! was, so that a helper of a run that is still under way is left alone.

use super::proc::read;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

/// Carries a run's mark to all that it starts.
pub(crate) const MARK: &str = "MVM_RUN";

/// How long the end of a killed tree is waited for.
const END_WITHIN: Duration = Duration::from_secs(2);

/// The processes that were started for a run and not reaped yet.
#[derive(Debug)]
pub(crate) struct Children {
    run_dir: String,
    /// Process id → the run's mark.
    started: RefCell<HashMap<i32, String>>,
    /// Whether cgroups do the killing, and orphans need only be reaped.
    cgroups: bool,
}

impl Children {
    /// Makes the agent the one to whom orphans come. Without cgroups it also ends what an earlier
    /// agent with the same run directory left behind when it was killed.
    pub(crate) fn new(run_dir: &Path, cgroups: bool) -> Self {
        // Any process id switches it on: the value is a flag to the kernel.
        let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
        let run_dir = run_dir.to_string_lossy().into_owned();
        let children = Self {
            run_dir,
            started: RefCell::default(),
            cgroups,
        };
        if !cgroups {
            children.end_leftovers();
        }
        children
    }

    /// The mark of a run.
    pub(crate) fn mark(&self, run: u64) -> String {
        format!("{}:{}:{run}", self.run_dir, std::process::id())
    }

    /// A process was started for the run with this mark.
    pub(crate) fn add(&self, pid: Pid, mark: String) {
        self.started.borrow_mut().insert(pid.as_raw_pid(), mark);
    }

    /// It was reaped, or abandoned: from now on it is an orphan like others.
    pub(crate) fn remove(&self, pid: Pid) {
        self.started.borrow_mut().remove(&pid.as_raw_pid());
    }

    /// Reaps orphans that are dead and kills those whose run is over, until there are none left.
    pub(crate) async fn sweep(&self) {
        let mut pause = Duration::from_millis(1);
        let mut waited = Duration::ZERO;
        while self.sweep_once() > 0 && waited < END_WITHIN {
            tokio::time::sleep(pause).await;
            waited += pause;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// How many orphans have been killed and are not dead yet.
    pub(crate) fn sweep_once(&self) -> usize {
        let started = self.started.borrow();
        let mut orphans = children_of_agent();
        orphans.retain(|pid| !started.contains_key(&pid.as_raw_pid()));
        let mut dying = 0;
        for orphan in orphans {
            match waitpid(Some(orphan), WaitOptions::NOHANG) {
                Ok(None) if self.cgroups => {}
                Ok(None) if belongs_to_a_run(orphan, &started) => {}
                Ok(None) => {
                    let _ = kill_process(orphan, Signal::KILL);
                    dying += 1;
                }
                _ => {}
            }
        }
        dying
    }

    fn end_leftovers(&self) {
        let mark = format!("{MARK}={}:", self.run_dir);
        // What is being killed may be forking: look again until nothing new is found.
        for _ in 0..10 {
            let marked =
                processes().filter(|pid| environment_has(*pid, |var| var.starts_with(&mark)));
            if marked
                .filter(|pid| kill_process(*pid, Signal::KILL).is_ok())
                .count()
                == 0
            {
                break;
            }
        }
    }
}

fn belongs_to_a_run(pid: Pid, started: &HashMap<i32, String>) -> bool {
    environment_has(pid, |var| {
        var.strip_prefix(MARK)
            .and_then(|rest| rest.strip_prefix('='))
            .is_some_and(|mark| started.values().any(|run| run == mark))
    })
}

fn environment_has(pid: Pid, test: impl Fn(&str) -> bool) -> bool {
    let path = format!("/proc/{}/environ", pid.as_raw_pid());
    read(path, 64 * 1024).is_ok_and(|environment| environment.split('\0').any(test))
}

/// The agent's direct children. The kernel's own list needs `CONFIG_PROC_CHILDREN`; without it
/// every process is asked for its parent.
fn children_of_agent() -> Vec<Pid> {
    let own = std::process::id();
    match read(format!("/proc/self/task/{own}/children"), 1024 * 1024) {
        Ok(list) => list.split_whitespace().filter_map(parse_pid).collect(),
        Err(_) => processes()
            .filter(|pid| parent(*pid) == Some(own))
            .collect(),
    }
}

fn processes() -> impl Iterator<Item = Pid> {
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| parse_pid(entry.file_name().to_str()?))
}

fn parse_pid(text: &str) -> Option<Pid> {
    text.parse().ok().and_then(Pid::from_raw)
}

fn parent(pid: Pid) -> Option<u32> {
    let stat = read(format!("/proc/{}/stat", pid.as_raw_pid()), 4096).ok()?;
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
}
