//! Descriptors that the agent inherits.

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
