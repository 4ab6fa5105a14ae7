//! New processes that share the agent's memory until they have become a program, or have made the calls
//! that they are for, so that no page of it is copied for them: clone3(2) with `CLONE_VM`, as in
//! posix_spawn(3). That call waits for as long as it takes, with `CLONE_VFORK`; the agent does not, since
//! a disk that does not answer holds the new process up for as long as it likes. So what such a process
//! uses of the agent's memory is kept here until the kernel says that it has left it.
//!
//! Such a process
//!
//! - has a stack of its own, and allocates and drops nothing; neither does it touch `errno`, which is
//!   the agent's, and not its own;
//! - has none of the agent's signal handlers (`CLONE_CLEAR_SIGHAND`), by which the agent would take a
//!   signal for its own;
//! - changes how hard the agent is to kill for want of memory when it gives that up for itself, since the
//!   kernel has one value for all that share a memory (proc(5), `oom_score_adj`): the agent takes its own
//!   back as soon as nobody shares it;
//! - stays the user that the agent is. Who becomes another one is a copy, and so is a witness.
//!
//! On other processors than x86-64 all are copies: nobody has run this there.

use super::calls::Calls;
use super::cgroup::CLONE_INTO_CGROUP;
use super::program::{Entry, Image, Joined, Program, protect_from_oom};
use nix::libc;
use rustix::fd::{AsRawFd, BorrowedFd, RawFd};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};
use rustix::process::Pid;
use std::arch::asm;
use std::cell::RefCell;
use std::ffi::c_void;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Those that are under way.
#[derive(Debug)]
pub(super) struct SharedStarts {
    under_way: RefCell<Vec<Rc<Start>>>,
    /// One that the next can have: that its pages are there already is half of what it costs.
    stack: RefCell<Option<Stack>>,
    /// Whether the agent has made itself hard to kill for want of memory.
    protected: bool,
}

/// What a new process uses of the agent's memory.
#[derive(Debug)]
struct Start {
    /// Its number, until the kernel makes that 0: it has left this memory.
    tid: AtomicU32,
    purpose: Purpose,
    stack: Stack,
}

#[derive(Debug)]
enum Purpose {
    Program {
        image: Rc<Image>,
        stdio: [RawFd; 3],
        entry: Entry,
    },
    Calls(Calls),
}

impl SharedStarts {
    pub(super) fn new(protected: bool) -> Self {
        Self {
            under_way: RefCell::default(),
            stack: RefCell::default(),
            protected,
        }
    }

    /// Begins a new process in the entry's cgroup, if it has one, which becomes the program.
    ///
    /// # Errors
    ///
    /// The program, if this cannot be done in this way: then it is begun as a copy.
    pub(super) fn begin(&self, program: Program, entry: &Entry) -> Result<Pid, Program> {
        if entry.identity.is_some() {
            return Err(program);
        }
        let purpose = Purpose::Program {
            image: Rc::clone(&program.image),
            stdio: program.stdio.each_ref().map(AsRawFd::as_raw_fd),
            entry: Entry {
                cgroup: None,
                identity: None,
                ..*entry
            },
        };
        self.start(purpose, entry.cgroup.as_ref().map(AsRawFd::as_raw_fd))
            .ok_or(program)
    }

    /// Begins a new process that makes these calls, and ends. `None` if this cannot be done in this way.
    pub(super) fn call(&self, calls: &Calls) -> Option<Pid> {
        self.start(Purpose::Calls(calls.clone()), None)
    }

    fn start(&self, purpose: Purpose, cgroup: Option<RawFd>) -> Option<Pid> {
        self.settle();
        let start = Rc::new(Start {
            tid: AtomicU32::new(0),
            purpose,
            stack: self.stack.take().or_else(Stack::new)?,
        });
        let pid = start.clone_process(cgroup);
        // One that was not begun has left as well.
        self.under_way.borrow_mut().push(start);
        if pid.is_none() {
            self.settle();
        }
        pid
    }

    /// Whether there is something to take back, or will be.
    pub(super) fn are_under_way(&self) -> bool {
        !self.under_way.borrow().is_empty()
    }

    /// Takes back what those have used that have become a program, or have ended.
    pub(super) fn settle(&self) {
        let mut under_way = self.under_way.borrow_mut();
        let is_program = |start: &Rc<Start>| matches!(start.purpose, Purpose::Program { .. });
        let programs = under_way.iter().any(is_program);
        for start in under_way.extract_if(.., |start| start.has_left()) {
            self.stack
                .replace(Rc::into_inner(start).map(|start| start.stack));
        }
        if self.protected && programs && !under_way.iter().any(is_program) {
            protect_from_oom();
        }
    }
}

impl Drop for SharedStarts {
    fn drop(&mut self) {
        self.settle();
        // Still in use.
        self.under_way.take().into_iter().for_each(std::mem::forget);
    }
}

impl Start {
    fn has_left(&self) -> bool {
        self.tid.load(Ordering::Acquire) == 0
    }

    /// `None` if the kernel does not do that, or not now.
    fn clone_process(&self, cgroup: Option<RawFd>) -> Option<Pid> {
        const CLEAR_SIGHAND: u64 = 1 << 32;
        let flags = libc::CLONE_VM | libc::CLONE_PARENT_SETTID | libc::CLONE_CHILD_CLEARTID;
        let number = |fd: RawFd| u64::try_from(fd).ok();
        let tid = self.tid.as_ptr().expose_provenance() as u64;
        let arguments = libc::clone_args {
            flags: u64::from(flags.cast_unsigned())
                | CLEAR_SIGHAND
                | cgroup.map_or(0, |_| CLONE_INTO_CGROUP),
            pidfd: 0,
            child_tid: tid,
            parent_tid: tid,
            exit_signal: number(libc::SIGCHLD)?,
            stack: self.stack.lowest.expose_provenance() as u64,
            stack_size: STACK as u64,
            tls: 0,
            set_tid: 0,
            set_tid_size: 0,
            cgroup: cgroup.map_or(Some(0), number)?,
        };
        #[expect(unsafe_code, reason = "there is no binding of it that has a stack")]
        // SAFETY: what the new process uses is in `self`, which the caller keeps until it has left this
        // memory, and on its own stack.
        let pid = unsafe { clone3(&arguments, self) };
        let pid = i32::try_from(pid).ok().filter(|pid| *pid > 0)?;
        Pid::from_raw(pid)
    }
}

/// What the new process does.
///
/// # Safety
///
/// It is a process of its own, and has the stack of that start.
#[expect(unsafe_code, reason = "it is called by what has made the process")]
unsafe extern "C" fn be_started(start: *const Start) -> ! {
    // SAFETY: it is kept until this process has left this memory.
    let start = unsafe { &*start };
    // SAFETY: the descriptors are a copy of the agent's, in which these are still what they were.
    let there = |number| unsafe { BorrowedFd::borrow_raw(number) };
    let code = match &start.purpose {
        Purpose::Program {
            image,
            stdio,
            entry,
        } => {
            let number = image.begin(stdio.map(there), entry, Joined::Yes);
            let _ = rustix::io::write(there(entry.report), &number.to_ne_bytes());
            127
        }
        Purpose::Calls(calls) => calls.make(),
    };
    // SAFETY: nothing of the agent's is flushed or dropped.
    unsafe { libc::_exit(code.into()) }
}

/// A process that runs `be_started` on the stack that the arguments name. Gives its number, or that
/// of an error, below 0.
///
/// # Safety
///
/// The start and the stack live until the new process has left this memory.
#[expect(unsafe_code, reason = "there is no binding of it that has a stack")]
unsafe fn clone3(arguments: &libc::clone_args, start: *const Start) -> i64 {
    let result;
    // SAFETY: the new process has all registers but its stack's and the result's as they were, and comes
    // back from nowhere. The stack's end is aligned as a call wants it.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") std::ptr::from_ref(arguments),
            in("rsi") size_of::<libc::clone_args>(),
            in("r12") start,
            in("r13") be_started as unsafe extern "C" fn(*const Start) -> !,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

/// In bytes. Some hundreds are used, and in a build for tests a few thousand.
const STACK: usize = 64 * 1024;

/// A stack, below which nothing can be written.
#[derive(Debug)]
struct Stack {
    lowest: *mut c_void,
}

/// What lies below it.
const GUARD: usize = 4096;

impl Stack {
    #[expect(unsafe_code, reason = "no safe binding makes a mapping")]
    fn new() -> Option<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, which overlaps nothing, and the lowest page of it.
        unsafe {
            let all = std::ptr::null_mut();
            let mapping =
                rustix::mm::mmap_anonymous(all, GUARD + STACK, access, MapFlags::PRIVATE).ok()?;
            let stack = Self {
                lowest: mapping.byte_add(GUARD),
            };
            rustix::mm::mprotect(mapping, GUARD, MprotectFlags::empty()).ok()?;
            Some(stack)
        }
    }
}

impl Drop for Stack {
    #[expect(unsafe_code, reason = "no safe binding ends a mapping")]
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's, and nobody uses it any more.
        let _ = unsafe { rustix::mm::munmap(self.lowest.byte_sub(GUARD), GUARD + STACK) };
    }
}

#[cfg(test)]
mod tests {
    use super::SharedStarts;
    use crate::core::RunId;
    use crate::machine::children::Orphans;
    use crate::machine::fork::Report;
    use crate::machine::process::Launcher;
    use crate::machine::program::{Entry, Program, no_input, protect_from_oom};
    use rustix::process::{WaitOptions, waitpid};
    use std::path::Path;

    fn program(path: &str, words: &[&str]) -> Program {
        let stdio = [(); 3].map(|()| no_input().unwrap());
        let env = vec![("VARIABLE".into(), "value".into())];
        Program::new("/", &[path.to_owned()], words, env, stdio).unwrap()
    }

    fn entry(report: &Report, protected: bool) -> Entry {
        Entry {
            cgroup: None,
            report: report.needed(),
            protected,
            descriptors: None,
            subreaper: true,
            identity: None,
        }
    }

    /// Begins one, and gives its exit code.
    fn run(starts: &SharedStarts, program: Program, protected: bool) -> Option<i32> {
        let report = Report::new().unwrap();
        let begun = starts.begin(program, &entry(&report, protected));
        let pid = begun.expect("a kernel since Linux 5.7");
        let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
        starts.settle();
        status.exit_status()
    }

    #[test]
    fn what_it_uses_is_taken_back_when_it_has_left() {
        let starts = SharedStarts::new(false);
        for (path, code) in [("/bin/sh", 7), ("/nonexistent", 127)] {
            let words = ["sh", "-c", "test \"$VARIABLE\" = value && exit 7"];
            assert_eq!(run(&starts, program(path, &words), false), Some(code));
            assert!(starts.under_way.borrow().is_empty());
            // The next one has the same.
            assert!(starts.stack.borrow().is_some());
        }
    }

    /// The kernel has one value for all that share a memory.
    #[test]
    fn the_agent_is_as_hard_to_kill_as_before_and_what_it_starts_is_not() {
        let file = Path::new("/proc/self/oom_score_adj");
        let own = || std::fs::read_to_string(file).unwrap().trim().to_owned();
        let before = own();
        if !protect_from_oom() {
            eprintln!("SKIPPED, NOTHING WAS TESTED: it may not be made hard to kill here");
            return;
        }
        let starts = SharedStarts::new(true);
        let words = ["sh", "-c", "test $(cat /proc/self/oom_score_adj) = 0"];
        let code = run(&starts, program("/bin/sh", &words), true);
        let after = own();
        std::fs::write(file, before).unwrap();
        assert_eq!((code, after.as_str()), (Some(0), "-997"));
    }

    #[tokio::test]
    async fn one_that_hangs_is_ended_like_any_other() {
        let dir = tempfile::tempdir().unwrap();
        let launcher = Launcher::new(dir.path(), false);
        let scope = launcher.scope(RunId(1), Orphans::ToLeader, None).unwrap();
        let hanging = program("/bin/sleep", &["sleep", "600"]);
        let process = launcher.spawn(hanging, scope).unwrap();
        process.kill();
        process.exited().await;
        let exit = launcher.finish(process).await;
        assert_eq!(exit.signal, Some(9));
    }
}
