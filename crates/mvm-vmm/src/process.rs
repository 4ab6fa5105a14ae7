//! Programs that outlive the `mvmctl` that starts them.

use crate::detach::{detach, spawn_recorded};
use mvm_registry::{Alive, Process, Role, has_open, listed};
use std::io;
use std::process::{Command, Stdio};

/// Starts a program that is to outlive this one (see [`detach`]), with these as its standard input,
/// output and error, none of which is open here afterwards. It begins to run only when `record` has
/// noted it: see [`spawn_recorded`]. One that could not be started then has been noted all the same.
pub(crate) fn spawn_detached<E: From<io::Error> + Send>(
    role: Role,
    command: &mut Command,
    (stdin, stdout, stderr): (Stdio, Stdio, Stdio),
    record: impl FnOnce(&Process) -> Result<(), E> + Send,
) -> Result<(Process, Alive), E> {
    command.stdin(stdin).stdout(stdout).stderr(stderr);
    detach(command);
    let spawned = spawn_recorded(command, |pid| -> Result<_, E> {
        let (process, alive) = Process::identify(role, pid)?;
        record(&process)?;
        Ok((process, alive))
    });
    // Whoever reads what it writes is to see its end.
    let nothing = || Stdio::null();
    command.stdin(nothing()).stdout(nothing()).stderr(nothing());
    Ok(spawned?.1)
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
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
    use std::fs::File;
    use std::io::{BufRead, BufReader};
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::path::Path;
    use std::time::Duration;

    fn spawn(command: &mut Command, log: File) -> io::Result<(Process, Alive)> {
        spawn_detached(Role::Vmm, command, to(log), |_| Ok(()))
    }

    fn to(log: File) -> (Stdio, Stdio, Stdio) {
        let also = log.try_clone().unwrap();
        (Stdio::null(), also.into(), log.into())
    }

    /// Where a test is run again as the program that is killed, a folder; see below.
    const KILLED_IN: &str = "MVM_TEST_KILLED_IN";

    /// A program that says that it runs.
    fn marking(folder: &Path) -> Command {
        let mut command = Command::new("sh");
        let ran = folder.join("ran");
        command
            .args(["-c", "echo >\"$0\"; exec sleep 600"])
            .arg(ran);
        command
    }

    /// Run by the test below alone, in a process of its own.
    #[test]
    fn killed_before_it_has_recorded() {
        let Some(folder) = std::env::var_os(KILLED_IN) else {
            return;
        };
        let folder = Path::new(&folder);
        let log = File::create(folder.join("log")).unwrap();
        let _ = spawn_detached(Role::Vmm, &mut marking(folder), to(log), |process| {
            std::fs::write(folder.join("pid"), process.pid.to_string())?;
            let own = rustix::process::getpid();
            rustix::process::kill_process(own, Signal::KILL)?;
            // It takes effect at once.
            std::thread::sleep(Duration::from_secs(60));
            io::Result::Ok(())
        });
    }

    #[test]
    fn what_was_not_recorded_never_runs() {
        let folder = tempfile::tempdir().unwrap();
        let test = "process::tests::killed_before_it_has_recorded";
        let killed = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test])
            .env(KILLED_IN, folder.path())
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&killed),
            Some(9)
        );
        let pid = std::fs::read_to_string(folder.path().join("pid")).unwrap();
        let pid = Pid::from_raw(pid.parse().unwrap()).unwrap();
        // Not our child: its end is an event of a pidfd.
        if let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) {
            let mut ended = [PollFd::new(&process, PollFlags::IN)];
            let at_most = Timespec {
                tv_sec: 10,
                tv_nsec: 0,
            };
            let count = poll(&mut ended, Some(&at_most)).unwrap();
            if count == 0 {
                rustix::process::kill_process(pid, Signal::KILL).unwrap();
            }
            assert_eq!(count, 1, "it is still there");
        }
        assert!(!folder.path().join("ran").exists(), "it ran");
    }

    #[test]
    fn what_could_not_be_recorded_does_not_run_and_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let log = File::create(folder.path().join("log")).unwrap();
        let full = |_: &Process| Err(io::Error::from(io::ErrorKind::StorageFull));
        let refused = spawn_detached(Role::Vmm, &mut marking(folder.path()), to(log), full);
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert!(!folder.path().join("ran").exists(), "it ran");
    }

    #[test]
    fn a_program_that_is_not_there_is_told_as_such() {
        let folder = tempfile::tempdir().unwrap();
        let log = File::create(folder.path().join("log")).unwrap();
        let error = spawn(&mut Command::new("/nonexistent"), log).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
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
        assert!(Path::new(&path).exists() && !listens(own, &path).unwrap());
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
        let (process, alive) = spawn(&mut command, log).unwrap();
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
        let (_, alive) = spawn(&mut command, log).unwrap();
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
