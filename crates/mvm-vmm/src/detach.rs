//! Programs that are to outlive the one that starts them.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};

/// What a service manager tells the one process that it has started: sd_notify(3),
/// sd_watchdog_enabled(3), sd_listen_fds(3).
const SUPERVISORS: [&str; 6] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
];

/// Has the program begin a session of its own, so that neither a hangup nor a Ctrl-C at this terminal
/// reaches it, and keeps from it the descriptors that this process has open or was given by its own
/// parent, but for the three standard ones: a pipe that stays open in it makes whoever reads that
/// wait for ever.
pub fn detach(command: &mut Command) {
    // A supervisor's: the program would answer it in our place, or be taken for us.
    for variable in SUPERVISORS {
        command.env_remove(variable);
    }
    let detach = || {
        rustix::process::setsid()?;
        // Marked, not closed: std reports a failed exec through a descriptor of its own.
        let flags = libc::CLOSE_RANGE_CLOEXEC;
        #[expect(unsafe_code, reason = "rustix has no close_range")]
        // SAFETY: takes three numbers, touches no memory, and is safe between fork and exec.
        let result = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, flags) };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    };
    #[expect(unsafe_code, reason = "only there can a session be begun")]
    // SAFETY: `detach` makes two system calls and allocates nothing (io::Error from a number
    // does not either), which is all that is allowed between fork and exec.
    unsafe {
        command.pre_exec(detach);
    }
}

/// Descriptors that are enough for any VMM: one a connection to the guest, and its own.
const DESCRIPTORS: u64 = 65_536;

/// Lets a program open as many descriptors as the hard limit allows, [`DESCRIPTORS`] at most. The usual
/// soft limit of 1,024 is there for programs that select(2); one that has a descriptor for each
/// connection to a guest would take no more of them long before its own bound, and says nothing.
pub(crate) fn raise_descriptors(command: &mut Command) {
    let raise = || {
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        let enough = maximum.map_or(DESCRIPTORS, |maximum| maximum.min(DESCRIPTORS));
        if current.is_some_and(|current| current < enough) {
            let current = Some(enough);
            setrlimit(Resource::Nofile, Rlimit { current, maximum })?;
        }
        Ok(())
    };
    #[expect(unsafe_code, reason = "the limit of the child alone")]
    // SAFETY: `raise` makes two system calls and allocates nothing.
    unsafe {
        command.pre_exec(raise);
    }
}

/// Starts a program only when `record` has been told its process's number: until then the process
/// waits, and ends if this program does. So there is no moment at which a program runs that nobody
/// has recorded, even if this one is killed with -9. `record` is called on another thread.
///
/// # Errors
///
/// Those of `record`, after which no program runs; those of starting one.
pub(crate) fn spawn_recorded<T: Send, E: From<io::Error> + Send>(
    command: &mut Command,
    record: impl FnOnce(u32) -> Result<T, E> + Send,
) -> Result<(Child, T), E> {
    let (ours, theirs) = UnixStream::pair()?;
    wait_until_recorded(command, &ours, theirs);
    std::thread::scope(|scope| {
        let recording = scope.spawn(|| {
            let mut pid = [0; 4];
            // However this ends, the child does not wait for ever.
            let _closes = ShutOnDrop(&ours);
            let mut stream = &ours;
            // Nothing comes where no process could be made.
            if stream.read_exact(&mut pid).is_err() {
                return None;
            }
            let recorded = record(u32::from_ne_bytes(pid));
            if recorded.is_ok() {
                // Fails only if the process is gone, which is told as that it could not be started.
                let _ = stream.write_all(&[1]);
            }
            Some(recorded)
        });
        // Returns when the process is the program, or has failed to become it.
        let spawned = command.spawn();
        // For where there is no process. One that is there has been let go.
        drop(ShutOnDrop(&ours));
        let recorded = match recording.join() {
            Ok(recorded) => recorded,
            Err(panicked) => std::panic::resume_unwind(panicked),
        };
        match (spawned, recorded) {
            // What kept it from being recorded kept it from being started.
            (_, Some(Err(error))) => Err(error),
            (Ok(child), Some(Ok(recorded))) => Ok((child, recorded)),
            (Err(error), _) => Err(error.into()),
            (Ok(_), None) => Err(io::Error::other("a child that has told nothing").into()),
        }
    })
}

struct ShutOnDrop<'a>(&'a UnixStream);

impl Drop for ShutOnDrop<'_> {
    fn drop(&mut self) {
        // Fails only if the other end is closed already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// The child's part: it says its number, and waits for a byte before it becomes the program.
fn wait_until_recorded(command: &mut Command, ours: &UnixStream, theirs: UnixStream) {
    let ours = ours.as_raw_fd();
    let wait = move || {
        #[expect(unsafe_code, reason = "what the child has of the parent's end")]
        // SAFETY: `ours` is open in the parent until `Command::spawn` has returned, so its copy is
        // open here, where nothing else uses it. It is closed, so that the parent's end is seen.
        drop(unsafe { OwnedFd::from_raw_fd(ours) });
        (&theirs).write_all(&std::process::id().to_ne_bytes())?;
        let mut byte = [0];
        loop {
            match (&theirs).read(&mut byte) {
                Ok(1..) => return Ok(()),
                // It was not recorded, or the parent is gone.
                Ok(0) => return Err(io::Error::from_raw_os_error(libc::ECANCELED)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    };
    #[expect(unsafe_code, reason = "only there can the child wait")]
    // SAFETY: `wait` closes, writes to and reads from descriptors that are open, and allocates
    // nothing (an io::Error from a number or a kind does not either).
    unsafe {
        command.pre_exec(wait);
    }
}
