//! Runs a command: starts it, drains what it prints, ends it in time, and ends all that it started.
//!
//! ```text
//!   start ──▶ running ──exit──▶ kill what is left ──▶ reap ──▶ drain ──▶ ended
//!                │                     ▲
//!                │ time is up          │ exit
//!                ▼                     │
//!              TERM ──250 ms──▶ KILL ──┤
//!                                      └──2 s──▶ abandoned: unkillable
//! ```

use super::cgroup::{Cgroup, CgroupRoot};
use super::children::{Children, MARK};
use super::clock;
use super::fork::fork;
use super::polled::polled;
use super::users::{self, Identity};
use crate::core::ended::{End, Ended, Tail};
use crate::core::registry::Command;
use crate::core::{Now, RunId};
use nix::sys::resource::{UsageWho, getrusage};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitOptions, kill_process_group, pidfd_open,
    waitid, waitpid,
};
use std::cell::Cell;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

/// Between TERM and KILL.
const TERM_GRACE: Duration = Duration::from_millis(250);

/// Between KILL and giving up.
const KILL_GRACE: Duration = Duration::from_secs(2);

/// How much is still read from a pipe once the command has ended. More than a pipe holds.
const DRAIN: usize = 1024 * 1024;

/// Starts commands and ends them.
#[derive(Debug)]
pub(crate) struct Launcher {
    children: Children,
    cgroups: Option<CgroupRoot>,
    /// Whether the agent has made itself hard to kill for want of memory. Its children are not.
    protected: bool,
    cpu: Cell<Duration>,
}

/// A child that nobody waits for any more: it is killed, and reaped as an orphan once it is dead.
struct Left<'a> {
    children: &'a Children,
    pid: Pid,
}

impl Drop for Left<'_> {
    fn drop(&mut self) {
        let _ = kill_process_group(self.pid, Signal::KILL);
        self.children.remove(self.pid);
    }
}

struct Running {
    pid: Pid,
    exited: AsyncFd<OwnedFd>,
    stdout: Output,
    stderr: Output,
    cgroup: Option<Cgroup>,
}

impl Launcher {
    pub(crate) fn new(run_dir: &Path, protected: bool) -> Self {
        let cgroups = CgroupRoot::open(run_dir);
        let children = Children::new(run_dir, cgroups.is_some());
        Self {
            children,
            cgroups,
            protected,
            cpu: Cell::default(),
        }
    }

    /// How whole trees are ended here.
    pub(crate) fn means(&self) -> &'static str {
        if self.cgroups.is_some() {
            "cgroup"
        } else {
            "process group and subreaper"
        }
    }

    /// CPU time that ended commands have used.
    pub(crate) fn cpu(&self) -> Duration {
        self.cpu.get()
    }

    /// Runs a command to its end. `cancel` ends it early.
    pub(crate) async fn run(
        &self,
        run: RunId,
        command: Command,
        cancel: oneshot::Receiver<()>,
    ) -> Ended {
        let started = clock::now();
        let running = self.start(run, &command);
        let limit = command.timeout;
        self.to_the_end(running, started, limit, cancel).await
    }

    /// Makes bare system calls in a copy of the agent, which ends with what `work` returns: calls
    /// that may hang in the kernel, where nothing reaches them.
    pub(crate) async fn run_copy(
        &self,
        run: RunId,
        limit: Duration,
        work: impl FnOnce() -> u8,
    ) -> Ended {
        let started = clock::now();
        let running = fork(work)
            .map_err(|error| not_started("fork", &error))
            .and_then(|pid| {
                let mark = self.children.mark(run.0);
                self.follow(pid, mark, Output::default(), Output::default(), None)
            });
        let left = running.as_ref().ok().map(|running| Left {
            children: &self.children,
            pid: running.pid,
        });
        // Nobody cancels it: whoever waits for it stops waiting, and then it is left.
        let (_keep, never) = oneshot::channel();
        let ended = self.to_the_end(running, started, limit, never).await;
        std::mem::forget(left);
        ended
    }

    async fn to_the_end(
        &self,
        running: Result<Running, End>,
        started: Now,
        limit: Duration,
        cancel: oneshot::Receiver<()>,
    ) -> Ended {
        let mut ended = Ended {
            at: started.wall,
            duration: Duration::ZERO,
            end: End::Exited(0),
            stdout: Tail::default(),
            stderr: Tail::default(),
        };
        match running {
            Ok(running) => self.see_through(running, limit, cancel, &mut ended).await,
            Err(end) => ended.end = end,
        }
        ended.duration = clock::now().mono.saturating_sub(started.mono);
        ended
    }

    fn start(&self, run: RunId, command: &Command) -> Result<Running, End> {
        let identity =
            match &command.user {
                Some(user) => Some(users::look_up(Path::new("/etc"), user).map_err(|reason| {
                    End::NotStarted {
                        reason,
                        for_want: false,
                    }
                })?),
                None => None,
            };
        let cgroup = match &self.cgroups {
            Some(root) => Some(
                root.make(run.0)
                    .map_err(|error| not_started("cgroup", &error))?,
            ),
            None => None,
        };
        let mark = self.children.mark(run.0);
        let (stdout, stdout_end) = Output::open().map_err(|error| not_started("pipe", &error))?;
        let (stderr, stderr_end) = if command.split {
            Output::open().map_err(|error| not_started("pipe", &error))?
        } else {
            let same = stdout_end
                .try_clone()
                .map_err(|error| not_started("pipe", &error))?;
            (Output::default(), same)
        };
        let mut shell = std::process::Command::new("/bin/sh");
        shell
            .arg("-c")
            .arg(&command.text)
            .stdin(Stdio::null())
            .stdout(Stdio::from(stdout_end))
            .stderr(Stdio::from(stderr_end))
            .current_dir("/")
            .process_group(0)
            .env(MARK, &mark);
        if let Some(identity) = &identity {
            shell.env("USER", &identity.name);
            shell
                .env("LOGNAME", &identity.name)
                .env("HOME", &identity.home);
        }
        let procs = match &cgroup {
            Some(cgroup) => Some(
                cgroup
                    .procs()
                    .map_err(|error| not_started("cgroup.procs", &error))?,
            ),
            None => None,
        };
        prepare(&mut shell, procs, self.protected, identity);
        let spawned = shell.spawn();
        drop(shell);
        let child = match spawned {
            Ok(child) => child,
            Err(error) => {
                if let Some(cgroup) = &cgroup {
                    cgroup.remove();
                }
                return Err(not_started("/bin/sh", &error));
            }
        };
        self.follow(Pid::from_child(&child), mark, stdout, stderr, cgroup)
    }

    /// Follows a child that was just made, or ends it again.
    fn follow(
        &self,
        pid: Pid,
        mark: String,
        stdout: Output,
        stderr: Output,
        cgroup: Option<Cgroup>,
    ) -> Result<Running, End> {
        let exited = pidfd_open(pid, PidfdFlags::NONBLOCK)
            .map_err(io::Error::from)
            .and_then(|fd| polled(fd, Interest::READABLE));
        match exited {
            Ok(exited) => {
                self.children.add(pid, mark);
                Ok(Running {
                    pid,
                    exited,
                    stdout,
                    stderr,
                    cgroup,
                })
            }
            Err(error) => {
                let _ = kill_process_group(pid, Signal::KILL);
                let _ = waitpid(Some(pid), WaitOptions::empty());
                Err(not_started("pidfd_open", &error))
            }
        }
    }

    async fn see_through(
        &self,
        mut running: Running,
        timeout: Duration,
        mut cancel: oneshot::Receiver<()>,
        ended: &mut Ended,
    ) {
        let mut deadline = Instant::now() + timeout;
        let mut stage = Stage::Running;
        let mut cancellable = true;
        loop {
            tokio::select! {
                _ = running.exited.readable() => break,
                () = running.stdout.drain_into(&mut ended.stdout) => {}
                () = running.stderr.drain_into(&mut ended.stderr) => {}
                () = sleep_until(deadline) => match stage {
                    Stage::Running => {
                        let _ = kill_process_group(running.pid, Signal::TERM);
                        (stage, deadline) = (Stage::Terminated, deadline + TERM_GRACE);
                    }
                    Stage::Terminated => {
                        running.kill();
                        (stage, deadline) = (Stage::Killed, deadline + KILL_GRACE);
                    }
                    Stage::Killed => {
                        self.children.remove(running.pid);
                        ended.end = End::Unkillable;
                        return;
                    }
                },
                _ = &mut cancel, if cancellable => {
                    cancellable = false;
                    running.kill();
                    (stage, deadline) = (Stage::Killed, Instant::now() + KILL_GRACE);
                }
            }
        }
        // The dead leader still holds its number, so the group cannot be somebody else's.
        let _ = kill_process_group(running.pid, Signal::KILL);
        ended.end = self.reap(running.pid, stage);
        self.end_rest(running.cgroup.take()).await;
        running.stdout.drain_now(&mut ended.stdout);
        running.stderr.drain_now(&mut ended.stderr);
    }

    fn reap(&self, pid: Pid, stage: Stage) -> End {
        let status = waitid(
            WaitId::Pid(pid),
            WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG,
        );
        let before = children_cpu();
        let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        self.cpu
            .set(self.cpu.get() + children_cpu().saturating_sub(before));
        self.children.remove(pid);
        let (exit_code, signal) = match status {
            Ok(Some(status)) => (status.exit_status(), status.terminating_signal()),
            _ => (None, None),
        };
        match (stage, exit_code, signal) {
            (Stage::Running, Some(code), _) => End::Exited(code),
            (Stage::Running, None, Some(signal)) => End::Signaled(signal),
            (Stage::Running, None, None) => End::NotStarted {
                reason: "its exit status was taken by somebody else".to_owned(),
                for_want: false,
            },
            (_, exit_code, signal) => End::TimedOut { exit_code, signal },
        }
    }

    /// Ends what the command left running. Mostly there is nothing, and this costs one call.
    async fn end_rest(&self, cgroup: Option<Cgroup>) {
        match cgroup {
            Some(cgroup) if cgroup.remove() => {
                self.children.reap();
            }
            Some(cgroup) => {
                cgroup.kill();
                let mut pause = Duration::from_millis(1);
                for _ in 0..12 {
                    self.children.reap();
                    if cgroup.remove() {
                        break;
                    }
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
            }
            None => self.children.sweep().await,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Running,
    Terminated,
    Killed,
}

impl Running {
    fn kill(&self) {
        if let Some(cgroup) = &self.cgroup {
            cgroup.kill();
        }
        let _ = kill_process_group(self.pid, Signal::KILL);
    }
}

/// The reading end of a command's output; nothing if it shares another's or has been closed.
#[derive(Default)]
struct Output(Option<AsyncFd<OwnedFd>>);

impl Output {
    /// A pipe: the reading end in the runtime, the writing end for the command.
    fn open() -> io::Result<(Self, OwnedFd)> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&read, true)?;
        Ok((Self(Some(polled(read, Interest::READABLE)?)), write))
    }

    /// Takes what comes next. Never ends once the pipe is closed, so that a `select!` goes on.
    async fn drain_into(&mut self, tail: &mut Tail) {
        let closed = match &self.0 {
            None => std::future::pending().await,
            Some(fd) => match fd.readable().await {
                Err(_) => true,
                Ok(mut guard) => match read_once(fd.get_ref(), tail) {
                    Err(Errno::WOULDBLOCK) => {
                        guard.clear_ready();
                        false
                    }
                    Err(Errno::INTR) => false,
                    Ok(read) => read == 0,
                    Err(_) => true,
                },
            },
        };
        if closed {
            self.0 = None;
        }
    }

    /// Takes what is in the pipe, whoever still holds its other end.
    fn drain_now(&mut self, tail: &mut Tail) {
        let Some(fd) = self.0.take() else { return };
        let mut drained = 0;
        while let Ok(read @ 1..) = read_once(fd.get_ref(), tail) {
            drained += read;
            if drained > DRAIN {
                break;
            }
        }
    }
}

fn read_once(fd: &OwnedFd, tail: &mut Tail) -> Result<usize, Errno> {
    let mut buffer = [0_u8; 8192];
    let read = rustix::io::read(fd, &mut buffer)?;
    tail.push(buffer.get(..read).unwrap_or_default());
    Ok(read)
}

/// What the new process does to itself before it becomes the shell.
#[expect(
    unsafe_code,
    reason = "there is no other way to act between fork and exec"
)]
fn prepare(
    shell: &mut std::process::Command,
    procs: Option<OwnedFd>,
    protected: bool,
    identity: Option<Identity>,
) {
    if procs.is_none() && !protected && identity.is_none() {
        // Nothing to do, and without this the C library can use the cheaper vfork.
        return;
    }
    let child = move || {
        if let Some(procs) = &procs {
            rustix::io::write(procs, b"0")?;
        }
        if protected {
            let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC;
            let file = rustix::fs::open(
                c"/proc/self/oom_score_adj",
                flags,
                rustix::fs::Mode::empty(),
            )?;
            rustix::io::write(&file, b"0")?;
        }
        if let Some(identity) = &identity {
            rustix::thread::set_thread_groups(&identity.groups)?;
            rustix::thread::set_thread_gid(identity.gid)?;
            rustix::thread::set_thread_uid(identity.uid)?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes bare system calls on memory that was
    // allocated before; the agent has one thread, so no lock can be held by another.
    unsafe {
        shell.pre_exec(child);
    }
}

fn not_started(what: &str, error: &io::Error) -> End {
    let errno = Errno::from_io_error(error);
    let for_want = matches!(
        errno,
        Some(Errno::AGAIN | Errno::NOMEM | Errno::MFILE | Errno::NFILE | Errno::NOSPC)
    );
    End::NotStarted {
        reason: format!("{what}: {error}"),
        for_want,
    }
}

/// CPU time of all children that were reaped, and of theirs.
fn children_cpu() -> Duration {
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
