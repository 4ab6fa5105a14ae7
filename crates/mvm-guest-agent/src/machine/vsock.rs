//! Sockets to the host, for the agent alone: what it starts opens no `AF_VSOCK` socket, so that it can
//! neither dial the host nor listen where the host dials.
//!
//! That is a filter of system calls (seccomp(2)) that the agent takes on at its start, and that all it
//! starts inherits, for good. To take it on in each new process instead would cost a tenth of a start. So
//! the agent tells its own sockets by a key: a random number in those halves of the call's arguments that
//! the kernel does not look at, since what it takes is an int.
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
use rustix::fd::{FromRawFd, OwnedFd};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, capabilities};
use std::hash::BuildHasher;
use std::io;

/// What tells this agent's sockets from those of what it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct VsockKey([u32; 2]);

impl VsockKey {
    /// A key that nobody knows who does not know the hasher's own.
    pub(crate) fn new(hasher: &impl BuildHasher) -> Self {
        let halves = [0_u8, 1].map(|half| hasher.hash_one(("vsock", half)) >> 32);
        // Not zero, which is what others have there.
        Self(halves.map(|half| u32::try_from(half).unwrap_or(1) | 1))
    }

    /// A stream socket that does not block.
    #[expect(unsafe_code, reason = "no safe binding passes more than an int")]
    pub(crate) fn socket(self) -> io::Result<OwnedFd> {
        let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        let [kind, protocol] = self.words(kind);
        // SAFETY: the call takes numbers, and touches no memory.
        let made = unsafe { libc::syscall(libc::SYS_socket, libc::AF_VSOCK, kind, protocol) };
        match i32::try_from(made) {
            // SAFETY: the call has just made this descriptor, and nobody else knows of it.
            Ok(fd @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The second and third argument of socket(2), with the key in their upper halves.
    fn words(self, kind: i32) -> [i64; 2] {
        let Self([first, second]) = self;
        [
            i64::from(first) << 32 | i64::from(kind),
            i64::from(second) << 32,
        ]
    }

    /// From here on nobody opens such a socket without the key, neither this process nor any that it
    /// starts. Who lacks the right to lay that down is never to have more rights than now, nor are those
    /// that it starts (`no_new_privs`): that is what the kernel asks for instead.
    ///
    /// # Errors
    ///
    /// The kernel has no such filters.
    pub(crate) fn demand(self) -> Result<(), Errno> {
        match self.set_rules() {
            Err(Errno::ACCESS) => {
                rustix::thread::set_no_new_privs(true)?;
                self.set_rules()
            }
            set => set,
        }
    }

    fn set_rules(self) -> Result<(), Errno> {
        let rules = rules(OWN, self);
        let rules = libc::sock_fprog {
            len: u16::try_from(rules.len()).unwrap_or(u16::MAX),
            filter: rules.as_ptr().cast_mut(),
        };
        // The mitigations that filters switched on before Linux 5.16 slow a program down, and protect
        // one that is confined from others by its filter alone, which nobody is here. Before 4.17 there
        // was no way to do without.
        match set_filter(libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW, &rules) {
            Err(Errno::INVAL) => set_filter(0, &rules),
            set => set,
        }
    }
}

/// Whether this process may lay that down, and leave what it starts its set-user-id programs.
pub(crate) fn may_demand() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

#[expect(unsafe_code, reason = "no safe binding knows seccomp")]
fn set_filter(flags: libc::c_ulong, rules: &libc::sock_fprog) -> Result<(), Errno> {
    // SAFETY: the rules are only read, and live until the call returns.
    let done = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::c_ulong::from(libc::SECCOMP_SET_MODE_FILTER),
            flags,
            std::ptr::from_ref(rules),
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

/// Where a filter finds the number, the architecture, the first argument and the upper halves of the
/// next two: `struct seccomp_data`. Of an argument the lower half alone counts to the kernel, and stands
/// first in both architectures.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENT: u32 = 16;
const KEY: [u32; 2] = [ARGUMENT + 8 + 4, ARGUMENT + 16 + 4];

#[cfg(target_arch = "x86_64")]
const OWN: Abis = X86;
#[cfg(target_arch = "aarch64")]
const OWN: Abis = ARM;

fn rules(abis: Abis, VsockKey(key): VsockKey) -> [sock_filter; 24] {
    [
        load(ARCHITECTURE),
        go_if(abis.own.audit_arch, 0, 5),
        // A call by its own ABI.
        load(NUMBER),
        keep_bits(abis.mask),
        go_if(abis.own.socket, 10, 0),
        go_if(IO_URING_SETUP, 17, 0),
        give(libc::SECCOMP_RET_ALLOW),
        // By the other.
        go_if(abis.other.audit_arch, 0, 15),
        load(NUMBER),
        go_if(abis.other.socket, 5, 0),
        go_if(IO_URING_SETUP, 12, 0),
        go_if(SOCKETCALL, 1, 0),
        give(libc::SECCOMP_RET_ALLOW),
        // socketcall(2)
        load(ARGUMENT),
        go_if(MAKE_SOCKET, 6, 7),
        // socket(2). A call by another ABI has no upper halves.
        load(ARGUMENT),
        go_if(AF_VSOCK, 0, 5),
        load(KEY[0]),
        go_if(key[0], 0, 2),
        load(KEY[1]),
        go_if(key[1], 1, 0),
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
#[path = "vsock_tests.rs"]
mod tests;
