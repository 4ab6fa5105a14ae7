//! What a process inherits: the agent, and its copies.

use nix::libc;
use rustix::fd::RawFd;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Keeps descriptors beyond standard error, which an init or a shell may have left open, from the
/// agent's own children: close_range(2). A kernel before 5.11 does not know the flag, and leaves
/// them as they are.
#[expect(unsafe_code, reason = "no safe binding knows close_range")]
pub(crate) fn close_on_exec() {
    // SAFETY: setting the close-on-exec flag changes no descriptor that is in use here.
    unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        );
    }
}

/// Takes back what whoever starts the agent may ignore: `nohup`, a shell that starts it in the background,
/// an init. Else all that the agent starts would ignore it as well, down to a shell that cannot even be
/// ended by TERM, and without SIGCHLD the kernel keeps no child's exit code. SIGPIPE is left ignored: the
/// standard library does that, for the agent alone. What is blocked is let through likewise: TERM would
/// not end the agent, nor would SIGCHLD tell of its children.
#[expect(unsafe_code, reason = "no safe binding sets a signal to its default")]
pub(crate) fn heed_signals() {
    block_none();
    for signal in (1..=64).filter(|signal| *signal != libc::SIGPIPE) {
        // SAFETY: a zeroed action is the default one, with no flag and an empty mask, and no handler is set.
        // Of what is no signal, or the C library's own, nothing is read or set.
        unsafe {
            let mut action = std::mem::zeroed::<libc::sigaction>();
            let read = libc::sigaction(signal, std::ptr::null(), &raw mut action);
            if read == 0 && action.sa_sigaction == libc::SIG_IGN {
                libc::signal(signal, libc::SIG_DFL);
            }
        }
    }
}

/// Blocks no signal.
#[expect(unsafe_code, reason = "no safe binding sets the mask of signals")]
pub(super) fn block_none() {
    // SAFETY: the set is initialised before it is read.
    unsafe {
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// In a copy: closes what is the agent's, but for these and the first three. Where the kernel does
/// not know the call (before 5.9) they stay open until the copy ends.
pub(super) fn close_all_but(needed: &[Option<RawFd>]) {
    let mut first: u32 = 3;
    let needed = |from: u32| {
        let needed = needed.iter().flatten();
        let needed = needed.filter_map(|fd| u32::try_from(*fd).ok());
        needed.filter(|fd| *fd >= from).min()
    };
    loop {
        let next = needed(first);
        let last = next.map_or(u32::MAX, |next| next.saturating_sub(1));
        if first <= last {
            #[expect(unsafe_code, reason = "the calls of this process alone are affected")]
            // SAFETY: in a copy, which leaves by execve or _exit and drops none of what it closes.
            unsafe {
                libc::syscall(libc::SYS_close_range, first, last, 0);
            }
        }
        match next {
            Some(next) => first = next.saturating_add(1),
            None => return,
        }
    }
}

/// Whether a variable is there for the agent itself, from the service manager that started it
/// (systemd.exec(5)), and says what is not so of anybody else: its own socket for messages, its
/// folders, its invocation. No command may get them.
pub(crate) fn is_the_agents(variable: &OsStr) -> bool {
    const NAMES: [&str; 19] = [
        "NOTIFY_SOCKET",
        "JOURNAL_STREAM",
        "INVOCATION_ID",
        "SYSTEMD_EXEC_PID",
        "MAINPID",
        "MANAGERPID",
        "PIDFILE",
        "RUNTIME_DIRECTORY",
        "STATE_DIRECTORY",
        "CACHE_DIRECTORY",
        "LOGS_DIRECTORY",
        "CONFIGURATION_DIRECTORY",
        "CREDENTIALS_DIRECTORY",
        "FDSTORE",
        "REMOTE_ADDR",
        "REMOTE_PORT",
        "MEMORY_PRESSURE_WATCH",
        "MEMORY_PRESSURE_WRITE",
        "LOG_NAMESPACE",
    ];
    const PREFIXES: [&[u8]; 2] = [b"WATCHDOG_", b"LISTEN_"];
    NAMES.iter().any(|name| variable == *name)
        || (PREFIXES.iter()).any(|prefix| variable.as_bytes().starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_service_manager_tells_the_agent_is_known() {
        for own in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDNAMES"] {
            assert!(is_the_agents(OsStr::new(own)), "{own}");
        }
        for other in ["PATH", "HOME", "LISTEN", "MVM_RUN", "EXIT", "LANG"] {
            assert!(!is_the_agents(OsStr::new(other)), "{other}");
        }
    }
}
