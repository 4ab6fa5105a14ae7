//! Which calls are refused, to whom: the rules as such, and as the kernel keeps them.

use super::*;
use crate::machine::fork::copy;
use rustix::process::{WaitOptions, waitpid};

/// What the kernel would do with a call (Documentation/networking/filter.rst).
fn answer(abis: Abis, audit_arch: u32, number: u32, argument: u32) -> u32 {
    answer_to(abis, audit_arch, number, argument, [0, 0])
}

fn answer_to(abis: Abis, audit_arch: u32, number: u32, argument: u32, key: [u32; 2]) -> u32 {
    let rules = rules(abis, OURS);
    let (mut at, mut value) = (0, 0);
    loop {
        let sock_filter { code, jt, jf, k } = rules[at];
        at += 1;
        match (code, k) {
            (LOAD, NUMBER) => value = number,
            (LOAD, ARCHITECTURE) => value = audit_arch,
            (LOAD, ARGUMENT) => value = argument,
            (LOAD, 28) => value = key[0],
            (LOAD, 36) => value = key[1],
            (AND, mask) => value &= mask,
            (JUMP, wanted) => at += usize::from(if value == wanted { jt } else { jf }),
            (RETURN, answer) => return answer,
            _ => panic!("{code:#x} {k}"),
        }
    }
}

const ALLOWED: u32 = libc::SECCOMP_RET_ALLOW;

const OURS: VsockKey = VsockKey([77, 99]);

fn x32(number: u32) -> u32 {
    number | 0x4000_0000
}

#[test]
fn no_abi_is_a_way_around() {
    let (x64, i386) = (X86.own.audit_arch, X86.other.audit_arch);
    let (arm64, arm) = (ARM.own.audit_arch, ARM.other.audit_arch);
    for (abis, arch, number, argument, wanted) in [
        (X86, x64, 41, AF_VSOCK, REFUSED),
        (X86, x64, 41, 1, ALLOWED),
        (X86, x64, x32(41), AF_VSOCK, REFUSED),
        (X86, x64, x32(41), 2, ALLOWED),
        (X86, x64, 425, 8, UNKNOWN),
        (X86, x64, x32(425), 8, UNKNOWN),
        // connect and execve, with an argument that is no family.
        (X86, x64, 42, AF_VSOCK, ALLOWED),
        (X86, x64, 59, AF_VSOCK, ALLOWED),
        (X86, x64, SOCKETCALL, MAKE_SOCKET, ALLOWED),
        (X86, x64, 359, AF_VSOCK, ALLOWED),
        (X86, x64, u32::MAX, AF_VSOCK, ALLOWED),
        (X86, i386, 359, AF_VSOCK, REFUSED),
        (X86, i386, 359, 2, ALLOWED),
        (X86, i386, SOCKETCALL, MAKE_SOCKET, REFUSED),
        (X86, i386, SOCKETCALL, 3, ALLOWED),
        (X86, i386, 425, 8, UNKNOWN),
        (X86, i386, 41, AF_VSOCK, ALLOWED),
        (X86, arm64, 198, AF_VSOCK, UNKNOWN),
        (ARM, arm64, 198, AF_VSOCK, REFUSED),
        (ARM, arm64, 198, 10, ALLOWED),
        (ARM, arm64, 425, 8, UNKNOWN),
        (ARM, arm64, 41, AF_VSOCK, ALLOWED),
        (ARM, arm, 281, AF_VSOCK, REFUSED),
        (ARM, arm, 281, 2, ALLOWED),
        (ARM, arm, 425, 8, UNKNOWN),
        (ARM, arm, 198, AF_VSOCK, ALLOWED),
        (ARM, x64, 41, AF_VSOCK, UNKNOWN),
    ] {
        let given = answer(abis, arch, number, argument);
        assert_eq!(given, wanted, "{arch:#x} {number:#x} {argument}");
    }
}

#[test]
fn who_has_the_whole_key_is_let() {
    for (abis, socket) in [(X86, 41), (ARM, 198)] {
        let arch = abis.own.audit_arch;
        for (key, wanted) in [
            ([77, 99], ALLOWED),
            ([77, 0], REFUSED),
            ([0, 99], REFUSED),
            ([99, 77], REFUSED),
        ] {
            let given = answer_to(abis, arch, socket, AF_VSOCK, key);
            assert_eq!(given, wanted, "{key:?}");
        }
        // i386 and ARM pass no more than they look at.
        let other = abis.other;
        let given = answer(abis, other.audit_arch, other.socket, AF_VSOCK);
        assert_eq!(given, REFUSED);
    }
}

#[test]
fn a_key_is_another_agents_own() {
    let keys = [(); 20].map(|()| VsockKey::new(&std::hash::RandomState::new()));
    assert!(keys.iter().all(|key| key.0[0] != 0 && key.0[1] != 0));
    assert!(keys.windows(2).all(|two| two[0] != two[1]), "{keys:?}");
}

#[test]
fn the_numbers_are_those_of_the_headers() {
    let own = if cfg!(target_arch = "x86_64") {
        X86
    } else {
        ARM
    };
    assert_eq!(i64::from(own.own.socket), libc::SYS_socket);
    assert_eq!(i64::from(IO_URING_SETUP), libc::SYS_io_uring_setup);
    assert_eq!(AF_VSOCK.cast_signed(), libc::AF_VSOCK);
    let offset = std::mem::offset_of!(libc::seccomp_data, args);
    assert_eq!(offset, usize::try_from(ARGUMENT).unwrap());
}

/// Whether a socket of that family can be had; it is neither bound nor connected.
#[expect(unsafe_code, reason = "rustix makes no socket of any family")]
fn socket(family: i32) -> Result<(), i32> {
    // SAFETY: takes numbers, and touches no memory.
    let made = unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    outcome(made.into())
}

fn outcome(result: i64) -> Result<(), i32> {
    match result {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error().raw_os_error().unwrap_or(0)),
    }
}

/// How a copy of this process ends: its exit code, or 0 for a signal.
fn ended(work: impl FnOnce() -> u8) -> u8 {
    let pid = copy(None, |_| work()).unwrap();
    let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
    let code = status.exit_status().unwrap_or(0);
    u8::try_from(code).unwrap()
}

const OK: u8 = 1;

/// The number of the first that does not hold, after that of success.
fn holding(claims: &[bool]) -> u8 {
    let failed = claims.iter().position(|holds| !holds);
    failed.map_or(OK, |at| u8::try_from(at).unwrap_or(100) + 2)
}

#[expect(unsafe_code, reason = "no safe binding makes these calls")]
fn call(number: i64, first: i64) -> Result<(), i32> {
    // SAFETY: sockets take numbers alone, and a ring without parameters is none.
    outcome(unsafe { libc::syscall(number, first, libc::SOCK_STREAM, 0) })
}

#[test]
fn a_process_is_kept_from_vsock_and_from_nothing_else() {
    let has_vsock = OURS.socket().is_ok();
    let is_refusal = |error: io::Error| error.raw_os_error() == Some(libc::EAFNOSUPPORT);
    let code = ended(|| {
        let vsock = libc::AF_VSOCK.into();
        holding(&[
            OURS.demand().is_ok(),
            socket(libc::AF_VSOCK) == Err(libc::EAFNOSUPPORT),
            VsockKey([77, 98]).socket().is_err_and(is_refusal),
            // Where there is no vsock the kernel says the same as the filter.
            !has_vsock || OURS.socket().is_ok(),
            // The kernel looks at the lower half alone.
            call(libc::SYS_socket, 1 << 32 | i64::from(libc::AF_VSOCK)) == Err(libc::EAFNOSUPPORT),
            call(libc::SYS_io_uring_setup, 1) == Err(libc::ENOSYS),
            socket(libc::AF_UNIX).is_ok(),
            socket(libc::AF_INET).is_ok(),
            call(libc::SYS_socketpair, vsock) != Err(libc::ENOSYS),
            // What it starts is, too.
            matches!(copy(None, |_| u8::from(socket(libc::AF_VSOCK).is_ok())), Ok(pid)
                if matches!(waitpid(Some(pid), WaitOptions::empty()), Ok(Some((_, status)))
                    if status.exit_status() == Some(0))),
        ])
    });
    assert_eq!(code, OK);
}

#[test]
fn whoever_may_not_filter_gives_up_more_rights_for_it() {
    let is_root = rustix::process::geteuid().is_root();
    let code = ended(|| {
        use rustix::thread::{no_new_privs, set_thread_uid};
        let other = !is_root || set_thread_uid(rustix::fs::Uid::from_raw(65_534)).is_ok();
        holding(&[
            other,
            OURS.demand().is_ok(),
            socket(libc::AF_VSOCK) == Err(libc::EAFNOSUPPORT),
            no_new_privs() == Ok(true),
        ])
    });
    assert_eq!(code, OK);
    let code = ended(|| {
        let kept = OURS.demand().is_ok() && !is_root;
        holding(&[rustix::thread::no_new_privs() == Ok(kept)])
    });
    assert_eq!(code, OK, "root keeps its set-user-id programs");
}

/// A kernel that runs no such programs ends the copy by a signal.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_call_as_32_bit_programs_make_it_is_no_way_around() {
    let code = ended(|| {
        holding(&[
            OURS.demand().is_ok(),
            call(x32(41).into(), libc::AF_VSOCK.into()) == Err(libc::EAFNOSUPPORT),
            call(x32(425).into(), 1) == Err(libc::ENOSYS),
        ])
    });
    assert_eq!(code, OK);
    let code = ended(|| {
        let _ = OURS.demand();
        let families = [libc::AF_VSOCK, libc::AF_UNIX];
        let [vsock, unix] = families.map(|family| i386(359, family));
        let (refused, no_ring) = (-libc::EAFNOSUPPORT, -libc::ENOSYS);
        let [by_call, ring] = [i386(102, 1), i386(425, 1)];
        holding(&[
            vsock == refused,
            unix >= 0,
            by_call == refused,
            ring == no_ring,
        ])
    });
    assert!([0, OK].contains(&code), "{code}");
}

/// socket(2), `socketcall` and `io_uring_setup` by the numbers of i386.
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "the standard library makes no such calls")]
fn i386(number: i32, first: i32) -> i32 {
    let result;
    // SAFETY: of what the calls read or write in memory there is nothing: the pointer is null.
    unsafe {
        std::arch::asm!(
            "xchg {first:r}, rbx",
            "int 0x80",
            "xchg {first:r}, rbx",
            first = inout(reg) i64::from(first) => _,
            inout("eax") number => result,
            in("ecx") if number == 359 { libc::SOCK_STREAM } else { 0 },
            in("edx") 0,
            lateout("r8") _, lateout("r9") _, lateout("r10") _, lateout("r11") _,
        );
    }
    result
}
