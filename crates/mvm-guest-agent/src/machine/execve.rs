//! execve(2) for a new process that may share the agent's memory, and with it `errno`.

use nix::libc;
use rustix::io::Errno;
#[cfg(target_arch = "x86_64")]
use std::arch::asm;
use std::ffi::CStr;

/// execve(2), but for `errno`.
///
/// # Safety
///
/// Both lists end with a null pointer, and all before it are texts.
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "each binding of it sets `errno`")]
pub(super) unsafe fn execve(
    path: &CStr,
    argv: *const *const libc::c_char,
    env: *const *const libc::c_char,
) -> Errno {
    let result: i64;
    // SAFETY: as the caller has promised.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") libc::SYS_execve => result,
            in("rdi") path.as_ptr(),
            in("rsi") argv,
            in("rdx") env,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    Errno::from_raw_os_error(i32::try_from(-result).unwrap_or(libc::EINVAL))
}

/// The same, where nobody shares a memory.
///
/// # Safety
///
/// As above.
#[cfg(not(target_arch = "x86_64"))]
#[expect(unsafe_code, reason = "see its caller")]
pub(super) unsafe fn execve(
    path: &CStr,
    argv: *const *const libc::c_char,
    env: *const *const libc::c_char,
) -> Errno {
    // SAFETY: as the caller has promised.
    unsafe { libc::execve(path.as_ptr(), argv, env) };
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}
