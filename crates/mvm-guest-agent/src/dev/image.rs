//! What a new process executes: its folder, its program, its arguments and its environment.
//!
//! The standard library would start a program as well, but then says nothing of whether the folder
//! or the program was at fault, looks for the program before it is the other user, and hands a file
//! that is no program to a shell.

use mvm_protocol::dev::exec::Exec;
use rustix::io::Errno;
use std::ffi::CString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Where programs are looked for if nobody says otherwise.
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Errors of the new process come back as one number; what failed is told in its upper half.
const CWD: i32 = 1 << 16;
const PROGRAM: i32 = 2 << 16;

/// What did not work in the new process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ExecFailure {
    /// To enter its folder.
    Cwd(Errno),
    /// To become the program.
    Program(Errno),
    /// All before that: its cgroup, its user.
    Before(Errno),
}

impl ExecFailure {
    pub(super) fn from_error(error: &io::Error) -> Self {
        let number = error.raw_os_error().unwrap_or_default();
        let errno = Errno::from_raw_os_error(number & 0xffff);
        match number & !0xffff {
            CWD => Self::Cwd(errno),
            PROGRAM => Self::Program(errno),
            _ => Self::Before(errno),
        }
    }
}

/// What a process becomes.
pub(super) struct Image {
    cwd: CString,
    programs: Vec<CString>,
    argv: Vec<CString>,
    env: Vec<CString>,
}

impl Image {
    /// What is asked for, with these variables and no others.
    pub(super) fn new(exec: &Exec, env: &[(String, String)]) -> Option<Self> {
        let text = |text: &str| CString::new(text).ok();
        let path = env.iter().find(|(name, _)| name == "PATH");
        let path = path.map_or(PATH, |(_, value)| value.as_str());
        Some(Self {
            cwd: text(exec.cwd.as_ref().map_or("/", |cwd| cwd.as_str()))?,
            programs: programs(exec.argv.program(), path)
                .iter()
                .map(|program| text(program))
                .collect::<Option<_>>()?,
            argv: exec
                .argv
                .words()
                .iter()
                .map(|word| text(word))
                .collect::<Option<_>>()?,
            env: env
                .iter()
                .map(|(name, value)| text(&format!("{name}={value}")))
                .collect::<Option<_>>()?,
        })
    }

    /// Tells the command to become this, as the last thing in the new process; with a terminal, to
    /// lead a session on it.
    #[expect(
        unsafe_code,
        reason = "there is no other way to act between fork and exec"
    )]
    pub(super) fn set(self, command: &mut Command, terminal: bool) {
        let child = move || {
            if terminal {
                rustix::process::setsid()?;
                rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
            }
            let enter = rustix::process::chdir(&self.cwd);
            enter.map_err(|errno| tagged(CWD, errno.raw_os_error()))?;
            Err::<(), _>(self.become_program())
        };
        // SAFETY: between fork and exec the closure makes system calls, and allocates a list of
        // pointers; the agent has one thread, so no lock can be held by another.
        unsafe {
            command.pre_exec(child);
        }
    }

    /// As execvp(3), but for what is no program. Returns only if there is none.
    fn become_program(&self) -> io::Error {
        let mut found = nix::libc::ENOENT;
        for program in &self.programs {
            let Err(errno) = nix::unistd::execve(program, &self.argv, &self.env);
            match errno as i32 {
                nix::libc::ENOENT | nix::libc::ENOTDIR => {}
                nix::libc::EACCES => found = nix::libc::EACCES,
                other => return tagged(PROGRAM, other),
            }
        }
        tagged(PROGRAM, found)
    }
}

fn tagged(what: i32, errno: i32) -> io::Error {
    io::Error::from_raw_os_error(what | errno)
}

/// Where a program may be.
fn programs(program: &str, path: &str) -> Vec<String> {
    if program.contains('/') {
        return vec![program.to_owned()];
    }
    path.split(':')
        .map(|dir| if dir.is_empty() { "." } else { dir })
        .map(|dir| format!("{dir}/{program}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slash_is_a_path_and_a_name_is_looked_for() {
        assert_eq!(programs("./x", "/a:/b"), ["./x"]);
        assert_eq!(programs("x", "/a::/b"), ["/a/x", "./x", "/b/x"]);
    }

    #[test]
    fn the_number_encodes_what_failed() {
        for (error, failed) in [
            (tagged(CWD, 2), ExecFailure::Cwd(Errno::NOENT)),
            (tagged(PROGRAM, 13), ExecFailure::Program(Errno::ACCESS)),
            (tagged(0, 1), ExecFailure::Before(Errno::PERM)),
        ] {
            assert_eq!(ExecFailure::from_error(&error), failed);
        }
    }
}
