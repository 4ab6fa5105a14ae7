//! `mvmctl vm exec`

use super::Context;
use super::dev::{failure, session};
use super::liveness;
use super::running::{self, End, LastHeard, OutputSink, Passthrough, SignalTarget, follow};
use crate::args::Format;
use crate::raw_terminal;
use crate::render::data::{self, Named};
use crate::render::shown;
use crate::report::{Ended, Failure, Kind, Outcome};
use crate::vm_name;
use crate::vm_state::VmStates;
use mvm_client::{Deadlines, Error};
use mvm_protocol::ErrorCode;
use mvm_protocol::dev::exec::{Argv, Env, Exec, ExecExited, Path};
use mvm_protocol::drop_in::Secs;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tracing::Instrument as _;

const EXIT_CODES: &str = "\
Exit codes:
  the command's own, or
  124    its --timeout was up
  125    mvmctl or the agent failed, or the VM cannot be reached
  126    the guest has such a program, and cannot run it
  127    the guest has no such program, user or folder
  128+n  signal n ended it";

/// Run a command in a guest (dev builds of the agent)
///
/// Its output is ours, and so is its exit code. No shell is involved: for one, run sh -c '…'. There
/// is no deadline unless --timeout sets one, which the guest keeps; a guest that does not is given up
/// five seconds later. Ctrl-C is passed on; the second one ends the command
/// with all that it has started. With --json its outcome is one object, with the last 1 MiB of each
/// output.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXIT_CODES)]
pub(crate) struct Args {
    /// Pass standard input on; the command's is empty otherwise
    #[arg(short, long)]
    interactive: bool,

    /// Give the command a terminal; with -i it is this one
    #[arg(short, long)]
    tty: bool,

    /// Set an environment variable; KEY alone takes it from here. May be repeated
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,

    /// The folder in the guest that it starts in [default: /]
    #[arg(short, long, value_name = "DIR", value_parser = path)]
    workdir: Option<Path>,

    /// Whom it runs as, by name or number [default: the agent's user]
    #[arg(short, long)]
    user: Option<String>,

    /// Run it as a job, which goes on when mvmctl has ended, and print the job's number
    #[arg(short, long, conflicts_with = "interactive")]
    detach: bool,

    #[command(flatten)]
    vm: vm_name::One,

    /// The program, and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Reads `KEY=VALUE`, or `KEY` of this process's environment.
fn variable(text: &str) -> Result<(String, String), String> {
    if let Some((key, value)) = text.split_once('=') {
        return Ok((key.to_owned(), value.to_owned()));
    }
    let value = std::env::var(text)
        .map_err(|_| format!("`{text}` is not set here: KEY=VALUE says what it is to be"))?;
    Ok((text.to_owned(), value))
}

/// Reads a path in a guest.
fn path(text: &str) -> Result<Path, &'static str> {
    Path::new(text.to_owned())
}

/// What `--json` shows.
#[derive(Debug, Serialize)]
struct Shown {
    exit_code: Option<i32>,
    signal: Option<String>,
    timed_out: bool,
    /// Output is missing, in the guest or here.
    truncated: bool,
    duration_ms: u64,
    stdout: String,
    stderr: String,
}

impl Args {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
        let span = tracing::info_span!("vm", name = self.vm.name);
        let ran = async {
            if self.detach {
                self.start_job(context).await
            } else {
                self.run_to_its_end(context).await
            }
        };
        ran.instrument(span).await.map_err(|failure| Failure {
            kind: failure.kind.of_a_run(),
            ..failure
        })
    }

    fn asked(&self, context: &Context) -> Result<Exec, Failure> {
        let mut env: BTreeMap<_, _> = self.env.iter().cloned().collect();
        if self.tty
            && !env.contains_key("TERM")
            && let Ok(term) = std::env::var("TERM")
        {
            env.insert("TERM".into(), term);
        }
        let timeout = context.timeout.map(|timeout| {
            Secs::new(timeout).ok_or_else(|| {
                Failure::usage("--timeout of a command is a day at most, or none at all")
            })
        });
        let usage = |problem: &'static str| Failure::usage(format!("{problem}: see --help"));
        Ok(Exec {
            env: Env::new(env).map_err(usage)?,
            cwd: self.workdir.clone(),
            user: self.user.clone(),
            tty: self.tty.then(running::window),
            stdin: self.interactive,
            timeout_secs: timeout.transpose()?,
            ..Exec::new(Argv::new(self.command.clone()).map_err(usage)?)
        })
    }

    async fn run_to_its_end(&self, context: &Context) -> Result<Outcome, Failure> {
        let vm = self.vm.name.as_str();
        let as_data = matches!(context.format, Format::Json | Format::Yaml);
        let has_terminal = raw_terminal::is_stdin();
        if self.interactive && self.tty && !has_terminal {
            return Err(Failure::usage(
                "standard input is no terminal, and a terminal in the guest would change what is \
                 piped into it",
            )
            .hint("leave out -t"));
        }
        if self.tty && as_data {
            return Err(
                Failure::usage("a terminal's output is no data").hint("leave out -t, or --json")
            );
        }
        let asked = self.asked(context)?;
        let keys = self.interactive && self.tty;
        let passthrough = Passthrough {
            input: self.interactive,
            window: self.tty,
            keys,
            signals: if keys {
                SignalTarget::Mvmctl
            } else {
                SignalTarget::Command
            },
        };
        let states = VmStates::new(context);
        let mut state = states.of(vm)?;
        // `--timeout` is the command's, not the connection's.
        let mut session = session(context, vm, &Deadlines::default()).await?;
        let begun = Instant::now();
        let command = session
            .exec(asked)
            .await
            .map_err(|error| refused(vm, &error))?;
        let mut output = if as_data {
            OutputSink::kept()
        } else {
            OutputSink::streams()?
        };
        let heard = LastHeard::now();
        let cut = async {
            tokio::select! {
                cut = liveness::limit(vm, context.timeout) => cut,
                cut = liveness::not_running(&mut state) => cut,
            }
        };
        let followed = follow(
            command,
            passthrough,
            Some(context.termination_requests()),
            &mut output,
            &heard,
            cut,
        );
        let end = followed.await?;
        let exited = match end.map_err(|broken| running::failed(vm, broken))? {
            End::Exited(exited) => exited,
            // As if our output had been its own.
            End::Unread => return Ok(Outcome::Ended(Ended::Signal(running::SIGPIPE))),
            End::RunsOn => {
                return Err(Failure::failed("the agent takes the command for a job").of(vm));
            }
        };
        let ended = running::ended(vm, &exited)?;
        if as_data {
            show(context, vm, exited, output, begun.elapsed())?;
        } else if ended == Ended::TimedOut {
            let after = context.timeout.unwrap_or_default();
            context.ui.error(&format!(
                "{vm}: the command was not done after {after:?}, and was ended"
            ));
        }
        Ok(Outcome::Ended(ended))
    }

    async fn start_job(&self, context: &Context) -> Result<Outcome, Failure> {
        let vm = self.vm.name.as_str();
        let asked = self.asked(context)?;
        let mut session = session(context, vm, &Deadlines::default()).await?;
        let started = session.start_job(asked).await;
        let started = started.map_err(|error| refused(vm, &error))?;
        match context.format {
            Format::Json | Format::Yaml => {
                let answer = &started;
                data::document(context, &Named { vm, answer })?;
            }
            _ => context
                .ui
                .print(&shown::Shown::line(&started.job.to_string()))?,
        }
        Ok(Outcome::Done)
    }
}

fn show(
    context: &Context,
    vm: &str,
    exited: ExecExited,
    output: OutputSink,
    took: Duration,
) -> Result<(), Failure> {
    let (mut stdout, mut stderr) = output.into_kept();
    let answer = Shown {
        exit_code: exited.exit_code,
        signal: exited.signal,
        timed_out: exited.timed_out,
        truncated: exited.truncated || stdout.is_cut() || stderr.is_cut(),
        duration_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        stdout: stdout.text(),
        stderr: stderr.text(),
    };
    data::document(context, &Named { vm, answer })
}

/// Why a command was not begun.
fn refused(vm: &str, error: &Error) -> Failure {
    let failure = failure(vm, error);
    let (kind, hint) = match error {
        Error::Refused(refusal) => match refusal.code.known() {
            Some(ErrorCode::NotFound) => (
                Kind::NoProgram,
                "program, folder (-w) and user (-u) have to be there in the guest. A shell's own words \
                 need a shell: -- sh -c '…'",
            ),
            Some(ErrorCode::NotAllowed) => (
                Kind::CannotRun,
                "see that it is a program, and that its user may run it (-u) and enter its folder (-w)",
            ),
            _ => return failure,
        },
        _ => return failure,
    };
    Failure { kind, ..failure }.hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables() {
        assert_eq!(variable("A=b=c"), Ok(("A".into(), "b=c".into())));
        assert_eq!(variable("A="), Ok(("A".into(), String::new())));
        let path = std::env::var("PATH").unwrap();
        assert_eq!(variable("PATH"), Ok(("PATH".into(), path)));
        assert!(variable("MVM_SURELY_NOT_SET").is_err());
    }
}
