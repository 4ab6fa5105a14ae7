//! New processes of the agent's: those that make a few system calls and end, which costs much less than
//! a program that has to be started first (docs/performance.md), and those that become a program. They
//! share the agent's memory for so long, where they can: see [`shared_start`](super::shared_start). Else
//! they are copies of the agent.
//!
//! A restore command has one between it and the agent that stays a copy: see [`end_mark`](super::end_mark).
//!
//! Either may hang in the kernel, since the disk does that the program lies on or the filesystem that
//! is to be synced. So nobody waits here for longer than a moment, and it has no descriptor but those
//! that it needs: nothing of the agent's hangs with it, least of all its listening sockets.

use super::calls::Calls;
use super::cgroup::CLONE_INTO_CGROUP;
use super::end_mark::{ENDED, FAILED};
use super::inherited::close_all_but;
use super::program::{Entry, Joined, Program};
#[cfg(target_arch = "x86_64")]
pub(super) use super::shared_start::SharedStarts as Starts;
use nix::libc;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{DumpableBehavior, Pid, WaitId, WaitIdOptions, waitid};
use std::io;

/// Has a new process make these calls, which has a process group of its own.
pub(super) fn fork(calls: &Calls, starts: &Starts) -> io::Result<Pid> {
    let pid = match starts.call(calls) {
        Some(pid) => pid,
        None => copy(None, |_| calls.make())?,
    };
    // Here as well: whichever of the two is first. It fails if the other has ended.
    let _ = rustix::process::setpgid(Some(pid), Some(pid));
    Ok(pid)
}

/// Where nothing shares the agent's memory.
#[cfg(not(target_arch = "x86_64"))]
#[derive(Debug)]
pub(super) struct Starts;

#[cfg(not(target_arch = "x86_64"))]
impl Starts {
    pub(super) fn new(_protected: bool) -> Self {
        Self
    }

    pub(super) fn begin(&self, program: Program, _entry: &Entry) -> Result<Pid, Program> {
        Err(program)
    }

    pub(super) fn call(&self, _calls: &Calls) -> Option<Pid> {
        None
    }

    pub(super) fn are_under_way(&self) -> bool {
        false
    }

    pub(super) fn settle(&self) {}
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

    /// Has a new process become a program. Gives the end at which the report comes.
    pub(super) fn begin(
        self,
        program: Program,
        entry: &Entry,
        starts: &Starts,
    ) -> io::Result<(Pid, OwnedFd)> {
        let Self { read, write } = self;
        let pid = match starts.begin(program, entry) {
            Ok(pid) => pid,
            Err(program) => copy_as(&program, entry, &write, || {})?,
        };
        drop(write);
        // Also one that failed is waited for until it has ended: it is a moment more.
        let _ = poll(&mut [PollFd::new(&read, PollFlags::empty())], Some(&MOMENT));
        starts.settle();
        Ok((pid, read))
    }

    /// The same with a witness in between, which stays a copy until the program has ended: then it
    /// writes that into the mark, unless a signal ended it, and ends in the same way. Gives the witness,
    /// the end at which the report comes, and that at which the program's number comes.
    pub(super) fn begin_witnessed(
        self,
        program: &Program,
        entry: &Entry,
        mark: &OwnedFd,
    ) -> io::Result<(Pid, OwnedFd, OwnedFd)> {
        let Self { read, write } = self;
        let (told, tell) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&told, true)?;
        let pid = copy(None, |_| {
            let _ = rustix::process::setpgid(None, None);
            block_signals();
            // Its cgroup may be gone, since a new agent has ended what it found: that is no end of a
            // command that was run.
            let begun = copy_as(program, entry, &write, || end_by(libc::SIGKILL));
            let pid = match begun {
                Ok(pid) => pid,
                Err(error) => {
                    let number = error.raw_os_error().unwrap_or(libc::EAGAIN);
                    let _ = rustix::io::write(&write, &number.to_ne_bytes());
                    return 127;
                }
            };
            let _ = rustix::io::write(&tell, &pid.as_raw_pid().to_ne_bytes());
            witness(pid, program, mark)
        })?;
        drop((write, tell));
        let _ = poll(&mut [PollFd::new(&read, PollFlags::IN)], Some(&MOMENT));
        Ok((pid, read, told))
    }
}

/// A copy that becomes the program, or tells the number by which it is known why it has not, and ends.
fn copy_as(
    program: &Program,
    entry: &Entry,
    report: &OwnedFd,
    end: impl FnOnce(),
) -> io::Result<Pid> {
    copy(entry.cgroup.as_ref().map(AsFd::as_fd), |joined| {
        let number = program.begin(entry, joined);
        let _ = rustix::io::write(report, &number.to_ne_bytes());
        end();
        127
    })
}

/// The number that a witness has told.
pub(super) fn told_pid(told: &OwnedFd) -> Option<Pid> {
    let mut number = [0; 4];
    match rustix::io::read(told, &mut number) {
        Ok(4) => Pid::from_raw(i32::from_ne_bytes(number)),
        _ => None,
    }
}

/// Waits for the end of its command, and leaves its status to the agent.
fn witness(pid: Pid, program: &Program, mark: &OwnedFd) -> u8 {
    // Not to be taken for the agent by whoever looks for that by its name.
    let _ = rustix::thread::set_name(c"mvm-witness");
    program.give_up_stdio();
    close_all_but(&[Some(mark.as_raw_fd())]);
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    let Ok(Some(status)) = waitid(WaitId::Pid(pid), options) else {
        return 127;
    };
    if let Some(signal) = status.terminating_signal() {
        end_by(signal);
    }
    let Some(code) = status.exit_status() else {
        return 127;
    };
    let word = if code == 0 { ENDED } else { FAILED };
    let _ = rustix::io::pwrite(mark, word, 0);
    u8::try_from(code).unwrap_or(127)
}

/// What comes to a witness is meant for its command, which has a group of its own.
#[expect(unsafe_code, reason = "no safe binding blocks signals")]
fn block_signals() {
    // SAFETY: the set is initialised before it is read.
    unsafe {
        let mut all = std::mem::zeroed::<libc::sigset_t>();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
    }
}

/// Ends by the signal by which the command has ended, and leaves no core of the agent's memory.
#[expect(unsafe_code, reason = "no safe binding sets a signal to its default")]
fn end_by(signal: i32) {
    let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
    // SAFETY: no handler is set, and the set is initialised before it is read.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        let mut one = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut one);
        libc::sigaddset(&raw mut one, signal);
        libc::raise(signal);
        libc::sigprocmask(libc::SIG_UNBLOCK, &raw const one, std::ptr::null_mut());
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

/// Whether this is the only thread. A copy of one of several would find locks that nobody gives
/// back, first of all the allocator's. The kernel lets a thread leave its process if there is no
/// other to leave behind (unshare(2)), and where it may not be asked it is not known to be wrong.
#[expect(unsafe_code, reason = "no safe binding knows this flag")]
pub(crate) fn is_only_thread() -> bool {
    // SAFETY: this changes nothing: it is refused, or there is nothing to be separated from.
    let alone = unsafe { libc::unshare(libc::CLONE_THREAD) } == 0;
    alone || io::Error::last_os_error().raw_os_error() != Some(libc::EINVAL)
}

/// A copy of this process, if possible born in that cgroup: to join it later the kernel waits until no
/// other process is being made or ends, which on a busy machine takes milliseconds.
#[expect(
    unsafe_code,
    reason = "there is no other way to a copy of this process"
)]
pub(super) fn copy(
    cgroup: Option<BorrowedFd<'_>>,
    child: impl FnOnce(Joined) -> u8,
) -> io::Result<Pid> {
    // The harness of the tests has threads of its own.
    if !cfg!(test) && !is_only_thread() {
        return Err(io::Error::other("there is more than one thread"));
    }
    let failed = io::Error::last_os_error;
    // SAFETY: the agent has one thread, so the copy is whole, and no lock in it is held by another.
    // It leaves by execve or `_exit`, so that nothing of the agent's is flushed or dropped twice.
    let born = cgroup.map(|cgroup| unsafe { copy_into(cgroup) });
    let (pid, joined) = match born {
        Some(pid) if pid >= 0 => (pid, Joined::Yes),
        // What fork(2) does not get either.
        Some(_) if is_shortage(&failed()) => return Err(failed()),
        // Before Linux 5.7, or where it is filtered.
        // SAFETY: as above.
        Some(_) | None => (unsafe { libc::fork() }, Joined::No),
    };
    if pid == 0 {
        let code = child(joined);
        // SAFETY: as above.
        unsafe { libc::_exit(code.into()) }
    }
    if pid < 0 {
        return Err(failed());
    }
    Pid::from_raw(pid).ok_or_else(failed)
}

fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOMEM))
}

/// As fork(2), but that the new process is in the cgroup of that folder from the first: clone3(2).
///
/// # Safety
///
/// That of fork(2). Nothing is run at the fork either: the C library knows nothing of it.
#[expect(unsafe_code, reason = "the C library has no such call")]
unsafe fn copy_into(cgroup: BorrowedFd<'_>) -> i32 {
    // SAFETY: all zeros is a valid value of it, and means that nothing is asked for.
    let mut arguments = unsafe { std::mem::zeroed::<libc::clone_args>() };
    arguments.flags = CLONE_INTO_CGROUP;
    arguments.exit_signal = u64::try_from(libc::SIGCHLD).unwrap_or_default();
    arguments.cgroup = u64::try_from(cgroup.as_raw_fd()).unwrap_or(u64::MAX);
    // SAFETY: the arguments live as long as the call, which is told their size. Without a stack of its
    // own the new process goes on with a copy of this one's.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const arguments,
            size_of::<libc::clone_args>(),
        )
    };
    i32::try_from(pid).unwrap_or(-1)
}

#[cfg(test)]
mod tests {
    use super::{Calls, Joined, Report, copy, poll};
    use crate::core::RunId;
    use crate::core::ended::End;
    use crate::machine::cgroup::CgroupRoot;
    use crate::machine::process::Launcher;
    use crate::machine::program::{Entry, Program, StartFailure, no_input};
    use crate::machine::users;
    use rustix::fd::AsFd;
    use rustix::io::Errno;
    use rustix::process::{Pid, Signal, WaitOptions, waitpid};
    use std::alloc::{GlobalAlloc, Layout, System};
    use std::ffi::{CStr, CString};
    use std::fs::File;
    use std::io;
    use std::os::fd::{AsRawFd, BorrowedFd};
    use std::path::Path;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    fn calls(about: &str, function: fn(&CStr, Option<u64>) -> u8) -> Calls {
        let about = CString::new(about).unwrap();
        Calls {
            about,
            device: None,
            function,
        }
    }

    async fn end_of(limit: Duration, calls: Calls) -> End {
        let dir = tempfile::tempdir().unwrap();
        let launcher = Launcher::new(dir.path(), false);
        launcher.run_calls(RunId(1), limit, &calls).await.end
    }

    const LONG: Duration = Duration::from_secs(20);

    /// What this process has allocated, counted.
    struct Counting;

    static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

    #[global_allocator]
    static ALLOCATOR: Counting = Counting;

    #[expect(unsafe_code, reason = "there is no safe allocator")]
    // SAFETY: all is left to the system's own.
    unsafe impl GlobalAlloc for Counting {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            ALLOCATED.fetch_add(1, Ordering::Relaxed);
            // SAFETY: as the caller has promised.
            unsafe { System.alloc(layout) }
        }

        unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
            // SAFETY: as the caller has promised.
            unsafe { System.dealloc(pointer, layout) }
        }
    }

    /// Its allocator's lock may be held by a thread that it has no copy of.
    #[tokio::test]
    async fn a_copy_that_becomes_a_program_allocates_nothing() {
        let report = Report::new().unwrap();
        let is_root = rustix::process::geteuid().is_root();
        let nobody = || users::look_up(Path::new("/etc"), "nobody").unwrap();
        let entry = Entry {
            cgroup: None,
            report: report.needed(),
            protected: is_root,
            descriptors: Some(rustix::process::getrlimit(
                rustix::process::Resource::Nofile,
            )),
            subreaper: true,
            identity: is_root.then(nobody),
        };
        let paths = ["/nonexistent/a", "/nonexistent/b"].map(str::to_owned);
        let env = vec![("A".into(), "b".into())];
        let stdio = [(); 3].map(|()| no_input().unwrap());
        let program = Program::new("/", &paths, &["a", "b"], env, stdio).unwrap();
        let copied = copy(None, |joined| {
            let before = ALLOCATED.load(Ordering::Relaxed);
            let number = program.begin(&entry, joined);
            let allocated = ALLOCATED.load(Ordering::Relaxed) - before;
            let error = io::Error::from_raw_os_error(number);
            match StartFailure::from_error(&error) {
                StartFailure::Program(Errno::NOENT) => u8::try_from(allocated).unwrap_or(99),
                _ => 100,
            }
        });
        let (_, status) = waitpid(Some(copied.unwrap()), WaitOptions::empty())
            .unwrap()
            .unwrap();
        assert_eq!(status.exit_status(), Some(0), "{status:?}");
    }

    #[tokio::test]
    async fn calls_end_with_what_they_give() {
        let calls = calls("", |_, _| 7);
        assert_eq!(end_of(LONG, calls.clone()).await, End::Exited(7));
        // Where no memory can be shared.
        let pid = copy(None, |_| calls.make()).unwrap();
        let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
        assert_eq!(status.exit_status(), Some(7));
    }

    #[tokio::test]
    #[expect(
        unsafe_code,
        reason = "the test looks at a descriptor that may be closed"
    )]
    async fn calls_have_none_of_the_agents_descriptors() {
        let file = File::open("/dev/null").unwrap();
        let number = file.as_raw_fd().to_string();
        let look = |number: &CStr, _: Option<u64>| {
            let number = number.to_str().unwrap().parse().unwrap();
            // SAFETY: nothing is done with it but to ask the kernel whether it is one.
            let looked = rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(number) });
            u8::from(looked.is_err())
        };
        let look = calls(&number, look);
        assert_eq!((look.function)(&look.about, None), 0);
        assert_eq!(end_of(LONG, look.clone()).await, End::Exited(1));
        assert_eq!((look.function)(&look.about, None), 0);
    }

    fn hang(_: &CStr, _: Option<u64>) -> u8 {
        loop {
            let _ = poll(&mut [], None);
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "that is what is looked for")]
    fn a_second_thread_is_noticed() {
        let other = std::thread::spawn(super::is_only_thread);
        assert!(!other.join().unwrap(), "this one waits for it");
    }

    /// It would join it later all the same: what is looked at is that it need not.
    #[test]
    fn a_copy_is_born_in_its_cgroup() {
        let dir = tempfile::tempdir().unwrap();
        let Some(root) = CgroupRoot::of_test(dir.path()) else {
            return;
        };
        let cgroup = root.make(1).unwrap();
        let folder = cgroup.open().unwrap();
        let pid = copy(Some(folder.as_fd()), |joined| match joined {
            Joined::Yes => hang(c"", None),
            Joined::No => 1,
        });
        let pid = pid.unwrap();
        let own = std::fs::read_to_string(format!("/proc/{}/cgroup", pid.as_raw_nonzero()));
        let name = cgroup.path().strip_prefix(root.path().parent().unwrap());
        let name = name.unwrap().to_str().unwrap();
        assert!(own.unwrap().trim_end().ends_with(name), "{name}");
        assert!(!cgroup.give_back(), "somebody is in it");
        cgroup.kill();
        let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
        assert_eq!(status.terminating_signal(), Some(Signal::KILL.as_raw()));
        assert!(cgroup.give_back() && !cgroup.path().exists());
    }

    #[tokio::test]
    async fn calls_that_hang_are_ended() {
        let end = end_of(Duration::from_millis(50), calls("", hang)).await;
        assert!(matches!(end, End::TimedOut { .. }), "{end:?}");
    }

    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "the harness has threads anyway")]
    async fn calls_that_nobody_waits_for_are_ended() {
        let dir = tempfile::tempdir().unwrap();
        let launcher = Launcher::new(dir.path(), false);
        let hang = calls("", hang);
        let hanging = launcher.run_calls(RunId(1), LONG, &hang);
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
