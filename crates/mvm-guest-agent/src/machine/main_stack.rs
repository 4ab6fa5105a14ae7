//! Keeps a part of the C library out of the static agent.
//!
//! Rust's runtime asks for the bounds of the main thread's stack, so that it can tell an overflow from
//! other faults; glibc finds them by reading `/proc/self/maps` with `sscanf`, which takes 80 KB of
//! formats, floats of four sizes and wide characters along. Without bounds the runtime goes on, and an
//! overflow ends the agent by SIGSEGV without a line that says so.

use nix::libc::{ENOSYS, c_int, pthread_attr_t, pthread_t};

/// Stands in for pthread_getattr_np(3), which may fail.
#[expect(unsafe_code, reason = "the linker finds it by its name")]
#[unsafe(no_mangle)]
extern "C" fn pthread_getattr_np(_: pthread_t, _: *mut pthread_attr_t) -> c_int {
    ENOSYS
}
