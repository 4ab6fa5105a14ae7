//! Descriptors that a process inherits: the agent, and its copies.

use nix::libc;
use rustix::fd::RawFd;

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
