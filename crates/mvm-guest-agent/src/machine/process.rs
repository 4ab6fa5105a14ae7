//! A process and all that it starts: how it is begun, and how the whole tree is ended.
//!
//! Each run has a scope: a cgroup where there are cgroups, and in any case a mark in its environment
//! and a process group. What is begun in a scope is ended with it, whatever it did to hide.

use super::calls::Calls;
use super::cgroup::{Cgroup, CgroupRoot};
use super::children::{Children, Member, Orphans, reaped_cpu};
use super::descriptors::{is_kept_back, raise_limit};
use super::fork::{Report, Starts, fork, is_only_thread, reported, told_pid};
use super::freezer::Freezer;
use super::polled::Polled;
use super::program::{Entry, Program, StartFailure};
use super::stuck::{Remains, StuckRuns};
use super::turns::{Turn, Turns};
use super::users::Identity;
use crate::core::RunId;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Rlimit, Signal, WaitId, WaitIdOptions, WaitOptions, kill_process,
    kill_process_group, pidfd_open, waitid, waitpid,
};
use std::borrow::Cow;
use std::cell::Cell;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use tokio::io::Interest;

/// Between TERM and KILL.
pub(crate) const TERM_GRACE: Duration = Duration::from_millis(250);

/// Between KILL and giving up.
pub(crate) const KILL_GRACE: Duration = Duration::from_secs(2);

/// How long `launch` waits for a process to execute its program.
const START_WITHIN: Duration = Duration::from_secs(10);

/// Starts processes and ends them.
#[derive(Debug)]
pub(crate) struct Launcher {
    children: Children,
    cgroups: Option<CgroupRoot>,
    /// Whether the agent has made itself hard to kill for want of memory. Its children are not.
    protected: bool,
    pub(super) starts: Starts,
    /// How many descriptors its children may have, if the agent has taken more.
    descriptors: Option<Rlimit>,
    /// Those of processes to be started: see [`Launcher::turn`].
    turns: Turns,
    pub(super) cpu: Cell<Duration>,
    stuck: StuckRuns,
}

/// What the processes of one run have in common, and by which they are found.
#[derive(Debug)]
pub(crate) struct RunScope {
    cgroup: Option<Cgroup>,
    /// The value of [`MARK`](super::children::MARK) in its environment.
    pub(crate) mark: String,
    orphans: Orphans,
    report: Report,
    entry: Entry,
}

/// A process that was begun, the leader of its process group. Its number is its own until it is
/// [finished](Launcher::finish), since only the agent reaps it.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: Pid,
    exited: Polled,
    cgroup: Option<Cgroup>,
    report: Option<OwnedFd>,
    /// The command, if this process is its witness.
    below: Option<Below>,
}

/// A command that has another process of the agent's between it and the agent.
#[derive(Debug)]
struct Below {
    /// Where its number is told once it has one.
    told: OwnedFd,
    pid: Cell<Option<Pid>>,
}

/// Why a process was not started.
#[derive(Debug)]
pub(crate) struct NotStarted {
    /// What failed.
    pub(crate) what: Cow<'static, str>,
    pub(crate) error: io::Error,
}

/// How a process ended: neither if somebody else took its status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Exit {
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
    /// The CPU time of it and of all that it waited for.
    pub(crate) cpu: Duration,
}

impl NotStarted {
    pub(crate) fn new(what: impl Into<Cow<'static, str>>, error: io::Error) -> Self {
        let what = what.into();
        Self { what, error }
    }

    /// Whether that is for want of memory, processes or descriptors.
    pub(crate) fn is_resource_shortage(&self) -> bool {
        matches!(
            Errno::from_io_error(&self.error),
            Some(Errno::AGAIN | Errno::NOMEM | Errno::MFILE | Errno::NFILE | Errno::NOSPC)
        )
    }
}

impl Launcher {
    pub(crate) fn new(run_dir: &Path, protected: bool) -> Self {
        // Each fork looks anew, and a build for use refuses; this finds what starts a thread before there
        // is anything to fork for. The harness of the tests has threads of its own.
        debug_assert!(cfg!(test) || is_only_thread(), "the agent has one thread");
        let cgroups = CgroupRoot::open(run_dir);
        let children = Children::new(run_dir);
        Self {
            children,
            cgroups,
            protected,
            starts: Starts::new(protected),
            descriptors: raise_limit(),
            turns: Turns::default(),
            cpu: Cell::default(),
            stuck: StuckRuns::default(),
        }
    }

    /// How whole trees are ended here.
    pub(crate) fn kill_method(&self) -> &'static str {
        if self.cgroups.is_some() {
            "cgroup"
        } else {
            "process group and subreaper"
        }
    }

    /// The agent's run directory.
    pub(crate) fn run_dir(&self) -> &Path {
        Path::new(self.children.run_dir())
    }

    /// The cgroup that all that is started here is below.
    pub(crate) fn cgroup(&self) -> Option<&Path> {
        self.cgroups.as_ref().map(CgroupRoot::path)
    }

    /// CPU time that ended checks have used.
    pub(crate) fn cpu(&self) -> Duration {
        self.cpu.get()
    }

    /// Makes a run's scope; who its processes are.
    pub(crate) fn scope(
        &self,
        run: RunId,
        orphans: Orphans,
        identity: Option<Identity>,
    ) -> Result<RunScope, NotStarted> {
        let cgroup = self.cgroups.as_ref().map(|root| root.make(run.0));
        let cgroup = cgroup
            .transpose()
            .map_err(|error| NotStarted::new("cgroup", error))?;
        let folder = cgroup.as_ref().map(Cgroup::open).transpose();
        let folder = folder.map_err(|error| NotStarted::new("cgroup", error))?;
        let report = Report::new().map_err(|error| NotStarted::new("pipe", error))?;
        // A command of a host's, which has its pipes by now.
        if orphans == Orphans::ToAgent && is_kept_back(&report.read) {
            return Err(NotStarted::new("pipe", Errno::MFILE.into()));
        }
        let entry = Entry {
            cgroup: folder,
            report: report.needed(),
            protected: self.protected,
            descriptors: self.descriptors,
            subreaper: orphans == Orphans::ToLeader,
            identity,
        };
        Ok(RunScope {
            cgroup,
            mark: self.children.mark(run.0),
            orphans,
            report,
            entry,
        })
    }

    /// Waits for the turn to start a process, which is until this is dropped. A start takes a thousand
    /// times as long as a ping, and nothing else goes on meanwhile: so between one and the next all that
    /// is due has its own.
    pub(super) async fn turn(&self) -> Turn {
        self.turns.next().await
    }

    /// Begins the program in its scope. Whether it becomes that shows
    /// [later](Process::not_started): a slow disk can delay it without a bound.
    pub(crate) fn spawn(&self, program: Program, scope: RunScope) -> Result<Process, NotStarted> {
        self.spawn_witnessed(program, scope, None)
    }

    /// The same, with a witness of its end in between, which writes into the mark.
    pub(super) fn spawn_witnessed(
        &self,
        program: Program,
        scope: RunScope,
        mark: Option<OwnedFd>,
    ) -> Result<Process, NotStarted> {
        let begun = match mark {
            None => {
                let begun = scope.report.begin(program, &scope.entry, &self.starts);
                begun.map(|(pid, report)| (pid, report, None))
            }
            Some(mark) => {
                let begun = scope.report.begin_witnessed(&program, &scope.entry, &mark);
                begun.map(|(pid, report, told)| (pid, report, Some(told)))
            }
        };
        let (pid, report, told) = begun.map_err(|error| NotStarted::new("fork", error))?;
        let below = told.map(|told| Below {
            told,
            pid: Cell::default(),
        });
        let member = Member {
            pid,
            mark: scope.mark,
            cgroup: scope.cgroup.as_ref().map(|it| it.path().to_owned()),
            orphans: scope.orphans,
        };
        self.follow(member, scope.cgroup, Some(report), below)
    }

    /// Makes bare system calls in a process of their own: such as may hang in the kernel, where nothing
    /// reaches them. It enters no cgroup, since it starts nothing.
    pub(crate) fn call(&self, run: RunId, calls: &Calls) -> Result<Process, NotStarted> {
        let pid = fork(calls, &self.starts);
        let pid = pid.map_err(|error| NotStarted::new("fork", error))?;
        let member = Member {
            pid,
            mark: self.children.mark(run.0),
            cgroup: None,
            orphans: Orphans::ToLeader,
        };
        self.follow(member, None, None, None)
    }

    /// Follows a child that was just made, or ends it again.
    fn follow(
        &self,
        member: Member,
        cgroup: Option<Cgroup>,
        report: Option<OwnedFd>,
        below: Option<Below>,
    ) -> Result<Process, NotStarted> {
        let pid = member.pid;
        let exited = pidfd_open(pid, PidfdFlags::NONBLOCK)
            .map_err(io::Error::from)
            .and_then(|fd| Polled::new(fd, Interest::READABLE));
        match exited {
            Ok(exited) => {
                self.children.add(member);
                Ok(Process {
                    pid,
                    exited,
                    cgroup,
                    report,
                    below,
                })
            }
            Err(error) => {
                // It is reaped as an orphan.
                let _ = kill_process(pid, Signal::KILL);
                Err(NotStarted::new("pidfd_open", error))
            }
        }
    }

    /// Ends once more what an earlier agent with the same run directory has left.
    pub(crate) fn end_leftovers(&self) {
        self.children.end_leftovers();
    }

    /// What is readable once it has become its program or has reported why not, if that is still to come:
    /// mostly it was a matter of microseconds. Until it is settled then the agent has no protection from the
    /// OOM killer.
    pub(super) fn start_of(&self, process: &Process) -> Option<Polled> {
        if !self.starts.are_under_way() {
            return None;
        }
        let report = process.report.as_ref()?.try_clone().ok()?;
        Polled::new(report, Interest::READABLE).ok()
    }

    /// Takes the status of a process that has exited, and ends what it left running.
    pub(crate) async fn finish(&self, process: Process) -> Exit {
        self.finish_all(process).await.0
    }

    /// The same of a check, of which nothing is to be left when it is run again.
    pub(super) async fn finish_check(&self, check: &str, process: Process) -> Exit {
        let (exit, left) = self.finish_all(process).await;
        if let Some(cgroup) = left {
            self.stuck.add(check, Remains::Cgroup(cgroup));
        }
        exit
    }

    /// The same; gives its cgroup if somebody in it cannot be ended.
    async fn finish_all(&self, process: Process) -> (Exit, Option<PathBuf>) {
        self.starts.settle();
        // The dead leader still holds its number, so the group cannot be somebody else's.
        let leader = process.leader();
        let _ = kill_process_group(leader, Signal::KILL);
        let mut exit = self.reap(process.pid);
        if leader != process.pid {
            // Its witness has left it to the agent as it was.
            exit.cpu += self.reap(leader).cpu;
        }
        (exit, self.kill_remaining(process.cgroup).await)
    }

    /// Kills a process that is not waited for any more. It is reaped as an orphan.
    pub(super) fn kill_unwaited(&self, pid: Pid) {
        let _ = kill_process_group(pid, Signal::KILL);
        self.children.give_up(pid);
    }

    /// Gives up a process that even KILL does not end, and ends what it started, which would not
    /// come to the agent before it does. It is reaped as an orphan, should it end.
    pub(crate) fn abandon(&self, process: &Process) {
        Children::kill_below(process.leader());
        self.children.give_up(process.pid);
    }

    /// The same with a check, which is not run again before that has ended.
    pub(super) fn abandon_check(&self, check: &str, process: &Process) {
        self.abandon(process);
        let cgroup = process.cgroup.as_ref().map(|it| it.path().to_owned());
        let left = cgroup.map_or(Remains::Process(process.pid), Remains::Cgroup);
        self.stuck.add(check, left);
    }

    /// Whether something of an earlier run of that check cannot be ended.
    pub(super) fn is_stuck(&self, check: &str) -> bool {
        self.stuck.has(check, &self.children)
    }

    /// Starts the program in its scope, and waits until the process has become it; `what` it is, for
    /// the error. A disk that does not answer keeps it in the kernel, where nothing reaches it.
    pub(crate) async fn launch(
        &self,
        program: Program,
        scope: RunScope,
        what: &'static str,
    ) -> Result<Process, NotStarted> {
        let turn = self.turn().await;
        let mut process = self.spawn(program, scope)?;
        drop(turn);
        let started = tokio::time::timeout(START_WITHIN, process.started()).await;
        self.starts.settle();
        let not_started = match started {
            Ok(Ok(())) => return Ok(process),
            Ok(Err(error)) => NotStarted::new(what, error),
            Err(_) => NotStarted::new(
                "start within 10 s (does its disk answer?)",
                io::ErrorKind::TimedOut.into(),
            ),
        };
        process.kill();
        match tokio::time::timeout(KILL_GRACE, process.exited()).await {
            Ok(()) => {
                self.finish(process).await;
            }
            Err(_) => self.abandon(&process),
        }
        Err(not_started)
    }

    fn reap(&self, pid: Pid) -> Exit {
        let status = waitid(
            WaitId::Pid(pid),
            WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG,
        );
        let before = reaped_cpu();
        let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        let cpu = reaped_cpu().saturating_sub(before);
        self.children.remove(pid);
        match status {
            Ok(Some(status)) => Exit {
                code: status.exit_status(),
                signal: status.terminating_signal(),
                cpu,
            },
            _ => Exit::default(),
        }
    }

    /// Ends what the command left running. Mostly there is nothing, and this costs one call.
    /// Gives the cgroup if somebody in it cannot be ended.
    async fn kill_remaining(&self, cgroup: Option<Cgroup>) -> Option<PathBuf> {
        let mut left = None;
        if let Some(cgroup) = cgroup
            && !cgroup.give_back()
        {
            cgroup.kill();
            left = Some(cgroup.path().to_owned());
            let mut pause = Duration::from_millis(1);
            for _ in 0..12 {
                self.children.reap();
                if cgroup.give_back() {
                    left = None;
                    break;
                }
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
        }
        self.children.sweep().await;
        left
    }
}

impl Process {
    /// Waits for the end of the process itself.
    pub(crate) async fn exited(&self) {
        let _ = self.exited.readable().await;
    }

    /// Why it has not become a program, if it has ended for that.
    pub(crate) fn not_started(&self) -> Option<StartFailure> {
        let error = self.report.as_ref().and_then(reported)?.err()?;
        Some(StartFailure::from_error(&error))
    }

    /// Waits until it has become the program, or has reported why not.
    async fn started(&mut self) -> io::Result<()> {
        let Some(report) = self.report.take() else {
            return Ok(());
        };
        if let Some(told) = reported(&report) {
            return told;
        }
        let report = Polled::new(report, Interest::READABLE)?;
        let _ = report.readable().await;
        reported(report.get_ref()).unwrap_or(Ok(()))
    }

    /// What freezes it and all that it started, until `finished` is set.
    pub(crate) fn freezer(&self, finished: Rc<Cell<bool>>) -> Freezer {
        let cgroup = self.cgroup.as_ref().map(|it| it.path().to_owned());
        Freezer::new(self.pid, cgroup, finished)
    }

    /// The leader of its process group: the command itself.
    fn leader(&self) -> Pid {
        let Some(below) = &self.below else {
            return self.pid;
        };
        if below.pid.get().is_none() {
            below.pid.set(told_pid(&below.told));
        }
        // Without a number there is no command, or not yet.
        below.pid.get().unwrap_or(self.pid)
    }

    /// Sends a signal to its process group, or to itself if it has not come so far as to have one.
    pub(crate) fn signal(&self, signal: Signal) {
        let leader = self.leader();
        if kill_process_group(leader, signal).is_err() {
            let _ = kill_process(leader, signal);
        }
    }

    /// Kills it and all that it started, as far as that can be found while it lives.
    pub(crate) fn kill(&self) {
        if let Some(cgroup) = &self.cgroup {
            cgroup.kill();
        }
        self.signal(Signal::KILL);
    }
}
