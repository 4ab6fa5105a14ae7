//! Programs that outlive the `mvmctl` that starts them.

use crate::detach::detach;
use mvm_registry::{Alive, Process, Role, has_open, listed};
use std::fs::File;
use std::io;
use std::process::{Command, Stdio};

/// Starts a program that is to outlive this one (see [`detach`]), without standard input, its output
/// to `log`.
pub(crate) fn spawn_detached(
    role: Role,
    command: &mut Command,
    log: File,
) -> io::Result<(Process, Alive)> {
    let also = log.try_clone()?;
    command.stdin(Stdio::null()).stdout(also).stderr(log);
    detach(command);
    let mut child = command.spawn()?;
    Process::identify(role, child.id()).inspect_err(|_| {
        // One that cannot be recorded would be nobody's. Both fail only if it has ended already.
        let _ = child.kill();
        let _ = child.wait();
    })
}

/// Whether a process listens on a Unix socket, bound under exactly that name. That the socket's file
/// is there says less: it appears some instants before it can be connected to.
pub fn listens(pid: i32, socket: &str) -> io::Result<bool> {
    // Others may have bound the same relative name in folders of their own.
    has_open(pid, &listed(&pid.to_string(), socket)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Pid, Signal};
    use std::io::{BufRead, BufReader};
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::time::Duration;

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
    fn one_that_ignores_term_is_killed() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "trap '' TERM; echo ready; while :; do sleep 600; done",
        ]);
        let log = File::from(OwnedFd::from(writer));
        let (process, alive) = spawn_detached(Role::Vmm, &mut command, log).unwrap();
        drop(command);
        let mut line = String::new();
        BufReader::new(&mut reader).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        assert!(alive.end(Duration::from_millis(50)).unwrap());
        // The shell's child holds the other end of the pipe: it was not in the shell's way, and
        // would be a leak of this test's.
        let group = Pid::from_raw(process.pid).unwrap();
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
        let (_, alive) = spawn_detached(Role::Vmm, &mut command, log).unwrap();
        drop(command);
        let said = io::read_to_string(&mut reader).unwrap();
        let numbers: Vec<_> = said.split_whitespace().collect();
        let (descriptors, ids) = numbers.split_at(numbers.len() - 2);
        assert!(!descriptors.contains(&inherited.as_raw_fd().to_string().as_str()));
        assert_eq!(ids[0], ids[1], "leader of its own session");
        assert!(alive.wait(Duration::from_secs(5)).unwrap());
        assert_eq!(alive.ending().unwrap().as_deref(), Some("signal 9"));
    }
}
