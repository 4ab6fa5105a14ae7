//! What a new process does to itself, and which program it becomes.
//!
//! All of it is laid out before the fork: what comes after that makes bare system calls, and
//! allocates nothing. The standard library would start a program as well, but it allocates then, says
//! nothing of whether the folder or the program was at fault, looks for the program before it is the
//! other user, and hands a file that is no program to a shell.

use super::execve::execve;
use super::inherited::{block_none, close_all_but, is_the_agents};
use super::users::Identity;
use nix::libc;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit};
use std::ffi::{CString, OsString};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::rc::Rc;

/// Errors of the new process come back as one number; what failed is told in its upper half.
const CWD: i32 = 1 << 16;
const PROGRAM: i32 = 2 << 16;

/// What did not work in the new process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StartFailure {
    /// To enter its folder.
    Cwd(Errno),
    /// To become the program.
    Program(Errno),
    /// All before that: its cgroup, its user.
    Before(Errno),
}

impl StartFailure {
    pub(crate) fn from_error(error: &io::Error) -> Self {
        let number = error.raw_os_error().unwrap_or_default();
        let errno = Errno::from_raw_os_error(number & 0xffff);
        match number & !0xffff {
            CWD => Self::Cwd(errno),
            PROGRAM => Self::Program(errno),
            _ => Self::Before(errno),
        }
    }

    /// The error itself.
    pub(crate) fn error(self) -> io::Error {
        let (Self::Cwd(errno) | Self::Program(errno) | Self::Before(errno)) = self;
        errno.into()
    }
}

/// What a process becomes, and what it reads and writes.
#[derive(Debug)]
pub(crate) struct Program {
    pub(super) image: Rc<Image>,
    /// Standard input, output and error.
    pub(super) stdio: [OwnedFd; 3],
}

/// What a process becomes.
#[derive(Debug)]
pub(super) struct Image {
    cwd: CString,
    /// Where it may be, in this order.
    paths: Vec<CString>,
    argv: Words,
    env: Words,
    /// Whether it leads a session on the terminal that it reads from, and not just a process group.
    leads_session: bool,
}

/// What a new process is before it is a program.
#[derive(Debug)]
pub(super) struct Entry {
    /// The folder of its cgroup.
    pub(super) cgroup: Option<OwnedFd>,
    /// Where it tells why it has not become a program.
    pub(super) report: RawFd,
    /// Whether its parent has made itself hard to kill for want of memory. It is not.
    pub(super) protected: bool,
    /// How many descriptors it may have, if its parent has taken more.
    pub(super) descriptors: Option<Rlimit>,
    /// Whether what it starts stays below it when the parents in between end (prctl(2)).
    pub(super) subreaper: bool,
    /// Whom it is to be.
    pub(super) identity: Option<Identity>,
}

/// Whether a new process was born in its cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Joined {
    Yes,
    /// It has to join it itself.
    No,
}

impl Program {
    /// A program with these words and these variables and no others. `None` if there is a NUL in one
    /// of the words.
    pub(crate) fn new(
        cwd: &str,
        paths: &[String],
        argv: &[impl AsRef<str>],
        env: Vec<(OsString, OsString)>,
        stdio: [OwnedFd; 3],
    ) -> Option<Self> {
        let text = |text: &str| CString::new(text).ok();
        let words = argv.iter().map(|word| text(word.as_ref()));
        // A variable with a NUL cannot be one: the kernel hands over none.
        let env = env.into_iter().filter_map(|(name, value)| {
            let mut variable = name.into_vec();
            variable.push(b'=');
            variable.append(&mut value.into_vec());
            CString::new(variable).ok()
        });
        let image = Image {
            cwd: text(cwd)?,
            paths: paths.iter().map(|path| text(path)).collect::<Option<_>>()?,
            argv: Words::new(words.collect::<Option<_>>()?),
            env: Words::new(env.collect()),
            leads_session: false,
        };
        let image = Rc::new(image);
        Some(Self { image, stdio })
    }

    /// The same, as the leader of a session on its terminal, which is its standard input.
    pub(crate) fn on_terminal(mut self, leads_session: bool) -> Self {
        // Nobody else has it before it is begun.
        if let Some(image) = Rc::get_mut(&mut self.image) {
            image.leads_session = leads_session;
        }
        self
    }

    /// In a copy of the agent: as [`Image::begin`].
    pub(super) fn begin(&self, entry: &Entry, joined: Joined) -> i32 {
        let stdio = self.stdio.each_ref().map(AsFd::as_fd);
        self.image.begin(stdio, entry, joined)
    }

    /// In a copy that stays one: keeps nothing of the agent's open, nor the pipes of the command.
    pub(super) fn give_up_stdio(&self) {
        let [nothing, ..] = &self.stdio;
        let _ = rustix::stdio::dup2_stdin(nothing);
        let _ = rustix::stdio::dup2_stdout(nothing);
        let _ = rustix::stdio::dup2_stderr(nothing);
    }
}

impl Image {
    /// In a new process that is not a program yet: becomes this one. Returns only if that fails, with
    /// the number by which [`StartFailure`] knows why.
    pub(super) fn begin(&self, stdio: [BorrowedFd<'_>; 3], entry: &Entry, joined: Joined) -> i32 {
        match self.prepare(stdio, entry, joined) {
            Ok(()) => self.become_program(),
            Err(errno) => errno.raw_os_error(),
        }
    }

    fn prepare(
        &self,
        [stdin, stdout, stderr]: [BorrowedFd<'_>; 3],
        entry: &Entry,
        joined: Joined,
    ) -> Result<(), Errno> {
        rustix::stdio::dup2_stdin(stdin)?;
        rustix::stdio::dup2_stdout(stdout)?;
        rustix::stdio::dup2_stderr(stderr)?;
        // First of all: what comes next may hang, and must not hold the agent's sockets open.
        let cgroup = entry.cgroup.as_ref().filter(|_| joined == Joined::No);
        close_all_but(&[Some(entry.report), cgroup.map(AsRawFd::as_raw_fd)]);
        if let Some(cgroup) = cgroup {
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            let procs = rustix::fs::openat(cgroup, c"cgroup.procs", flags, Mode::empty())?;
            rustix::io::write(&procs, b"0")?;
        }
        if self.leads_session {
            rustix::process::setsid()?;
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
        } else {
            rustix::process::setpgid(None, None)?;
        }
        if entry.subreaper {
            // Any process id switches it on: the value is a flag to the kernel.
            rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        }
        if entry.protected {
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            let file = rustix::fs::open(c"/proc/self/oom_score_adj", flags, Mode::empty())?;
            rustix::io::write(&file, b"0")?;
        }
        if let Some(limit) = entry.descriptors {
            rustix::process::setrlimit(Resource::Nofile, limit)?;
        }
        default_signals();
        if let Some(identity) = &entry.identity {
            rustix::thread::set_thread_groups(&identity.groups)?;
            rustix::thread::set_thread_gid(identity.gid)?;
            rustix::thread::set_thread_uid(identity.uid)?;
            // Who was given a user stays that one, whatever is set-user-id in the image.
            rustix::thread::set_no_new_privs(true)?;
        }
        Ok(())
    }

    /// As execvp(3), but for what is no program.
    fn become_program(&self) -> i32 {
        if let Err(errno) = rustix::process::chdir(&self.cwd) {
            return CWD | errno.raw_os_error();
        }
        let mut found = Errno::NOENT;
        for path in &self.paths {
            #[expect(
                unsafe_code,
                reason = "no safe binding takes lists that are there already"
            )]
            // SAFETY: both lists end with a null pointer, and all before it are texts that live as
            // long as this.
            let failed = unsafe { execve(path, self.argv.as_ptr(), self.env.as_ptr()) };
            match failed {
                Errno::NOENT | Errno::NOTDIR => {}
                Errno::ACCESS => found = failed,
                other => return PROGRAM | other.raw_os_error(),
            }
        }
        PROGRAM | found.raw_os_error()
    }
}

/// A guest short of memory loses its services before the one that can tell the host about it.
pub(crate) fn protect_from_oom() -> bool {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::open(c"/proc/self/oom_score_adj", flags, Mode::empty());
    file.is_ok_and(|file| rustix::io::write(&file, b"-997") == Ok(4))
}

/// What the standard library has changed for the agent: no program expects to be started with a
/// signal ignored. All others are at their defaults: see [`super::inherited::heed_signals`], and execve(2)
/// for those that the agent handles.
#[expect(unsafe_code, reason = "no safe binding sets a signal to its default")]
fn default_signals() {
    // SAFETY: no handler is set.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
    block_none();
}

/// Words as execve(2) takes them.
#[derive(Debug)]
struct Words {
    /// What the pointers point to, but for the last, which is null.
    _words: Vec<CString>,
    pointers: Vec<*const libc::c_char>,
}

impl Words {
    fn new(words: Vec<CString>) -> Self {
        let mut pointers = Vec::with_capacity(words.len() + 1);
        pointers.extend(words.iter().map(|word| word.as_ptr()));
        pointers.push(std::ptr::null());
        Self {
            _words: words,
            pointers,
        }
    }

    fn as_ptr(&self) -> *const *const libc::c_char {
        self.pointers.as_ptr()
    }
}

/// A standard input that is at its end.
pub(crate) fn no_input() -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::open("/dev/null", flags, Mode::empty())?)
}

/// The agent's own variables, from which each command's are made: without what its service manager
/// tells it alone.
pub(crate) fn own_environment() -> Vec<(OsString, OsString)> {
    let all = std::env::vars_os();
    all.filter(|(name, _)| !is_the_agents(name)).collect()
}

/// Sets one of the variables.
pub(crate) fn set_variable(env: &mut Vec<(OsString, OsString)>, name: &str, value: &str) {
    env.retain(|(other, _)| other != name);
    env.push((name.into(), value.into()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_encodes_what_failed() {
        for (number, failed) in [
            (CWD | libc::ENOENT, StartFailure::Cwd(Errno::NOENT)),
            (PROGRAM | libc::EACCES, StartFailure::Program(Errno::ACCESS)),
            (libc::EPERM, StartFailure::Before(Errno::PERM)),
        ] {
            let error = io::Error::from_raw_os_error(number);
            assert_eq!(StartFailure::from_error(&error), failed);
        }
    }
}
