//! Processes that outlive the `mvmctl` that started them, and are never taken for others.
//!
//! A pid in a file means nothing by itself: the process may be gone and the number given to another
//! one. So each is remembered with its start time, and whoever acts on it opens a pidfd first and
//! compares afterwards; what the pidfd refers to cannot change any more.

use crate::detach::detach;
use crate::error::Error;
use crate::socket::listed;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open, pidfd_send_signal,
    waitid,
};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A process as `vm.json` knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// What it is to the VM: `vmm`, `vsock`, `agent`.
    pub role: String,
    /// Its number.
    pub pid: i32,
    /// When it started, in clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub start_ticks: u64,
}

/// A process that is certainly the one that was meant.
#[derive(Debug)]
pub struct Alive {
    /// What it is to the VM.
    pub role: String,
    /// Its number.
    pub pid: i32,
    handle: OwnedFd,
}

impl Process {
    /// Opens the process if it still runs, and is the one that was recorded.
    pub fn open(&self) -> io::Result<Option<Alive>> {
        let Some(pid) = Pid::from_raw(self.pid) else {
            return Ok(None);
        };
        let handle = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(handle) => handle,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if start_ticks(self.pid)? != Some(self.start_ticks) {
            return Ok(None);
        }
        let alive = Alive {
            role: self.role.clone(),
            pid: self.pid,
            handle,
        };
        Ok((!alive.wait(Duration::ZERO)?).then_some(alive))
    }
}

impl Alive {
    /// Sends a signal. That it is gone already is no error.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.handle, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether it has ended within that time.
    pub fn wait(&self, at_most: Duration) -> io::Result<bool> {
        let until = Instant::now() + at_most;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let mut handles = [PollFd::new(&self.handle, PollFlags::IN)];
            match poll(&mut handles, Some(&timespec(left))) {
                Ok(0) => return Ok(false),
                Ok(_) => return Ok(true),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
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

    /// How it ended, in words; `None` while it runs.
    pub fn ending(&self) -> io::Result<Option<String>> {
        if !self.wait(Duration::ZERO)? {
            return Ok(None);
        }
        let how = self.reap().map_or_else(
            || "it is gone".to_owned(),
            |status| match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => format!("exit status {code}"),
                (None, Some(signal)) => format!("signal {signal}"),
                (None, None) => "it is gone".to_owned(),
            },
        );
        Ok(Some(how))
    }
}

/// Starts a program that is to outlive this one (see [`detach`]), without standard input, its output
/// to `log`.
pub(crate) fn spawn_detached(role: &str, command: &mut Command, log: File) -> io::Result<Spawned> {
    let also = log.try_clone()?;
    command.stdin(Stdio::null()).stdout(also).stderr(log);
    detach(command);
    let mut child = command.spawn()?;
    identify(role, child.id()).inspect_err(|_| {
        // One that cannot be recorded would be nobody's. Both fail only if it has ended already.
        let _ = child.kill();
        let _ = child.wait();
    })
}

/// A child of which nobody has taken the exit status yet, so that its number is still its own.
fn identify(role: &str, id: u32) -> io::Result<Spawned> {
    let pid = i32::try_from(id).map_err(io::Error::other)?;
    let raw = Pid::from_raw(pid).ok_or_else(|| io::Error::other("a child without a number"))?;
    let handle = pidfd_open(raw, PidfdFlags::empty())?;
    let start_ticks = start_ticks(pid)?.ok_or_else(|| io::Error::other("/proc is not mounted"))?;
    let role = role.to_owned();
    Ok(Spawned {
        process: Process {
            role: role.clone(),
            pid,
            start_ticks,
        },
        alive: Alive { role, pid, handle },
    })
}

/// What [`spawn_detached`] gives: how to remember the process, and how to act on it now.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub(crate) process: Process,
    pub(crate) alive: Alive,
}

/// The id of the running kernel's boot. Pids and start times mean nothing under another.
pub fn boot_id() -> Result<String, Error> {
    let path = std::path::Path::new("/proc/sys/kernel/random/boot_id");
    let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    Ok(text.trim().to_owned())
}

/// Whether a process listens on a Unix socket, bound under exactly that name. That the socket's file
/// is there says less: it appears some instants before it can be connected to.
pub fn listens(pid: i32, socket: &str) -> io::Result<bool> {
    let listening = listed(&pid.to_string(), socket)?;
    let listening: Vec<_> = listening
        .iter()
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    // Others may have bound the same relative name in folders of their own.
    for descriptor in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        let target = descriptor.and_then(|entry| std::fs::read_link(entry.path()));
        // One that was closed meanwhile is not the one that is looked for.
        if target.is_ok_and(|to| listening.iter().any(|one| to.as_os_str() == one.as_str())) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Field 22 of `/proc/PID/stat`; `None` if there is no such process, or it is a zombie.
fn start_ticks(pid: i32) -> io::Result<Option<u64>> {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => Ok(parse_start_ticks(&stat)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // ESRCH: gone between open and read.
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The program's name, field 2, is in parentheses and may itself contain both spaces and
/// parentheses: what counts starts behind the last one.
fn parse_start_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(19)?.parse().ok()
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::os::fd::AsRawFd;

    fn log() -> File {
        File::options().write(true).open("/dev/null").unwrap()
    }

    #[test]
    fn a_name_with_parentheses_does_not_move_the_fields() {
        let fields: Vec<_> = (3..=52).map(|n| n.to_string()).collect();
        let stat = format!("7 (a) S (b) {}", fields.join(" "));
        assert_eq!(parse_start_ticks(&stat), Some(22));
        assert_eq!(parse_start_ticks("7 (x) S 1"), None);
    }

    #[test]
    fn a_socket_that_is_bound_is_not_yet_listened_on() {
        use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s").display().to_string();
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(!listens(own, &path).unwrap());
        let socket = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        assert!(std::path::Path::new(&path).exists() && !listens(own, &path).unwrap());
        listen(&socket, 1).unwrap();
        assert!(listens(own, &path).unwrap());
        let parent = i32::try_from(std::os::unix::process::parent_id()).unwrap();
        assert!(!listens(parent, &path).unwrap(), "not its socket");
    }

    #[test]
    fn a_recycled_pid_is_not_the_process_that_was_recorded() {
        let mut command = Command::new("sleep");
        let spawned = spawn_detached("vmm", command.arg("600"), log()).unwrap();
        let mut other = spawned.process.clone();
        other.start_ticks += 1;
        assert!(other.open().unwrap().is_none());
        let again = spawned.process.open().unwrap().unwrap();
        assert!(again.end(Duration::from_secs(5)).unwrap());
        assert!(spawned.process.open().unwrap().is_none());
    }

    #[test]
    fn one_that_ignores_term_is_killed() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "trap '' TERM; echo ready; while :; do sleep 600; done",
        ]);
        let log = File::from(OwnedFd::from(writer));
        let spawned = spawn_detached("vmm", &mut command, log).unwrap();
        drop(command);
        let mut line = String::new();
        BufReader::new(&mut reader).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        assert!(spawned.alive.end(Duration::from_millis(50)).unwrap());
        // The shell's child holds the other end of the pipe: it was not in the shell's way, and
        // would be a leak of this test's.
        let group = Pid::from_raw(spawned.process.pid).unwrap();
        rustix::process::kill_process_group(group, Signal::KILL).unwrap();
    }

    #[test]
    fn it_has_a_session_of_its_own_and_no_descriptor_of_ours() {
        let (mut reader, writer) = io::pipe().unwrap();
        let (_, inherited) = io::pipe().unwrap();
        // As if our own parent had left it open for us.
        rustix::io::fcntl_setfd(&inherited, rustix::io::FdFlags::empty()).unwrap();
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "ls /proc/self/fd; cut -d' ' -f1,6 /proc/$$/stat; kill -9 $$",
        ]);
        let log = File::from(OwnedFd::from(writer));
        let spawned = spawn_detached("vmm", &mut command, log).unwrap();
        drop(command);
        let said = io::read_to_string(&mut reader).unwrap();
        let numbers: Vec<_> = said.split_whitespace().collect();
        let (descriptors, ids) = numbers.split_at(numbers.len() - 2);
        assert!(!descriptors.contains(&inherited.as_raw_fd().to_string().as_str()));
        assert_eq!(ids[0], ids[1], "leader of its own session");
        assert!(spawned.alive.wait(Duration::from_secs(5)).unwrap());
        assert_eq!(spawned.alive.ending().unwrap().as_deref(), Some("signal 9"));
    }
}
