//! Copies of the agent: those that make a few system calls and end, which costs much less than a
//! program that has to be started first (docs/performance.md), and those that become a program.
//!
//! Either may hang in the kernel, since the disk does that the program lies on or the filesystem that
//! is to be synced. So nobody waits here for longer than a moment, and it has no descriptor but those
//! that it needs: nothing of the agent's hangs with it, least of all its listening sockets.

use nix::libc;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsRawFd, OwnedFd, RawFd};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Forks. The copy has a process group of its own, and ends with what `work` returns, which may do
/// nothing but make bare system calls on memory that is there already.
pub(super) fn fork(work: impl FnOnce() -> u8) -> io::Result<Pid> {
    let pid = copy(|| {
        let _ = rustix::process::setpgid(None, None);
        close_all_but(None);
        work()
    })?;
    // Here as well: whichever of the two is first. It fails if the copy has ended.
    let _ = rustix::process::setpgid(Some(pid), Some(pid));
    Ok(pid)
}

/// How long a copy is waited for all the same. Mostly it is a program by then; and as long as it is
/// not, each page that the agent writes is copied for it, which was measured to cost more than to
/// stand still.
const MOMENT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 5_000_000,
};

/// By which a copy of the agent tells why it has not become a program. It is closed when it has.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) read: OwnedFd,
    write: OwnedFd,
}

impl Report {
    pub(super) fn new() -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&read, true)?;
        Ok(Self { read, write })
    }

    /// The descriptor that the copy needs until the end.
    pub(super) fn needed(&self) -> RawFd {
        self.write.as_raw_fd()
    }

    /// Forks, and has the copy become a program. Gives the end at which the report comes.
    pub(super) fn begin(self, command: &mut Command) -> io::Result<(Pid, OwnedFd)> {
        let Self { read, write } = self;
        let pid = copy(|| {
            let error = command.exec();
            let number = error.raw_os_error().unwrap_or(libc::EINVAL);
            let _ = rustix::io::write(&write, &number.to_ne_bytes());
            127
        })?;
        drop(write);
        let _ = poll(&mut [PollFd::new(&read, PollFlags::IN)], Some(&MOMENT));
        Ok((pid, read))
    }
}

/// What became of a copy that was to become a program; nothing if that is not told yet.
pub(super) fn reported(report: &OwnedFd) -> Option<io::Result<()>> {
    let mut number = [0; 4];
    match rustix::io::read(report, &mut number) {
        Ok(0) => Some(Ok(())),
        Ok(4) => Some(Err(io::Error::from_raw_os_error(i32::from_ne_bytes(
            number,
        )))),
        _ => None,
    }
}

/// In a copy: closes what is the agent's, but for one descriptor and the first three. Where the
/// kernel does not know the call (before 5.9) they stay open until the copy ends.
pub(super) fn close_all_but(needed: Option<RawFd>) {
    const FIRST: u32 = 3;
    let close = |first: u32, last: u32| {
        if first <= last {
            #[expect(unsafe_code, reason = "the calls of this process alone are affected")]
            // SAFETY: in a copy, which leaves by execve or _exit and drops none of what it closes.
            unsafe {
                libc::syscall(libc::SYS_close_range, first, last, 0);
            }
        }
    };
    match needed.and_then(|needed| u32::try_from(needed).ok()) {
        Some(needed) => {
            close(FIRST, needed.saturating_sub(1));
            close(needed.saturating_add(1).max(FIRST), u32::MAX);
        }
        None => close(FIRST, u32::MAX),
    }
}

#[expect(
    unsafe_code,
    reason = "there is no other way to a copy of this process"
)]
fn copy(child: impl FnOnce() -> u8) -> io::Result<Pid> {
    // SAFETY: the agent has one thread, so the copy is whole, and no lock in it is held by another.
    // It leaves by execve or `_exit`, so that nothing of the agent's is flushed or dropped twice.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let code = child();
        // SAFETY: as above.
        unsafe { libc::_exit(code.into()) }
    }
    let failed = io::Error::last_os_error;
    if pid < 0 {
        return Err(failed());
    }
    Pid::from_raw(pid).ok_or_else(failed)
}

#[cfg(test)]
mod tests {
    use crate::core::RunId;
    use crate::core::ended::End;
    use crate::machine::process::Launcher;
    use rustix::process::{Pid, Signal, WaitOptions, waitpid};
    use std::fs::File;
    use std::os::fd::{AsRawFd, BorrowedFd};
    use std::time::Duration;

    async fn end_of(limit: Duration, work: impl FnOnce() -> u8) -> End {
        let dir = tempfile::tempdir().unwrap();
        let launcher = Launcher::new(dir.path(), false);
        launcher.run_copy(RunId(1), limit, work).await.end
    }

    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_copy_ends_with_what_its_work_returns() {
        assert_eq!(end_of(LONG, || 7).await, End::Exited(7));
    }

    #[tokio::test]
    #[expect(
        unsafe_code,
        reason = "the test looks at a descriptor that may be closed"
    )]
    async fn a_copy_has_none_of_the_agents_descriptors() {
        let file = File::open("/dev/null").unwrap();
        let number = file.as_raw_fd();
        // SAFETY: nothing is done with it but to ask the kernel whether it is one.
        let look = || rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(number) });
        assert!(look().is_ok());
        let closed = end_of(LONG, || u8::from(look().is_err())).await;
        assert_eq!(closed, End::Exited(1));
        assert!(look().is_ok());
    }

    fn hang() -> u8 {
        loop {
            std::thread::park();
        }
    }

    #[tokio::test]
    async fn a_copy_that_hangs_is_ended() {
        let end = end_of(Duration::from_millis(50), hang).await;
        assert!(matches!(end, End::TimedOut { .. }), "{end:?}");
    }

    #[tokio::test]
    async fn a_copy_that_nobody_waits_for_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let launcher = Launcher::new(dir.path(), false);
        let hanging = launcher.run_copy(RunId(1), LONG, hang);
        let given_up = tokio::time::timeout(Duration::from_millis(20), hanging).await;
        assert!(given_up.is_err());
        // Of this thread alone: other tests have theirs.
        let copy = std::fs::read_to_string("/proc/thread-self/children").unwrap();
        let copy = Pid::from_raw(copy.trim().parse().unwrap());
        let ended = tokio::task::spawn_blocking(move || waitpid(copy, WaitOptions::empty()));
        let ended = tokio::time::timeout(LONG, ended).await.unwrap().unwrap();
        let (_, status) = ended.unwrap().unwrap();
        assert_eq!(status.terminating_signal(), Some(Signal::KILL.as_raw()));
    }
}
