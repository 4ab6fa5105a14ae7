//! Processes that outlive the `mvmctl` that started them, and are never taken for others.
//!
//! A pid in a file means nothing by itself: the process may be gone and the number given to another
//! one. So each is remembered with its start time, and whoever acts on it opens a pidfd first and
//! compares afterwards; what the pidfd refers to cannot change any more.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open, pidfd_send_signal,
    waitid,
};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// What a process is to its VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The VMM. When it ends the VM is off.
    Vmm,
    /// The backend of the vsock device, where that is a process of its own.
    Vsock,
    /// What keeps the guest's console. It ends with the VM.
    Console,
    /// The agent, where it runs on this machine and is all that there is of a VM.
    Agent,
}

impl Role {
    /// Whether the process is the VM itself.
    pub fn is_main(self) -> bool {
        matches!(self, Self::Vmm | Self::Agent)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Vmm => "vmm",
            Self::Vsock => "vsock",
            Self::Console => "console",
            Self::Agent => "agent",
        })
    }
}

/// A process as `vm.json` knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// What it is to the VM.
    pub role: Role,
    /// Its number.
    pub pid: i32,
    /// When it started, in clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub start_ticks: u64,
}

/// Which process is meant, by what nobody else has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProcessId {
    pub(crate) pid: i32,
    pub(crate) start_ticks: u64,
}

impl ProcessId {
    /// This process.
    pub(crate) fn own() -> io::Result<Self> {
        let pid = i32::try_from(std::process::id()).map_err(io::Error::other)?;
        let stat = Stat::of(pid)?.ok_or_else(no_proc)?;
        Ok(Self {
            pid,
            start_ticks: stat.start_ticks,
        })
    }

    /// Opens it if it still runs, and is the one that is meant.
    pub(crate) fn open(self) -> io::Result<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(self.pid) else {
            return Ok(None);
        };
        let handle = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(handle) => handle,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let stat = Stat::of(self.pid)?;
        if stat.map(|stat| stat.start_ticks) != Some(self.start_ticks) {
            return Ok(None);
        }
        Ok((!wait(&handle, Duration::ZERO)?).then_some(handle))
    }
}

/// A process that is certainly the one that was meant.
#[derive(Debug)]
pub struct Alive {
    /// What it is to the VM.
    pub role: Role,
    /// Its number.
    pub pid: i32,
    handle: OwnedFd,
}

impl Process {
    /// Opens the process if it still runs, and is the one that was recorded.
    ///
    /// # Errors
    ///
    /// Those of the system, but for that there is no such process.
    pub fn open(&self) -> io::Result<Option<Alive>> {
        let id = ProcessId {
            pid: self.pid,
            start_ticks: self.start_ticks,
        };
        Ok(id.open()?.map(|handle| Alive {
            role: self.role,
            pid: self.pid,
            handle,
        }))
    }

    /// How to remember a child of this process, and how to act on it now. Nobody may have taken its
    /// exit status yet, so that its number is still its own.
    ///
    /// # Errors
    ///
    /// If it has ended already, or `/proc` is not mounted.
    pub fn identify(role: Role, id: u32) -> io::Result<(Self, Alive)> {
        let pid = i32::try_from(id).map_err(io::Error::other)?;
        let raw = Pid::from_raw(pid).ok_or_else(|| io::Error::other("a child without a number"))?;
        let handle = pidfd_open(raw, PidfdFlags::empty())?;
        let start_ticks = Stat::of(pid)?.ok_or_else(no_proc)?.start_ticks;
        let process = Self {
            role,
            pid,
            start_ticks,
        };
        Ok((process, Alive { role, pid, handle }))
    }
}

fn no_proc() -> io::Error {
    io::Error::other("/proc is not mounted")
}

/// What is said of a process that has ended, and not to this one.
pub const GONE: &str = "it is gone";

impl Alive {
    /// Its pidfd, which can be read once it has ended.
    pub fn into_pidfd(self) -> OwnedFd {
        self.handle
    }

    /// The VMM, or what runs in its place, among the processes of a VM.
    pub fn main(processes: &[Self]) -> Option<&Self> {
        processes.iter().find(|process| process.role.is_main())
    }

    /// Sends a signal. That it is gone already is no error.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.handle, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether it has ended within that time.
    pub fn wait(&self, at_most: Duration) -> io::Result<bool> {
        wait(&self.handle, at_most)
    }

    /// Whether it was stopped by a signal (`SIGSTOP`), and stands still.
    pub fn is_stopped(&self) -> io::Result<bool> {
        Ok(Stat::of(self.pid)?.is_some_and(|stat| stat.is_stopped))
    }

    /// How it ended, if it was started by this very process: nobody else is told.
    fn reap(&self) -> Option<WaitIdStatus> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        waitid(WaitId::PidFd(self.handle.as_fd()), options)
            .ok()
            .flatten()
    }

    /// TERM, then KILL to what is left after `deadline`. False if it is there even then.
    pub fn end(&self, deadline: Duration) -> io::Result<bool> {
        self.signal(Signal::TERM)?;
        if !self.wait(deadline)? {
            self.signal(Signal::KILL)?;
            // KILL takes effect unless the process is stuck in the kernel.
            if !self.wait(Duration::from_secs(5))? {
                return Ok(false);
            }
        }
        self.reap();
        Ok(true)
    }

    /// How it ended, in words; `None` while it runs. How a child of this process has ended is told once:
    /// afterwards it is [`GONE`].
    pub fn ending(&self) -> io::Result<Option<String>> {
        if !self.wait(Duration::ZERO)? {
            return Ok(None);
        }
        let how = self.reap().map_or_else(
            || GONE.to_owned(),
            |status| match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => format!("exit status {code}"),
                (None, Some(signal)) => format!("signal {signal}"),
                (None, None) => GONE.to_owned(),
            },
        );
        Ok(Some(how))
    }
}

fn wait(handle: &OwnedFd, at_most: Duration) -> io::Result<bool> {
    let until = Instant::now() + at_most;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let mut handles = [PollFd::new(handle, PollFlags::IN)];
        match poll(&mut handles, Some(&timespec(left))) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

/// The id of the running kernel's boot. Pids and start times mean nothing under another.
///
/// # Errors
///
/// If `/proc` is not mounted.
pub fn boot_id() -> io::Result<String> {
    let text = fs::read_to_string(Path::new("/proc/sys/kernel/random/boot_id"))?;
    Ok(text.trim().to_owned())
}

/// What is read of `/proc/PID/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    is_stopped: bool,
    start_ticks: u64,
}

impl Stat {
    /// `None` if there is no such process.
    fn of(pid: i32) -> io::Result<Option<Self>> {
        match fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) => Ok(Self::parse(&stat)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            // Gone between open and read.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The program's name, field 2, is in parentheses and may itself contain both spaces and
    /// parentheses: what counts starts behind the last one.
    fn parse(stat: &str) -> Option<Self> {
        let (_, fields) = stat.rsplit_once(") ")?;
        let mut fields = fields.split(' ');
        Some(Self {
            is_stopped: fields.next()? == "T",
            start_ticks: fields.nth(18)?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    /// Ended with the test.
    struct Sleeper(Child);

    impl Sleeper {
        fn new() -> Self {
            Self(Command::new("sleep").arg("600").spawn().unwrap())
        }

        fn identify(&self) -> (Process, Alive) {
            Process::identify(Role::Vmm, self.0.id()).unwrap()
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn a_name_with_parentheses_does_not_move_the_fields() {
        let fields: Vec<_> = (4..=52).map(|n| n.to_string()).collect();
        let stat = |state| format!("7 (a) S (b) {state} {}", fields.join(" "));
        let parsed = |is_stopped| {
            Some(Stat {
                is_stopped,
                start_ticks: 22,
            })
        };
        assert_eq!(Stat::parse(&stat("S")), parsed(false));
        assert_eq!(Stat::parse(&stat("T")), parsed(true));
        assert_eq!(Stat::parse("7 (x) S 1"), None);
    }

    #[test]
    fn a_recycled_pid_is_not_the_process_that_was_recorded() {
        let sleeper = Sleeper::new();
        let (process, _) = sleeper.identify();
        let mut other = process.clone();
        other.start_ticks += 1;
        assert!(other.open().unwrap().is_none());
        let again = process.open().unwrap().unwrap();
        assert!(again.end(Duration::from_secs(5)).unwrap());
        assert!(process.open().unwrap().is_none());
    }

    #[test]
    fn one_that_was_stopped_is_seen_to_be() {
        let sleeper = Sleeper::new();
        let (_, alive) = sleeper.identify();
        assert!(!alive.is_stopped().unwrap());
        alive.signal(Signal::STOP).unwrap();
        let options = WaitIdOptions::STOPPED | WaitIdOptions::NOWAIT;
        waitid(WaitId::PidFd(alive.handle.as_fd()), options).unwrap();
        assert!(alive.is_stopped().unwrap());
    }
}
