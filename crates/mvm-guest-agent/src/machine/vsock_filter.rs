//! What the agent starts opens no `AF_VSOCK` socket, so that it can neither dial the host nor listen
//! where the host dials: seccomp(2), a filter that each new process takes on before it is a program,
//! and hands on to all that it starts.
//!
//! socket(2) is not the only call that makes a socket. So
//!
//! - a program of another ABI that this kernel runs as well (i386, x32, 32-bit ARM) meets the same rules
//!   by that ABI's numbers. i386 has `socketcall(2)` besides, whose family lies in memory, where a filter
//!   does not see it: by that call there is no socket at all, of whatever family;
//! - `io_uring_setup(2)` is answered as by a kernel that has none, since a ring opens sockets past every
//!   filter (`IORING_OP_SOCKET`, Linux 5.19). Programs take that as they take it in containers, which
//!   are denied it too: they do without.
//!
//! socketpair(2) is let be: no kernel makes a pair of that family, and it would lead nowhere.

use nix::libc::{self, sock_filter};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, capabilities};
use std::io;

/// The rules, where the kernel takes any.
#[derive(Debug, Clone, Copy)]
pub(crate) struct VsockFilter {
    flags: libc::c_ulong,
}

impl VsockFilter {
    /// Fails if the kernel has no such filters.
    pub(crate) fn of_kernel() -> Result<Self, Errno> {
        // The mitigations that filters switched on before Linux 5.16 slow a program down, and protect
        // one that is confined from others by its filter alone, which nobody is here.
        let flags = [libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW, 0];
        // It looks at the flags before it looks for the rules, which are nowhere.
        let is_known =
            |flags: &libc::c_ulong| set_filter(*flags, std::ptr::null()) == Err(Errno::FAULT);
        let known = flags.into_iter().find(is_known);
        known.map(|flags| Self { flags }).ok_or(Errno::NOSYS)
    }

    /// In a copy of the agent: takes the rules on, for good. Who lacks the right to is never to have more
    /// rights than now (`no_new_privs`): that is what the kernel asks for instead.
    pub(super) fn take_on(self) -> Result<(), Errno> {
        match self.set() {
            Err(Errno::ACCESS) => {
                rustix::thread::set_no_new_privs(true)?;
                self.set()
            }
            set => set,
        }
    }

    fn set(self) -> Result<(), Errno> {
        let rules = libc::sock_fprog {
            len: u16::try_from(RULES.len()).unwrap_or(u16::MAX),
            filter: RULES.as_ptr().cast_mut(),
        };
        set_filter(self.flags, &raw const rules)
    }
}

/// Whether this process may filter what it starts, and leave it its set-user-id programs.
pub(crate) fn may_filter() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

#[expect(unsafe_code, reason = "no safe binding knows seccomp")]
fn set_filter(flags: libc::c_ulong, rules: *const libc::sock_fprog) -> Result<(), Errno> {
    // SAFETY: the rules, which are only read, live until the call returns; without any it fails.
    let done = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::c_ulong::from(libc::SECCOMP_SET_MODE_FILTER),
            flags,
            rules,
        )
    };
    if done == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    Err(Errno::from_io_error(&error).unwrap_or(Errno::INVAL))
}

/// How an architecture's kernel numbers the calls, as linux/audit.h names that.
#[derive(Debug, Clone, Copy)]
struct Abi {
    audit_arch: u32,
    socket: u32,
}

/// What this architecture's kernel runs, and what else it may run.
#[derive(Debug, Clone, Copy)]
struct Abis {
    own: Abi,
    other: Abi,
    /// What is left of a number when the mark of a third ABI, which has the same ones, is taken away.
    mask: u32,
}

/// `__X32_SYSCALL_BIT` of asm/unistd.h marks x32.
#[cfg(any(target_arch = "x86_64", test))]
const X86: Abis = Abis {
    own: Abi {
        audit_arch: 0xc000_003e,
        socket: 41,
    },
    other: Abi {
        audit_arch: 0x4000_0003,
        socket: 359,
    },
    mask: !0x4000_0000,
};

#[cfg(any(target_arch = "aarch64", test))]
const ARM: Abis = Abis {
    own: Abi {
        audit_arch: 0xc000_00b7,
        socket: 198,
    },
    other: Abi {
        audit_arch: 0x4000_0028,
        socket: 281,
    },
    mask: u32::MAX,
};

/// The same in each of them.
const IO_URING_SETUP: u32 = 425;
/// Of i386; ARM has no call of that number.
const SOCKETCALL: u32 = 102;
/// What `socketcall` is to do: `SYS_SOCKET` of linux/net.h.
const MAKE_SOCKET: u32 = 1;
const AF_VSOCK: u32 = 40;

/// Where a filter finds the number, the architecture and the first argument: `struct seccomp_data`. Of
/// the argument the lower half alone counts to the kernel, and stands first in both architectures.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENT: u32 = 16;

#[cfg(target_arch = "x86_64")]
const RULES: [sock_filter; 21] = rules(X86);
#[cfg(target_arch = "aarch64")]
const RULES: [sock_filter; 21] = rules(ARM);

const fn rules(abis: Abis) -> [sock_filter; 21] {
    [
        load(ARCHITECTURE),
        go_if(abis.own.audit_arch, 0, 5),
        // A call by its own ABI.
        load(NUMBER),
        keep_bits(abis.mask),
        go_if(abis.own.socket, 11, 0),
        go_if(IO_URING_SETUP, 14, 0),
        give(libc::SECCOMP_RET_ALLOW),
        // By the other.
        go_if(abis.other.audit_arch, 0, 12),
        load(NUMBER),
        go_if(abis.other.socket, 6, 0),
        go_if(IO_URING_SETUP, 9, 0),
        go_if(SOCKETCALL, 1, 0),
        give(libc::SECCOMP_RET_ALLOW),
        // socketcall(2)
        load(ARGUMENT),
        go_if(MAKE_SOCKET, 3, 0),
        give(libc::SECCOMP_RET_ALLOW),
        // socket(2)
        load(ARGUMENT),
        go_if(AF_VSOCK, 0, 1),
        give(REFUSED),
        give(libc::SECCOMP_RET_ALLOW),
        // What there is not.
        give(UNKNOWN),
    ]
}

/// What a kernel without vsock says, which programs know.
const REFUSED: u32 = libc::SECCOMP_RET_ERRNO | libc::EAFNOSUPPORT.cast_unsigned();
const UNKNOWN: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned();

/// `BPF_LD | BPF_W | BPF_ABS`, of linux/filter.h as those below.
const LOAD: u16 = 0x20;
/// `BPF_ALU | BPF_AND | BPF_K`
const AND: u16 = 0x54;
/// `BPF_JMP | BPF_JEQ | BPF_K`
const JUMP: u16 = 0x15;
/// `BPF_RET | BPF_K`
const RETURN: u16 = 0x06;

const fn load(offset: u32) -> sock_filter {
    instruction(LOAD, offset, 0, 0)
}

const fn keep_bits(mask: u32) -> sock_filter {
    instruction(AND, mask, 0, 0)
}

/// Leaves out so many instructions if it is that, and so many if not.
const fn go_if(value: u32, so: u8, not: u8) -> sock_filter {
    instruction(JUMP, value, so, not)
}

const fn give(answer: u32) -> sock_filter {
    instruction(RETURN, answer, 0, 0)
}

const fn instruction(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::fork::fork;
    use rustix::process::{WaitOptions, waitpid};

    /// What the kernel would do with a call (Documentation/networking/filter.rst).
    fn answer(abis: Abis, audit_arch: u32, number: u32, argument: u32) -> u32 {
        let rules = rules(abis);
        let (mut at, mut value) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = rules[at];
            at += 1;
            match (code, k) {
                (LOAD, NUMBER) => value = number,
                (LOAD, ARCHITECTURE) => value = audit_arch,
                (LOAD, ARGUMENT) => value = argument,
                (AND, mask) => value &= mask,
                (JUMP, wanted) => at += usize::from(if value == wanted { jt } else { jf }),
                (RETURN, answer) => return answer,
                _ => panic!("{code:#x} {k}"),
            }
        }
    }

    const ALLOWED: u32 = libc::SECCOMP_RET_ALLOW;

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
        let pid = fork(work).unwrap();
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

    fn filter() -> VsockFilter {
        VsockFilter::of_kernel().expect("this kernel has seccomp filters")
    }

    #[expect(unsafe_code, reason = "no safe binding makes these calls")]
    fn call(number: i64, first: i64) -> Result<(), i32> {
        // SAFETY: sockets take numbers alone, and a ring without parameters is none.
        outcome(unsafe { libc::syscall(number, first, libc::SOCK_STREAM, 0) })
    }

    #[test]
    fn a_process_is_kept_from_vsock_and_from_nothing_else() {
        let filter = filter();
        let code = ended(|| {
            let vsock = libc::AF_VSOCK.into();
            holding(&[
                filter.take_on().is_ok(),
                socket(libc::AF_VSOCK) == Err(libc::EAFNOSUPPORT),
                // The kernel looks at the lower half alone.
                call(libc::SYS_socket, 1 << 32 | i64::from(libc::AF_VSOCK))
                    == Err(libc::EAFNOSUPPORT),
                call(libc::SYS_io_uring_setup, 1) == Err(libc::ENOSYS),
                socket(libc::AF_UNIX).is_ok(),
                socket(libc::AF_INET).is_ok(),
                call(libc::SYS_socketpair, vsock) != Err(libc::ENOSYS),
                // What it starts is, too.
                matches!(fork(|| u8::from(socket(libc::AF_VSOCK).is_ok())), Ok(pid)
                    if matches!(waitpid(Some(pid), WaitOptions::empty()), Ok(Some((_, status)))
                        if status.exit_status() == Some(0))),
            ])
        });
        assert_eq!(code, OK);
    }

    #[test]
    fn whoever_may_not_filter_gives_up_more_rights_for_it() {
        let filter = filter();
        let is_root = rustix::process::geteuid().is_root();
        let code = ended(|| {
            use rustix::thread::{no_new_privs, set_thread_uid};
            let other = !is_root || set_thread_uid(rustix::fs::Uid::from_raw(65_534)).is_ok();
            holding(&[
                other,
                filter.take_on().is_ok(),
                socket(libc::AF_VSOCK) == Err(libc::EAFNOSUPPORT),
                no_new_privs() == Ok(true),
            ])
        });
        assert_eq!(code, OK);
        let code = ended(|| {
            let kept = filter.take_on().is_ok() && !is_root;
            holding(&[rustix::thread::no_new_privs() == Ok(kept)])
        });
        assert_eq!(code, OK, "root keeps its set-user-id programs");
    }

    /// A kernel that runs no such programs ends the copy by a signal.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn a_call_as_32_bit_programs_make_it_is_no_way_around() {
        let filter = filter();
        let code = ended(|| {
            holding(&[
                filter.take_on().is_ok(),
                call(x32(41).into(), libc::AF_VSOCK.into()) == Err(libc::EAFNOSUPPORT),
                call(x32(425).into(), 1) == Err(libc::ENOSYS),
            ])
        });
        assert_eq!(code, OK);
        let code = ended(|| {
            let _ = filter.take_on();
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
}
