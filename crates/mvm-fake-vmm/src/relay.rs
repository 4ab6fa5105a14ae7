//! A real VMM behind the stand-ins' manners: what it is asked is written down and can be made to go
//! wrong, and it is the real program that answers.
//!
//! ```text
//! mvmctl ──► api.sock (this) ──► behind.sock (the VMM)
//! ```
//!
//! The process that `mvmctl` has started becomes the VMM, so that its number, its end and its signals
//! are the real ones; this is a child of it, and ends with it.

use super::http::{Answer, Request};
use super::{Vmm, listen, note, quit, serve_on};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, getpid, getppid, kill_process, pidfd_open,
    set_parent_process_death_signal,
};
use std::env;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio, exit};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

/// The socket that the VMM is told.
const BEHIND: &str = "behind.sock";

/// A request that is for the relay itself: to write down what the guest has told by now.
const FLUSH: &str = "/flush";

/// What the guest tells of itself, in the words of `calls.log`.
const CONSOLE: &str = "console.log";
const TOLD_BY_GUEST: &str = "guest ";

/// How long what keeps the console may take to have written what it was given: nothing tells.
const KEPT: Duration = Duration::from_millis(30);

/// How long a VMM may take until its socket is there.
const UP: Duration = Duration::from_secs(10);

/// Becomes that program. If it is told of an API socket, a relay is there.
#[expect(
    clippy::zombie_processes,
    reason = "it outlives this program, and its parent's death is its own"
)]
pub(super) fn run(real: &Path, arguments: &[String]) -> ! {
    let mut socket = None;
    let behind = arguments.iter().map(|argument| {
        let (prefix, path) = match argument.strip_prefix("path=") {
            Some(path) => ("path=", path),
            None => ("", argument.as_str()),
        };
        if path != "api.sock" {
            return argument.clone();
        }
        socket = Some(path.to_owned());
        format!("{prefix}{BEHIND}")
    });
    let behind: Vec<String> = behind.collect();
    if let Some(socket) = socket {
        let _ = fs::remove_file(BEHIND);
        Command::new(env::current_exe().expect("a program has a path"))
            .arg0(RELAY)
            .arg(getpid().as_raw_nonzero().to_string())
            .stdin(Stdio::from(OwnedFd::from(listen(&socket))))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| quit(&format!("no relay: {error}")));
    }
    let error = Command::new(real).args(behind).exec();
    quit(&format!("{}: {error}", real.display()))
}

/// By which name this executable is the relay.
pub(super) const RELAY: &str = "mvm-vmm-relay";

/// Serves the listener that is its standard input, until the VMM ends.
pub(super) fn relay(arguments: &[String]) -> ! {
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    let vmm = arguments.first().and_then(|pid| pid.parse().ok());
    let vmm = vmm.and_then(Pid::from_raw).expect("the VMM's number");
    if getppid() != Some(vmm) {
        exit(1);
    }
    end_with_runner(vmm);
    let listener = std::io::stdin().as_fd().try_clone_to_owned();
    let relay = Relay {
        vmm,
        console: fs::metadata(CONSOLE).map_or(0, |found| found.len()),
    };
    serve_on(&UnixListener::from(listener.expect("a listener")), relay)
}

/// The variable with the number of the process that runs the tests.
pub(super) const RUNNER: &str = "MVM_TEST_RUNNER";

/// A guest that runs keeps a core busy: it is not to outlive a test that was killed.
fn end_with_runner(vmm: Pid) {
    let runner = env::var(RUNNER).ok().and_then(|pid| pid.parse().ok());
    let Some(runner) = runner.and_then(Pid::from_raw) else {
        return;
    };
    let Ok(runner) = pidfd_open(runner, PidfdFlags::empty()) else {
        let _ = kill_process(vmm, Signal::KILL);
        exit(1);
    };
    thread::spawn(move || {
        let ended = &mut [PollFd::new(&runner, PollFlags::IN)];
        while poll(ended, None) != Ok(1) {}
        let _ = kill_process(vmm, Signal::KILL);
        exit(1);
    });
}

/// Has what the guest of a VM in that folder has told by now written down in its `calls.log`.
pub(super) fn flush(folder: &Path) {
    // Where no relay listens there is nothing to be written down.
    let Ok(folder) = File::open(folder) else {
        return;
    };
    // By a short way: the path of a socket is.
    let socket = format!(
        "/proc/self/fd/{}/api.sock",
        std::os::fd::AsRawFd::as_raw_fd(&folder)
    );
    if fs::metadata(Path::new(&socket).with_file_name(BEHIND)).is_err() {
        return;
    }
    if let Ok(mut stream) = UnixStream::connect(socket) {
        let _ = write!(stream, "GET {FLUSH} HTTP/1.1\r\n\r\n");
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
}

struct Relay {
    vmm: Pid,
    /// How much of the console was read.
    console: u64,
}

impl Vmm for Relay {
    fn answer(&mut self, request: &Request) -> Answer {
        self.note_guest();
        match forward(request) {
            Ok(answer) => answer,
            // Its end comes just now.
            Err(error) => quit(&format!("the VMM does not answer: {error}")),
        }
    }

    fn is_own(&mut self, request: &Request) -> bool {
        let own = request.path == FLUSH;
        if own {
            sleep(KEPT);
            self.note_guest();
        }
        own
    }

    fn die(&mut self) -> ! {
        let _ = kill_process(self.vmm, Signal::KILL);
        exit(1)
    }
}

impl Relay {
    /// Writes down what the guest has told since.
    fn note_guest(&mut self) {
        let Ok(mut console) = File::open(CONSOLE) else {
            return;
        };
        if console.seek(SeekFrom::Start(self.console)).is_err() {
            return;
        }
        let mut console = BufReader::new(console);
        let mut line = Vec::new();
        while let Ok(1..) = console.read_until(b'\n', &mut line) {
            if line.last() != Some(&b'\n') {
                return;
            }
            self.console += line.len() as u64;
            let text = String::from_utf8_lossy(&line);
            // The VMM's own messages can be in front of it.
            if let Some(at) = text.find(TOLD_BY_GUEST) {
                note(text.get(at..).unwrap_or_default().trim_end());
            }
            line.clear();
        }
    }
}

fn forward(request: &Request) -> std::io::Result<Answer> {
    let mut stream = connect()?;
    let Request { method, path, body } = request;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n"
    )?;
    if length > 0 {
        write!(
            stream,
            "Content-Type: application/json\r\nContent-Length: {length}\r\n"
        )?;
    }
    stream.write_all(b"\r\n")?;
    stream.write_all(body)?;
    read_answer(&mut BufReader::new(stream))
}

fn connect() -> std::io::Result<UnixStream> {
    let until = Instant::now() + UP;
    loop {
        match UnixStream::connect(BEHIND) {
            Err(_) if Instant::now() < until => sleep(Duration::from_millis(2)),
            connected => return connected,
        }
    }
}

fn read_answer(reader: &mut BufReader<UnixStream>) -> std::io::Result<Answer> {
    let wrong = || std::io::Error::other("no answer in HTTP");
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split_whitespace().nth(1).and_then(|s| s.parse().ok());
    let status = status.ok_or_else(wrong)?;
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.trim().split_once(':') else {
            break;
        };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().map_err(|_| wrong())?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let body = String::from_utf8(body).map_err(|_| wrong())?;
    Ok(Answer::refusal(status, body))
}

/// Where, beside a stand-in, a link to the real program is, while there is to be one.
pub(super) fn link_beside(stand_in: &Path) -> Option<PathBuf> {
    Some(stand_in.parent()?.join("real").join(stand_in.file_name()?))
}
