//! Runs a command of a drop-in: starts its program, a shell for most, drains what it prints, ends it in time, and
//! ends all that it started.
//!
//! ```text
//!   start ──▶ running ──exit──▶ kill what is left ──▶ reap ──▶ drain ──▶ ended
//!                │                     ▲
//!                │ time is up          │ exit
//!                ▼                     │
//!              TERM ──250 ms──▶ KILL ──┤
//!                                      └──2 s──▶ abandoned: unkillable
//! ```

use super::calls::Calls;
use super::children::{MARK, Orphans};
use super::clock;
use super::end_mark;
use super::journal::Files;
use super::lifecycle_env;
use super::polled::Polled;
use super::process::{KILL_GRACE, Launcher, NotStarted, Process, TERM_GRACE};
use super::program::{Program, no_input, own_environment, set_variable};
use super::turns::between_pieces;
use super::users;
use crate::core::ended::{End, Ended, Tail};
use crate::core::registry::Command;
use crate::core::{Now, RunId, STOOD_STILL};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal};
use std::io;
use std::path::Path;
use std::time::Duration;
use tokio::io::Interest;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

/// How much is still read from a pipe once the command has ended. More than a pipe holds.
const DRAIN: usize = 1024 * 1024;

/// How much is read from it at once.
const PIECE: usize = 8192;

/// A child that is not waited for any more: it is killed, and reaped as an orphan.
struct Left<'a> {
    launcher: &'a Launcher,
    pid: Pid,
}

impl Drop for Left<'_> {
    fn drop(&mut self) {
        self.launcher.kill_unwaited(self.pid);
    }
}

struct Running {
    process: Process,
    /// The program's path; empty where there are bare calls alone.
    path: String,
    /// Which check it is of, if of one.
    check: Option<String>,
    stdout: Output,
    stderr: Output,
}

impl Launcher {
    /// Runs a command to its end. `cancel` ends it early.
    pub(crate) async fn run(
        &self,
        run: RunId,
        command: Command,
        cancel: oneshot::Receiver<()>,
    ) -> Ended {
        let turn = self.turn().await;
        let started = clock::now();
        let running = self.start(run, &command);
        drop(turn);
        let limit = command.timeout;
        self.to_the_end(running, started, limit, cancel).await
    }

    /// Makes bare system calls in a process of their own, which ends with what they give: such as may
    /// hang in the kernel, where nothing reaches them.
    pub(crate) async fn run_calls(&self, run: RunId, limit: Duration, calls: &Calls) -> Ended {
        let started = clock::now();
        let begun = self.call(run, calls).map_err(|why| not_started(&why));
        let left = begun.as_ref().ok().map(|process| Left {
            launcher: self,
            pid: process.pid,
        });
        let running = begun.map(|process| Running {
            process,
            path: String::new(),
            check: None,
            stdout: Output::default(),
            stderr: Output::default(),
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
        if command.is_check() && self.is_stuck(&command.what) {
            let reason = "what its last run has left is stuck in the kernel".to_owned();
            let for_want = false;
            return Err(End::NotStarted { reason, for_want });
        }
        let identity = match &command.user {
            Some(user) => {
                let found = users::look_up(Path::new("/etc"), user);
                let for_want = false;
                Some(found.map_err(|reason| End::NotStarted { reason, for_want })?)
            }
            None => None,
        };
        self.start_program(run, command, identity)
            .map_err(|why| not_started(&why))
    }

    fn start_program(
        &self,
        run: RunId,
        command: &Command,
        identity: Option<users::Identity>,
    ) -> Result<Running, NotStarted> {
        let pipe = |error: io::Error| NotStarted::new("pipe", error);
        let (stdout, stdout_end) = Output::open().map_err(pipe)?;
        let (stderr, stderr_end) = if command.split {
            Output::open().map_err(pipe)?
        } else {
            (Output::default(), stdout_end.try_clone().map_err(pipe)?)
        };
        let mut env = own_environment();
        if let Some(identity) = &identity {
            set_variable(&mut env, "USER", &identity.name);
            set_variable(&mut env, "LOGNAME", &identity.name);
            set_variable(&mut env, "HOME", &identity.home);
        }
        if let Some(context) = command.context {
            lifecycle_env::set(&mut env, context, self.run_dir());
        }
        // It ends in time, and so does what it leaves to be reaped meanwhile.
        let scope = self.scope(run, Orphans::ToLeader, identity)?;
        set_variable(&mut env, MARK, &scope.mark);
        let stdio = [no_input().map_err(pipe)?, stdout_end, stderr_end];
        let path = command.argv.get(..1).unwrap_or_default();
        let program = Program::new("/", path, &command.argv, env, stdio)
            .ok_or_else(|| NotStarted::new("a NUL in it", io::ErrorKind::InvalidInput.into()))?;
        // Without room for the mark it is run all the same, and once more if the agent is killed at a bad
        // moment.
        let mark = command.pays.as_ref();
        let mark = mark.and_then(|name| end_mark::begin(&Files::new(self.run_dir()), name).ok());
        let process = self.spawn_witnessed(program, scope, mark)?;
        Ok(Running {
            process,
            path: path.concat(),
            check: command.is_check().then(|| command.what.clone()),
            stdout,
            stderr,
        })
    }

    async fn see_through(
        &self,
        mut running: Running,
        timeout: Duration,
        mut cancel: oneshot::Receiver<()>,
        ended: &mut Ended,
    ) {
        let mut deadline = Instant::now() + timeout;
        let mut state = State::Running;
        let mut cancellable = true;
        let mut start = self.start_of(&running.process);
        loop {
            tokio::select! {
                () = running.process.exited() => break,
                () = is_readable(start.as_ref()), if start.is_some() => {
                    start = None;
                    self.starts.settle();
                }
                () = running.stdout.drain_into(&mut ended.stdout) => {}
                () = running.stderr.drain_into(&mut ended.stderr) => {}
                () = sleep_until(deadline) => match state {
                    // The guest has stood still, and the command with it: for how long it has run
                    // is not known.
                    State::Running if deadline.elapsed() > STOOD_STILL => {
                        deadline = Instant::now() + timeout;
                    }
                    State::Running => {
                        running.process.signal(Signal::TERM);
                        (state, deadline) = (State::Terminated, Instant::now() + TERM_GRACE);
                    }
                    State::Terminated => {
                        running.process.kill();
                        (state, deadline) = (State::Killed, Instant::now() + KILL_GRACE);
                    }
                    State::Killed => {
                        match &running.check {
                            Some(check) => self.abandon_check(check, &running.process),
                            None => self.abandon(&running.process),
                        }
                        ended.end = End::Unkillable;
                        return;
                    }
                },
                _ = &mut cancel, if cancellable => {
                    cancellable = false;
                    running.process.kill();
                    (state, deadline) = (State::Killed, Instant::now() + KILL_GRACE);
                }
            }
        }
        let not_started_for = running.process.not_started();
        let exit = match &running.check {
            Some(check) => self.finish_check(check, running.process).await,
            None => self.finish(running.process).await,
        };
        self.cpu.set(self.cpu.get() + exit.cpu);
        if let Some(failure) = not_started_for {
            ended.end = not_started(&NotStarted::new(running.path, failure.error()));
            return;
        }
        ended.end = match (state, exit.code, exit.signal) {
            (State::Running, Some(code), _) => End::Exited(code),
            (State::Running, None, Some(signal)) => End::Signaled(signal),
            (State::Running, None, None) => End::NotStarted {
                reason: "its exit status was taken by somebody else".to_owned(),
                for_want: false,
            },
            (_, exit_code, signal) => End::TimedOut { exit_code, signal },
        };
        running.stdout.drain_now(&mut ended.stdout);
        running.stderr.drain_now(&mut ended.stderr);
    }
}

/// Whatever there is to read, its end or an error among it.
async fn is_readable(file: Option<&Polled>) {
    if let Some(file) = file {
        let _ = file.readable().await;
    }
}

fn not_started(why: &NotStarted) -> End {
    End::NotStarted {
        reason: format!("{}: {}", why.what, why.error),
        for_want: why.is_resource_shortage(),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    Terminated,
    Killed,
}

/// The reading end of a command's output; nothing if it shares another's or has been closed.
#[derive(Default)]
struct Output(Option<Polled>);

impl Output {
    /// A pipe: the reading end in the runtime, the writing end for the command.
    fn open() -> io::Result<(Self, OwnedFd)> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&read, true)?;
        Ok((Self(Some(Polled::new(read, Interest::READABLE)?)), write))
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
                    Ok(read) => {
                        // There is more, and maybe there always will be.
                        if read == PIECE {
                            between_pieces().await;
                        }
                        read == 0
                    }
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
    let mut buffer = [0_u8; PIECE];
    let read = rustix::io::read(fd, &mut buffer)?;
    tail.push(buffer.get(..read).unwrap_or_default());
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::fcntl_setpipe_size;
    use std::cell::Cell;
    use std::rc::Rc;
    use tokio::task::{LocalSet, spawn_local};

    /// A command that prints faster than it is read, as it does if it is on the same CPU: a pipe that holds
    /// more than a turn's worth stands for it.
    #[tokio::test]
    async fn a_flood_of_output_lets_others_have_their_turn_after_each_piece() {
        let story = async {
            let (mut output, end) = Output::open().unwrap();
            let pieces = fcntl_setpipe_size(&end, 64 * PIECE).unwrap() / PIECE;
            let all = vec![b'x'; pieces * PIECE];
            assert_eq!(rustix::io::write(&end, &all).unwrap(), all.len());
            let turns = Rc::new(Cell::new(0));
            let others = Rc::clone(&turns);
            spawn_local(async move {
                loop {
                    others.set(others.get() + 1);
                    tokio::task::yield_now().await;
                }
            });
            let mut tail = Tail::default();
            for _ in 0..pieces {
                output.drain_into(&mut tail).await;
            }
            assert!(turns.get() >= pieces, "{} turns", turns.get());
        };
        LocalSet::new().run_until(story).await;
    }

    /// A disk that does not answer holds up a start as whoever has a lease on the file does.
    #[cfg(target_arch = "x86_64")]
    #[tokio::test]
    async fn what_a_slow_start_uses_of_the_agents_is_taken_back_when_it_is_a_program() {
        use nix::libc;
        use std::os::fd::AsRawFd as _;
        /// asm-generic/fcntl.h
        const F_SETSIG: i32 = 10;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("slow");
        std::fs::copy("/bin/sleep", &path).unwrap();
        let file = std::fs::File::open(&path).unwrap();
        let lease = |call: i32, argument: i32| {
            #[expect(unsafe_code, reason = "there is no binding of it")]
            // SAFETY: the call takes and gives numbers.
            let done = unsafe { libc::fcntl(file.as_raw_fd(), call, argument) };
            assert_eq!(done, 0);
        };
        lease(F_SETSIG, libc::SIGURG);
        lease(libc::F_SETLEASE, libc::F_WRLCK);
        let launcher = Launcher::new(dir.path(), false);
        let command = Command {
            what: "integration slow".to_owned(),
            argv: vec![path.to_string_lossy().into_owned(), "600".to_owned()],
            user: None,
            timeout: Duration::from_secs(900),
            split: false,
            context: None,
            pays: None,
        };
        let (cancel, cancelled) = oneshot::channel();
        let others = async {
            while !launcher.starts.are_under_way() {
                tokio::task::yield_now().await;
            }
            lease(libc::F_SETLEASE, libc::F_UNLCK);
            let is_done = async {
                while launcher.starts.are_under_way() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            let waited = tokio::time::timeout(Duration::from_secs(20), is_done).await;
            cancel.send(()).unwrap();
            assert!(waited.is_ok(), "it uses them while it runs");
        };
        let (ended, ()) = tokio::join!(launcher.run(RunId(1), command, cancelled), others);
        assert!(matches!(ended.end, End::TimedOut { .. }), "{:?}", ended.end);
    }
}
