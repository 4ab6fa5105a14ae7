//! Running a program for what it says, such as its version: with a deadline, after which it is ended
//! with all that it has started. A program that was named by mistake may do anything.
//!
//! By hand, though there are crates: wait-timeout has a handler for SIGCHLD of its own for the whole
//! process, and those that read the output too (subprocess, duct) wait for its end, which something
//! that the program has left running puts off for as long as it likes.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, set_parent_process_death_signal,
};
use std::fs::File;
use std::io::{self, ErrorKind, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// How long a program may take that tells its version, checks a file, or lists what it has in it. It
/// takes milliseconds, and on a machine that is busy a second.
pub(crate) const BRIEFLY: Duration = Duration::from_secs(10);

/// The most that it may say on either output, in bytes.
const MAX_SAID: usize = 1024 * 1024;

/// Runs it to its end, or to the deadline's, which is an error of the kind `TimedOut`.
pub(crate) fn run(command: &mut Command, at_most: Duration) -> io::Result<Output> {
    let until = Instant::now() + at_most;
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    #[expect(
        unsafe_code,
        reason = "only there can it be bound to this program's end"
    )]
    // SAFETY: one system call that takes a number and touches no memory, which is safe between fork
    // and exec.
    unsafe {
        // A group of its own hears no Ctrl-C, and is to end with us all the same.
        command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
    }
    let mut running = Running {
        child: command.spawn()?,
        is_over: false,
    };
    let pid = i32::try_from(running.child.id()).map_err(io::Error::other)?;
    let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::other("a child without a number"))?;
    let ended = pidfd_open(pid, PidfdFlags::empty())?;
    let mut stdout = Said::on(running.child.stdout.take().map(OwnedFd::from))?;
    let mut stderr = Said::on(running.child.stderr.take().map(OwnedFd::from))?;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let why = format!("it has not ended within {at_most:?}, and was ended");
            return Err(io::Error::new(ErrorKind::TimedOut, why));
        }
        let mut events = vec![PollFd::new(&ended, PollFlags::IN)];
        for output in [&stdout, &stderr] {
            let pipe = output.pipe.as_ref();
            events.extend(pipe.map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        }
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut events, Some(&left)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        // Not the outputs' ends: something that it has left running may hold them.
        let is_over = events
            .first()
            .is_some_and(|process| !process.revents().is_empty());
        stdout.listen()?;
        stderr.listen()?;
        if is_over {
            return Ok(Output {
                status: running.end()?,
                stdout: stdout.text,
                stderr: stderr.text,
            });
        }
    }
}

/// One that does not outlive this, nor does what it has started, unless that left its group.
struct Running {
    child: Child,
    is_over: bool,
}

impl Running {
    fn end(&mut self) -> io::Result<ExitStatus> {
        self.is_over = true;
        // Until it is waited for, its number, and so the group's, is nobody else's.
        let group = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(group) = group {
            // Fails only if nobody is left in it.
            let _ = kill_process_group(group, Signal::KILL);
        }
        self.child.wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.is_over {
            let _ = self.end();
        }
    }
}

/// What it has said on one of its outputs.
struct Said {
    /// Until it ends.
    pipe: Option<File>,
    text: Vec<u8>,
}

impl Said {
    fn on(pipe: Option<OwnedFd>) -> io::Result<Self> {
        let pipe = pipe.map(File::from);
        if let Some(pipe) = &pipe {
            rustix::io::ioctl_fionbio(pipe, true)?;
        }
        Ok(Self {
            pipe,
            text: Vec::new(),
        })
    }

    /// Takes what there is.
    fn listen(&mut self) -> io::Result<()> {
        let mut piece = [0; 8192];
        while let Some(pipe) = &mut self.pipe {
            match pipe.read(&mut piece) {
                Ok(0) => self.pipe = None,
                Ok(count) => {
                    self.text
                        .extend_from_slice(piece.get(..count).unwrap_or_default());
                    if self.text.len() > MAX_SAID {
                        return Err(io::Error::other("it says more than 1 MiB, and was ended"));
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, at_most: Duration) -> io::Result<Output> {
        run(Command::new("sh").args(["-c", script]), at_most)
    }

    #[test]
    fn what_it_says_and_how_it_ends() {
        let output = sh("echo out; echo err >&2; exit 3", BRIEFLY).unwrap();
        assert_eq!(output.status.code(), Some(3));
        assert_eq!(
            (&*output.stdout, &*output.stderr),
            (&b"out\n"[..], &b"err\n"[..])
        );
        assert!(run(&mut Command::new("/nonexistent"), BRIEFLY).is_err());
    }

    #[test]
    fn one_that_hangs_is_ended_with_what_it_has_started() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            0o600.into(),
            0,
        )
        .unwrap();
        let held = folder.path().join("held");
        // The helper holds the pipe's end for as long as it runs, and says so before the deadline.
        let script = format!(
            "(exec 3>{0}; echo >{1}; exec sleep 600) & sleep 600",
            fifo.display(),
            held.display()
        );
        // Opening waits for a writer, the end of the file for its end.
        let helper = std::thread::spawn(move || std::fs::read(fifo).unwrap());
        let error = sh(&script, Duration::from_secs(1)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert_eq!(helper.join().unwrap(), b"");
        assert!(held.exists(), "it was never there");
    }

    #[test]
    fn what_it_leaves_running_does_not_keep_it_from_ending() {
        let output = sh("sleep 600 & echo done", BRIEFLY).unwrap();
        assert_eq!(output.stdout, b"done\n");
    }

    #[test]
    fn one_that_talks_without_end_is_ended() {
        let error = sh("exec yes", BRIEFLY).unwrap_err();
        assert!(error.to_string().contains("1 MiB"), "{error}");
    }
}
