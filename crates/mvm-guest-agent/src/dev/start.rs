//! Starts a command: on pipes or on a terminal of its own, as whom and where it was asked for.

use super::files;
use super::running::Running;
use super::terminal::Terminal;
use crate::core::RunId;
use crate::machine::children::{MARK, Orphans};
use crate::machine::process::{Launcher, NotStarted};
use crate::machine::program::{Program, StartFailure, no_input, own_environment, set_variable};
use crate::machine::users::{self, Identity};
use crate::ports::flow::{InputQueue, OutputSource};
use crate::ports::reply::failed;
use mvm_protocol::answer::{ErrorAnswer, ErrorCode};
use mvm_protocol::dev::exec::{Exec, Window};
use mvm_protocol::drop_in::Secs;
use mvm_protocol::object::printable;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::rc::Rc;

/// Where programs are looked for if nobody says otherwise.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How much of a command's output waits in its pipe, in bytes.
const PIPE: usize = 256 * 1024;

/// Whatever has become of the file that the agent was started from.
#[cfg(not(test))]
pub(super) const OWN_PROGRAM: &str = "/proc/self/exe";

/// A unit test's own program serves no files: this stands in for one that has no end.
#[cfg(test)]
pub(super) const OWN_PROGRAM: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/file-server.sh");

/// What failed if it was neither pipes nor cgroups.
const START: &str = "start";

/// A command that was started, and the way to its standard input.
pub(super) struct Started {
    pub(super) running: Running,
    pub(super) stdin: InputQueue,
    /// Its terminal, if it has one.
    pub(super) terminal: Option<Terminal>,
}

/// A command's standard input, output and error: its own ends.
type Stdio = [OwnedFd; 3];

/// The agent's ends of a command's standard input and output.
#[derive(Default)]
struct CommandIo {
    stdin: InputQueue,
    outputs: [OutputSource; 2],
    terminal: Option<Terminal>,
    /// The command's end of its terminal, once more.
    slave: Option<OwnedFd>,
}

/// What starts the commands of hosts.
pub(super) struct Commands {
    launcher: Rc<Launcher>,
    /// The agent's own user, whose name and home a command gets if no other user is asked for.
    user: Option<Identity>,
}

impl Commands {
    pub(super) fn new(launcher: Rc<Launcher>) -> Self {
        let uid = rustix::process::geteuid().as_raw().to_string();
        Self {
            launcher,
            user: users::look_up(Path::new("/etc"), &uid).ok(),
        }
    }

    /// Starts what was asked for, or says why not.
    pub(super) async fn start(&self, run: RunId, exec: &Exec) -> Result<Started, ErrorAnswer> {
        let identity = exec.user.as_deref().map(look_up).transpose()?;
        let io_ends = match exec.tty {
            Some(window) => on_terminal(window, exec.stdin, identity.as_ref()),
            None => on_pipes(exec.stdin),
        };
        let (io_ends, stdio) = io_ends.map_err(|failure| explain(exec, &failure))?;
        let user = identity.clone().or_else(|| self.user.clone());
        let launcher = &self.launcher;
        // It may run for weeks, and need not be one that reaps what others leave to it.
        let scope = launcher.scope(run, Orphans::ToAgent, identity);
        let scope = scope.map_err(|failure| explain(exec, &failure))?;
        let env = environment(exec, user.as_ref(), &scope.mark);
        let path = env.get("PATH").map_or(PATH, String::as_str);
        let paths = programs(exec.argv.program(), path);
        let cwd = exec.cwd.as_ref().map_or("/", |cwd| cwd.as_str());
        let env = env
            .into_iter()
            .map(|(name, value)| (name.into(), value.into()));
        let program = Program::new(cwd, &paths, exec.argv.words(), env.collect(), stdio)
            .ok_or_else(|| failed("a word has a NUL in it"))?
            .on_terminal(exec.tty.is_some());
        let process = launcher.launch(program, scope, START).await;
        let process = process.map_err(|failure| explain(exec, &failure))?;
        let timeout = exec.timeout_secs.map(Secs::duration);
        Ok(Started {
            running: Running::new(
                Rc::clone(launcher),
                process,
                io_ends.outputs,
                io_ends.slave,
                timeout,
            ),
            stdin: io_ends.stdin,
            terminal: io_ends.terminal,
        })
    }

    /// Starts this program once more, to serve the request for a file that is given as its body. Its
    /// standard output is content, its standard error are reports.
    pub(super) async fn start_helper(
        &self,
        run: RunId,
        body: &str,
        stdin: bool,
    ) -> Result<Started, ErrorAnswer> {
        let told = |failure: NotStarted| explain_own(&failure);
        let (io_ends, ends) = on_pipes(stdin).map_err(told)?;
        let launcher = &self.launcher;
        let scope = launcher.scope(run, Orphans::ToAgent, None).map_err(told)?;
        let program =
            helper(body, &scope.mark, ends).ok_or_else(|| failed("the request has a NUL in it"))?;
        let process = launcher
            .launch(program, scope, "the agent once more")
            .await
            .map_err(told)?;
        Ok(Started {
            running: Running::new(Rc::clone(launcher), process, io_ends.outputs, None, None),
            stdin: io_ends.stdin,
            terminal: None,
        })
    }
}

fn helper(body: &str, mark: &str, stdio: Stdio) -> Option<Program> {
    let words = [OWN_PROGRAM, &format!("--{}", files::FLAG), body];
    let mut env = own_environment();
    set_variable(&mut env, MARK, mark);
    Program::new("/", &[OWN_PROGRAM.to_owned()], &words, env, stdio)
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

fn on_pipes(takes_input: bool) -> Result<(CommandIo, Stdio), NotStarted> {
    let failed = |error: io::Error| NotStarted::new("pipe", error);
    let mut io_ends = CommandIo::default();
    let stdin_end = if takes_input {
        let (read, write) = pipe().map_err(failed)?;
        io_ends.stdin = nonblocking(write)
            .and_then(InputQueue::new)
            .map_err(failed)?;
        read
    } else {
        no_input().map_err(failed)?
    };
    let output = || {
        let (read, write) = pipe().map_err(failed)?;
        // Larger reads are fewer of them. Over the user's limit (pipe(7)) the pipe stays as it is.
        let _ = fcntl_setpipe_size(&read, PIPE);
        let source = nonblocking(read)
            .and_then(OutputSource::new)
            .map_err(failed)?;
        Ok((source, write))
    };
    let ((stdout, stdout_end), (stderr, stderr_end)) = (output()?, output()?);
    io_ends.outputs = [stdout, stderr];
    Ok((io_ends, [stdin_end, stdout_end, stderr_end]))
}

fn on_terminal(
    window: Window,
    stdin: bool,
    user: Option<&Identity>,
) -> Result<(CommandIo, Stdio), NotStarted> {
    let failed = |error: io::Error| NotStarted::new("terminal (is /dev/pts mounted?)", error);
    let (terminal, slave) = Terminal::open(window, user).map_err(failed)?;
    let source = terminal.end().and_then(OutputSource::new).map_err(failed)?;
    let mut io_ends = CommandIo {
        outputs: [source, OutputSource::default()],
        ..CommandIo::default()
    };
    if stdin {
        let end = terminal.again().map_err(failed)?;
        let to = end.end().map_err(failed)?;
        io_ends.stdin = InputQueue::told(to, end).map_err(failed)?;
    }
    io_ends.terminal = Some(terminal);
    let same = || slave.try_clone().map_err(failed);
    io_ends.slave = Some(same()?);
    Ok((io_ends, [same()?, same()?, slave]))
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(pipe_with(PipeFlags::CLOEXEC)?)
}

/// The agent's end of a pipe alone does not block: the command's is another open file.
fn nonblocking(fd: OwnedFd) -> io::Result<OwnedFd> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    Ok(fd)
}

fn look_up(user: &str) -> Result<Identity, ErrorAnswer> {
    users::look_up(Path::new("/etc"), &printable(user))
        .map_err(|reason| ErrorAnswer::new(ErrorCode::NotFound, reason))
}

/// The agent's own variables, the user's, and what was asked for, the later before the earlier.
fn environment(exec: &Exec, user: Option<&Identity>, mark: &str) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let own = own_environment()
        .into_iter()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    all.insert("PATH".to_owned(), PATH.to_owned());
    all.extend(own);
    if exec.tty.is_some() {
        // What the agent itself was started on says nothing of the host's terminal.
        all.insert("TERM".to_owned(), "xterm".to_owned());
    }
    if let Some(user) = user {
        let of_user = [
            ("HOME", &user.home),
            ("USER", &user.name),
            ("LOGNAME", &user.name),
        ];
        all.extend(of_user.map(|(name, value)| (name.to_owned(), value.clone())));
    }
    let asked = exec.env.iter();
    all.extend(asked.map(|(name, value)| (name.to_owned(), value.to_owned())));
    // By this variable the command's process tree is found again.
    all.insert(MARK.to_owned(), mark.to_owned());
    all
}

/// Why a command was not started, in the terms of the protocol.
fn explain(exec: &Exec, failure: &NotStarted) -> ErrorAnswer {
    if failure.what != START {
        return explain_own(failure);
    }
    let program = printable(exec.argv.program());
    let cwd = exec.cwd.as_ref().map_or("/", |cwd| cwd.as_str());
    let failed_at = StartFailure::from_error(&failure.error);
    let is_folder = matches!(failed_at, StartFailure::Cwd(_));
    let (what, errno) = match failed_at {
        StartFailure::Cwd(errno) => (format!("folder `{}`", printable(cwd)), errno),
        // A script that is there says the same if its interpreter is not.
        StartFailure::Program(Errno::NOENT) => (
            format!("`{program}`, or the interpreter that it names"),
            Errno::NOENT,
        ),
        StartFailure::Program(errno) => (format!("`{program}`"), errno),
        StartFailure::Before(errno) => {
            (format!("`{program}` as user `{}`", user_name(exec)), errno)
        }
    };
    let error = io::Error::from(errno);
    match errno {
        // It is there, and cannot be entered.
        Errno::NOTDIR if is_folder => {
            ErrorAnswer::new(ErrorCode::NotAllowed, format!("{what}: {error}"))
        }
        Errno::NOENT | Errno::NOTDIR => {
            ErrorAnswer::new(ErrorCode::NotFound, format!("{what}: {error}"))
        }
        Errno::ACCESS | Errno::PERM | Errno::NOEXEC => {
            ErrorAnswer::new(ErrorCode::NotAllowed, format!("{what}: {error}"))
        }
        Errno::TOOBIG => failed(format!(
            "{what}: its arguments and environment are more than the kernel takes: {error}"
        )),
        Errno::AGAIN | Errno::NOMEM | Errno::MFILE | Errno::NFILE => {
            ErrorAnswer::new(ErrorCode::Busy, format!("{what}: {error}"))
        }
        _ => failed(format!("{what}: {error}")),
    }
}

/// Why it did not come to a new process. For want of descriptors it may later.
fn explain_own(failure: &NotStarted) -> ErrorAnswer {
    let code = if failure.is_resource_shortage() {
        ErrorCode::Busy
    } else {
        ErrorCode::Failed
    };
    ErrorAnswer::new(code, format!("{}: {}", failure.what, failure.error))
}

fn user_name(exec: &Exec) -> String {
    printable(exec.user.as_deref().unwrap_or("the agent's own"))
}

#[cfg(test)]
mod tests {
    use super::programs;

    #[test]
    fn a_slash_is_a_path_and_a_name_is_looked_for() {
        assert_eq!(programs("./x", "/a:/b"), ["./x"]);
        assert_eq!(programs("x", "/a::/b"), ["/a/x", "./x", "/b/x"]);
    }
}
