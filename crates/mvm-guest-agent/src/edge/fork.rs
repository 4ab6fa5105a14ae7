//! A copy of the agent that makes a few system calls and ends: it costs much less than a program that
//! has to be started first (docs/performance.md).

use rustix::process::Pid;
use std::io;

/// Forks. The copy has a process group of its own and no descriptor but the first three: were it to
/// hang in the kernel, nothing of the agent's would hang with it, least of all its listening sockets.
/// It ends with what `work` returns, which may do nothing but make bare system calls on memory that
/// is there already.
#[expect(
    unsafe_code,
    reason = "there is no other way to a copy of this process"
)]
pub(super) fn fork(work: impl FnOnce() -> u8) -> io::Result<Pid> {
    use nix::libc;
    // SAFETY: the agent has one thread, so the copy is whole, and no lock in it is held by another.
    // The calls in it are async-signal-safe and take no memory; it leaves by `_exit`, so that nothing
    // of the agent's is flushed or dropped twice.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: as above.
        unsafe {
            libc::setpgid(0, 0);
            // Where the kernel does not know it (before 5.9) they stay open until the copy ends.
            libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0);
            libc::_exit(work().into());
        }
    }
    match Pid::from_raw(pid) {
        Some(pid) if pid.as_raw_pid() > 0 => {
            // Here as well: whichever of the two is first. It fails if the copy has ended.
            let _ = rustix::process::setpgid(Some(pid), Some(pid));
            Ok(pid)
        }
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use crate::core::RunId;
    use crate::core::ended::End;
    use crate::edge::process::Launcher;
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
    async fn a_copy_holds_nothing_of_the_agents_open() {
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
