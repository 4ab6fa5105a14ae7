//! The agent's children: who they are, and the end of whole trees.
//!
//! What a run started is in its cgroup, where there are cgroups. Without them there are two traces:
//! its process group, and, since the agent is a child subreaper (prctl(2)), that every process
//! whose parent died becomes the agent's own child. `MVM_RUN` in its environment tells whose it
//! was, so that a helper of a run that is still under way is left alone. One that was started with
//! another environment (`env -i`, `su -`) may be of any run that began before it, and is left alone
//! as long as one of those is under way.

use super::proc::read;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use std::cell::RefCell;
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
    started: RefCell<Vec<(Pid, String)>>,
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
        self.started.borrow_mut().push((pid, mark));
    }

    /// It was reaped, or abandoned: from now on it is an orphan like others.
    pub(crate) fn remove(&self, pid: Pid) {
        self.started.borrow_mut().retain(|(other, _)| *other != pid);
    }

    /// Reaps orphans that are dead and kills those whose run is over, until there are none left.
    pub(crate) async fn sweep(&self) {
        let mut pause = Duration::from_millis(1);
        let mut waited = Duration::ZERO;
        while waited < END_WITHIN {
            match self.look() {
                Seen {
                    reaped: 0,
                    dying: 0,
                } => return,
                Seen { reaped: 0, .. } => {
                    tokio::time::sleep(pause).await;
                    waited += pause;
                    pause = (pause * 2).min(Duration::from_millis(50));
                }
                // The children of those have come to the agent by now.
                _ => {}
            }
        }
    }

    /// Reaps orphans that are dead by now, and waits for none.
    pub(crate) fn reap(&self) {
        self.look();
    }

    fn look(&self) -> Seen {
        let started = self.started.borrow();
        let mut orphans = children_of_agent();
        orphans.retain(|pid| started.iter().all(|(other, _)| other != pid));
        let mut seen = Seen::default();
        for orphan in orphans {
            match waitpid(Some(orphan), WaitOptions::NOHANG) {
                // Who is about to die has left its cgroup already.
                Ok(None) if self.cgroups => seen.dying += usize::from(is_exiting(orphan)),
                Ok(None) => match owner(orphan, &started) {
                    Owner::Run => {}
                    // Whose it is shows at the next look. Nobody's run can be harmed if there is none.
                    Owner::Unknown if !started.is_empty() => seen.dying += 1,
                    Owner::Unknown | Owner::Nobody => {
                        let _ = kill_process(orphan, Signal::KILL);
                        seen.dying += 1;
                    }
                },
                Ok(Some(_)) => seen.reaped += 1,
                Err(_) => {}
            }
        }
        seen
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

/// What there was of orphans.
#[derive(Default)]
struct Seen {
    /// How many were dead.
    reaped: usize,
    /// How many will be, or cannot be told apart yet.
    dying: usize,
}

/// Whose an orphan is.
enum Owner {
    /// A run's that is under way.
    Run,
    /// No run's that is under way.
    Nobody,
    /// It is becoming another program, or may not be looked at.
    Unknown,
}

/// In the middle of execve(2) a process has no environment yet, and reads like one that was started
/// with none. So an environment counts only if its place, which each execve draws anew, is known
/// and the same before and after.
fn owner(pid: Pid, started: &[(Pid, String)]) -> Owner {
    let place = environment_end(pid);
    let environment = environment(pid);
    let mut marks = environment.split('\0').filter_map(|var| {
        var.strip_prefix(MARK)
            .and_then(|rest| rest.strip_prefix('='))
    });
    let mark = marks.next();
    let of_a_run = mark.is_some_and(|mark| started.iter().any(|(_, run)| run == mark));
    match place {
        _ if of_a_run => Owner::Run,
        Some(_) if place != environment_end(pid) => Owner::Unknown,
        Some(_) if mark.is_none() && is_younger_than_one_of(started, pid) => Owner::Run,
        Some(_) => Owner::Nobody,
        None => Owner::Unknown,
    }
}

/// Whether a process began after one of those, as far as can be told: by the tick.
fn is_younger_than_one_of(started: &[(Pid, String)], pid: Pid) -> bool {
    let born = began(pid);
    let leaders = started.iter().map(|(leader, _)| *leader);
    leaders
        .filter_map(began)
        .any(|began| born.is_none_or(|born| born >= began))
}

/// When a process began, in ticks since the boot (proc_pid_stat(5), field 22).
fn began(pid: Pid) -> Option<u64> {
    stat_field(pid, 22)?.parse().ok()
}

/// Whether a process is on its way out: `PF_EXITING` of its flags (proc_pid_stat(5), field 9;
/// include/linux/sched.h).
fn is_exiting(pid: Pid) -> bool {
    const PF_EXITING: u32 = 0x4;
    let flags = stat_field(pid, 9).and_then(|flags| flags.parse::<u32>().ok());
    flags.is_some_and(|flags| flags & PF_EXITING != 0)
}

/// Where a process's environment ends (proc_pid_stat(5), field 51), the last thing that execve sets;
/// nothing if it has none yet, is dead, or may not be looked at.
fn environment_end(pid: Pid) -> Option<u64> {
    stat_field(pid, 51)?.parse().ok().filter(|end| *end > 0)
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
    stat_field(pid, 4)?.parse().ok()
}

/// A field of `/proc/PID/stat` by its number in proc_pid_stat(5), from 3 up: what stands behind the
/// program's name, which may hold anything.
fn stat_field(pid: Pid, number: usize) -> Option<String> {
    let stat = read(format!("/proc/{}/stat", pid.as_raw_pid()), 4096).ok()?;
    let behind = stat.rsplit_once(')')?.1;
    let field = behind.split_whitespace().nth(number.checked_sub(3)?)?;
    Some(field.to_owned())
}
