//! Descriptors that the agent inherits.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Keeps descriptors beyond standard error, which an init or a shell may have left open, from the
/// agent's own children: close_range(2). A kernel before 5.11 does not know the flag, and leaves
/// them as they are.
#[expect(unsafe_code, reason = "no safe binding knows close_range")]
pub(crate) fn close_on_exec() {
    // SAFETY: setting the close-on-exec flag changes no descriptor that is in use here.
    unsafe {
        nix::libc::syscall(
            nix::libc::SYS_close_range,
            3,
            nix::libc::c_uint::MAX,
            nix::libc::CLOSE_RANGE_CLOEXEC,
        );
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
