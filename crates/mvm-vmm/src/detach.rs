//! Programs that are to outlive the one that starts them.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// Has the program begin a session of its own, so that neither a hangup nor a Ctrl-C at this terminal
/// reaches it, and keeps from it the descriptors that this process has open or was given by its own
/// parent, but for the three standard ones: a pipe that stays open in it makes whoever reads that
/// wait for ever.
pub fn detach(command: &mut Command) {
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
