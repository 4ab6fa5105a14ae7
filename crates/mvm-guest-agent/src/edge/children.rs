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

/// How long a process may have no environment. One that is just becoming another program has none for
/// a moment, and whose it is shows when it is through.
const BECOMES_WITHIN: Duration = Duration::from_millis(100);

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
        while self.look(waited < BECOMES_WITHIN) > 0 && waited < END_WITHIN {
            tokio::time::sleep(pause).await;
            waited += pause;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// Reaps orphans that are dead, where cgroups do the killing.
    pub(crate) fn reap(&self) {
        self.look(true);
    }

    /// How many orphans have been killed and are not dead yet, or may have to be.
    fn look(&self, spare_the_nameless: bool) -> usize {
        let started = self.started.borrow();
        let mut orphans = children_of_agent();
        orphans.retain(|pid| !started.contains_key(&pid.as_raw_pid()));
        let mut dying = 0;
        for orphan in orphans {
            match waitpid(Some(orphan), WaitOptions::NOHANG) {
                Ok(None) if self.cgroups => {}
                Ok(None) => match belongs_to_a_run(orphan, &started) {
                    Some(true) => {}
                    None if spare_the_nameless => dying += 1,
                    Some(false) | None => {
                        let _ = kill_process(orphan, Signal::KILL);
                        dying += 1;
                    }
                },
                _ => {}
            }
        }
        dying
    }

    fn end_leftovers(&self) {
        let mark = format!("{MARK}={}:", self.run_dir);
        // What is being killed may be forking: look again until nothing new is found.
        for _ in 0..10 {
            let marked = processes().filter(|pid| {
                environment(*pid)
                    .split('\0')
                    .any(|var| var.starts_with(&mark))
            });
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

/// `None` if it has no environment to tell by.
fn belongs_to_a_run(pid: Pid, started: &HashMap<i32, String>) -> Option<bool> {
    let environment = environment(pid);
    let mut marks = environment.split('\0').filter_map(|var| {
        var.strip_prefix(MARK)
            .and_then(|rest| rest.strip_prefix('='))
    });
    let known = marks.any(|mark| started.values().any(|run| run == mark));
    (!environment.is_empty()).then_some(known)
}

fn environment(pid: Pid) -> String {
    let path = format!("/proc/{}/environ", pid.as_raw_pid());
    read(path, 64 * 1024).unwrap_or_default()
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
