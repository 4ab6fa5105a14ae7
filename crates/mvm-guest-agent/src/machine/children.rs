//! The agent's children: who they are, and the end of whole trees.
//!
//! The agent is a child subreaper (prctl(2)): a process whose parents have ended becomes the agent's
//! own child, an orphan. So is the shell of each check, probe and lifecycle command for what it has
//! started: none of that comes to the agent before the shell has ended. So an orphan is what an ended
//! run has left, and is ended, wherever it went: another session, another cgroup, another
//! environment.
//!
//! The commands of hosts alone (dev builds) are none, since they may run for weeks and need not be
//! programs that reap what comes to them. As long as one is under way an orphan may be its: if it is
//! in its cgroup, or has its mark in its environment. One that has left the cgroups and has another
//! environment (`env -i`, `su -`) is left alone while a host's command that is older is under way.

use super::proc::read;
use nix::sys::resource::{UsageWho, getrusage};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use std::cell::RefCell;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

/// Carries a run's mark to all that it starts.
pub(crate) const MARK: &str = "MVM_RUN";

/// How long the end of a killed tree is waited for.
const END_WITHIN: Duration = Duration::from_secs(2);

/// Whose children those become whose parents have ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Orphans {
    /// The run's first process's, as long as that lives.
    ToLeader,
    /// The agent's, at once.
    ToAgent,
}

/// A run's first process, while it is neither reaped nor abandoned.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) pid: Pid,
    /// The run's mark.
    pub(super) mark: String,
    /// The run's cgroup.
    pub(super) cgroup: Option<PathBuf>,
    pub(super) orphans: Orphans,
}

/// The processes that were started for a run and not reaped yet.
#[derive(Debug)]
pub(crate) struct Children {
    run_dir: String,
    started: RefCell<Vec<Member>>,
    /// Who was killed, and has not ended in time: the kernel holds them. They are reaped, should they
    /// end, and nobody waits for them any more.
    given_up: RefCell<Vec<Pid>>,
    /// Whom the agent has had from before it was the agent: `sh -c 'logger & exec mvm-guest-agent'`.
    inherited: RefCell<Vec<Pid>>,
}

impl Children {
    /// Makes the agent the one to whom orphans come, and ends what an earlier agent with the same
    /// run directory left behind when it was killed.
    pub(crate) fn new(run_dir: &Path) -> Self {
        // Any process id switches it on: the value is a flag to the kernel.
        let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
        let children = Self {
            run_dir: run_dir.to_string_lossy().into_owned(),
            started: RefCell::default(),
            given_up: RefCell::default(),
            inherited: RefCell::new(children_of_agent()),
        };
        children.end_leftovers();
        children
    }

    /// The agent's run directory.
    pub(crate) fn run_dir(&self) -> &str {
        &self.run_dir
    }

    /// The mark of a run.
    pub(crate) fn mark(&self, run: u64) -> String {
        format!("{}:{}:{run}", self.run_dir, std::process::id())
    }

    /// A process was started for a run.
    pub(super) fn add(&self, member: Member) {
        self.started.borrow_mut().push(member);
    }

    /// It was reaped.
    pub(crate) fn remove(&self, pid: Pid) {
        self.started.borrow_mut().retain(|other| other.pid != pid);
    }

    /// It was killed, and is waited for no more.
    pub(crate) fn give_up(&self, pid: Pid) {
        self.remove(pid);
        self.given_up.borrow_mut().push(pid);
    }

    /// Whether a process that is waited for no more is still there.
    pub(super) fn is_given_up(&self, pid: Pid) -> bool {
        self.given_up.borrow().contains(&pid)
    }

    /// Kills all that a process has started, and has not come to the agent.
    pub(super) fn kill_below(pid: Pid) {
        // What is killed leaves its own children to the process above.
        for _ in 0..10 {
            let killed = processes().filter(|other| {
                parent(*other) == Some(pid.as_raw_pid().unsigned_abs())
                    && !is_exiting(*other)
                    && kill_process(*other, Signal::KILL).is_ok()
            });
            if killed.count() == 0 {
                break;
            }
        }
    }

    /// Reaps orphans that are dead and kills those whose run is over, until there are none left but
    /// those that are given up.
    pub(crate) async fn sweep(&self) {
        let mut pause = Duration::from_millis(1);
        let mut waited = Duration::ZERO;
        let mut last = Seen::default();
        while waited < END_WITHIN {
            last = self.look();
            if last.reaped > 0 {
                // The children of those have come to the agent by now.
                continue;
            }
            if last.killed.is_empty() && last.unknown == 0 {
                return;
            }
            tokio::time::sleep(pause).await;
            waited += pause;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
        self.given_up.borrow_mut().extend(last.killed);
    }

    /// Reaps orphans that are dead by now, and waits for none.
    pub(crate) fn reap(&self) {
        self.look();
    }

    fn look(&self) -> Seen {
        let started = self.started.borrow();
        let mut orphans = children_of_agent();
        orphans.retain(|pid| started.iter().all(|it| it.pid != *pid));
        // They are let be for as long as they live. Dead, nobody else reaps them.
        self.inherited.borrow_mut().retain(|pid| {
            orphans.retain(|orphan| orphan != pid);
            matches!(waitpid(Some(*pid), WaitOptions::NOHANG), Ok(None))
        });
        let mut given_up = self.given_up.borrow_mut();
        given_up.retain(|pid| orphans.contains(pid));
        let mut seen = Seen::default();
        for orphan in orphans {
            match waitpid(Some(orphan), WaitOptions::NOHANG) {
                Ok(None) if given_up.contains(&orphan) => {}
                Ok(None) => match owner(orphan, &started) {
                    Owner::Run => {}
                    // Whose it is shows at the next look.
                    Owner::Unknown => seen.unknown += 1,
                    Owner::Nobody => match kill_process(orphan, Signal::KILL) {
                        // A program that is root's by its mode, and an agent that is not: nothing
                        // more can be done about it.
                        Err(Errno::PERM) => {}
                        _ => seen.killed.push(orphan),
                    },
                },
                Ok(Some(_)) => {
                    // Its number may be another's by the next look.
                    given_up.retain(|pid| *pid != orphan);
                    seen.reaped += 1;
                }
                Err(_) => {}
            }
        }
        seen
    }

    pub(super) fn end_leftovers(&self) {
        let mark = format!("{MARK}={}:", self.run_dir);
        // What is being killed may be forking: look again until nothing new is found.
        for _ in 0..10 {
            // An agent that a command of an earlier one has started has its mark as well.
            let others = processes().filter(|pid| *pid != rustix::process::getpid());
            let marked = others.filter(|pid| {
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
    /// Who will be.
    killed: Vec<Pid>,
    /// How many cannot be told apart yet.
    unknown: usize,
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

fn owner(pid: Pid, started: &[Member]) -> Owner {
    let mut hosts = started.iter().filter(|it| it.orphans == Orphans::ToAgent);
    if hosts.clone().next().is_none() {
        return Owner::Nobody;
    }
    let cgroup = cgroup(pid);
    let is_in = |run: &Path| {
        // What the agent sees as the hierarchy's root need not be where it is mounted: the run's own
        // name and the one above are as good.
        let mut parts = run.components().rev().map(Component::as_os_str);
        let (name, root) = (parts.next(), parts.next());
        let mut above = None;
        cgroup.components().any(|part| {
            let found = name == Some(part.as_os_str()) && above == root;
            above = Some(part.as_os_str());
            found
        })
    };
    if hosts
        .clone()
        .any(|it| it.cgroup.as_deref().is_some_and(is_in))
    {
        return Owner::Run;
    }
    // In the middle of execve(2) a process has no environment yet, and reads like one that was
    // started with none. So an environment counts only if its place, which each execve draws anew,
    // is known and the same before and after.
    let place = environment_end(pid);
    let environment = environment(pid);
    let mut marks = environment.split('\0').filter_map(|var| {
        var.strip_prefix(MARK)
            .and_then(|rest| rest.strip_prefix('='))
    });
    let mark = marks.next();
    match place {
        _ if mark.is_some_and(|mark| hosts.clone().any(|it| it.mark == mark)) => Owner::Run,
        Some(_) if place != environment_end(pid) => Owner::Unknown,
        Some(_) if mark.is_some() => Owner::Nobody,
        Some(_) => {
            let born = began(pid);
            let older =
                hosts.any(|it| began(it.pid).is_some_and(|run| born.is_none_or(|it| it >= run)));
            if older { Owner::Run } else { Owner::Nobody }
        }
        None => Owner::Unknown,
    }
}

/// The cgroup (v2) that a process is in, from the root of what the agent sees of the hierarchy.
fn cgroup(pid: Pid) -> PathBuf {
    let text = read(format!("/proc/{}/cgroup", pid.as_raw_pid()), 16 * 1024).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("0::"));
    line.unwrap_or_default().into()
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

/// CPU time of all children that were reaped, and of theirs.
pub(super) fn reaped_cpu() -> Duration {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_CHILDREN) else {
        return Duration::ZERO;
    };
    [usage.user_time(), usage.system_time()]
        .iter()
        .map(|time| {
            let micros = time
                .tv_sec()
                .saturating_mul(1_000_000)
                .saturating_add(time.tv_usec());
            Duration::from_micros(u64::try_from(micros).unwrap_or_default())
        })
        .sum()
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
