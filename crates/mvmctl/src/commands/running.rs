//! A command in a guest, joined to this process: its output here, our input, signals and window
//! there, until it ends. `exec` and `attach` share it.

use super::dev::failure;
use crate::raw_terminal::{self, RawTerminal};
use crate::report::{Ended, Failure};
use crate::stdio::{self, Stream, Stuck, Writer};
use crate::termination::TerminationRequests;
use mvm_client::dev::{Command, CommandInput, CommandOutput, Output};
use mvm_protocol::dev::exec::{ExecExited, Window};
use mvm_protocol::signal::{self, Signal};
use std::convert::Infallible;
use std::time::Duration;
use tokio::signal::unix::{Signal as Signals, SignalKind, signal as signals};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// How long a signal may take to be sent. It waits behind input that the command does not read.
const SEND_SIGNAL: Duration = Duration::from_secs(2);

/// How much of each stream is kept for `--json`, in bytes: its end.
const KEPT: usize = 1024 * 1024;

/// The signal by which a command ends whose output nobody reads.
pub(super) const SIGPIPE: i32 = 13;

/// What of this process the command gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Joined {
    /// Our standard input.
    pub(super) input: bool,
    /// Our terminal's size, and its changes.
    pub(super) window: bool,
    /// Our terminal itself, each key of it.
    pub(super) keys: bool,
    /// What signals to this process are for.
    pub(super) signals: ForSignals,
}

/// What is done with a signal that asks this process to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ForSignals {
    /// The command gets it. The second one is for us.
    Command,
    /// It is for us.
    Us,
}

/// What came of following a command, and what it wrote if that was kept.
#[derive(Debug)]
pub(super) struct Followed {
    pub(super) end: End,
    pub(super) stdout: Tail,
    pub(super) stderr: Tail,
}

/// Why there is no more to follow.
#[derive(Debug)]
pub(super) enum End {
    /// It has ended.
    Exited(ExecExited),
    /// It is a job that runs on.
    RunsOn,
    /// Nobody reads our standard output any more.
    Unread,
}

/// The end of what was written.
#[derive(Debug, Default)]
pub(super) struct Tail {
    bytes: Vec<u8>,
    lost: bool,
}

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        // In large steps, so that keeping the end costs nothing.
        if self.bytes.len() > 2 * KEPT {
            self.trim();
        }
    }

    fn trim(&mut self) {
        let over = self.bytes.len().saturating_sub(KEPT);
        self.lost |= over > 0;
        self.bytes.drain(..over);
    }

    /// Whether its beginning is missing.
    pub(super) fn is_cut(&mut self) -> bool {
        self.trim();
        self.lost
    }

    /// As text; what is not UTF-8 is replaced.
    pub(super) fn text(&mut self) -> String {
        self.trim();
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

/// Where output goes.
enum Sink {
    Streams(Writer),
    Kept(Tail, Tail),
}

impl Sink {
    /// Waits until nothing more can be written, and says why.
    async fn stuck(&mut self) -> Stuck {
        match self {
            Self::Streams(writer) => writer.why().await,
            Self::Kept(..) => std::future::pending().await,
        }
    }
}

/// Why a command is not followed to its end.
enum Over {
    Failed(mvm_client::Error),
    Output(Stuck),
    Input(std::io::Error),
    /// A signal was for us, or could not be passed on.
    Signalled(i32),
}

/// What the sending half is told between pieces of input.
enum Order {
    Signal(Signal, oneshot::Sender<()>),
    Resize,
}

/// Follows a command to its end. With `keep` its output is kept and not written.
pub(super) async fn follow(
    vm: &str,
    command: Command<'_>,
    joined: Joined,
    mut asked: TerminationRequests,
    keep: bool,
) -> Result<Followed, Failure> {
    let windows = signals(SignalKind::window_change())?;
    let stdin = if joined.input {
        Some(stdio::read()?)
    } else {
        None
    };
    let sink = if keep {
        Sink::Kept(Tail::default(), Tail::default())
    } else {
        Sink::Streams(Writer::start()?)
    };
    // Raw from here to the end of this function, whichever that is.
    let terminal = if joined.keys {
        let raw = RawTerminal::enter();
        Some(
            raw.map_err(|error| Failure::failed(format!("cannot make the terminal raw: {error}")))?,
        )
    } else {
        None
    };
    let (input, output) = command.split();
    let (orders, ordered) = mpsc::channel(4);
    let followed = tokio::select! {
        followed = receive(output, sink) => followed,
        error = send(input, stdin, ordered) => Err(Over::Input(error)),
        number = obey(&mut asked, joined.signals, &orders) => Err(Over::Signalled(number)),
        never = watch_window(joined.window, windows, &orders) => match never {},
    };
    // Before anything is said.
    if let Some(terminal) = terminal {
        terminal.leave(followed.is_err());
    }
    match followed {
        Ok(followed) => Ok(followed),
        Err(Over::Output(Stuck::Closed)) => Ok(Followed {
            end: End::Unread,
            stdout: Tail::default(),
            stderr: Tail::default(),
        }),
        Err(over) => Err(failed(vm, over)),
    }
}

/// Takes the output to where it goes, until all of it is there.
async fn receive(mut output: CommandOutput<'_>, mut sink: Sink) -> Result<Followed, Over> {
    let end = loop {
        let next = tokio::select! {
            biased;
            next = output.next() => next,
            // A command that says nothing more would never be told.
            stuck = sink.stuck() => return Err(Over::Output(stuck)),
        };
        let (stream, bytes) = match next {
            Ok(Output::Stdout(bytes)) => (Stream::Stdout, bytes),
            Ok(Output::Stderr(bytes)) => (Stream::Stderr, bytes),
            Ok(Output::Exited(exited)) => break Ok(End::Exited(exited)),
            Ok(Output::RunsOn) => break Ok(End::RunsOn),
            Err(error) => break Err(Over::Failed(error)),
        };
        match (&mut sink, stream) {
            (Sink::Streams(writer), _) => {
                writer.write(stream, bytes).await.map_err(Over::Output)?;
            }
            (Sink::Kept(stdout, _), Stream::Stdout) => stdout.push(&bytes),
            (Sink::Kept(_, stderr), Stream::Stderr) => stderr.push(&bytes),
        }
    };
    // What has come is written in any case.
    let (stdout, stderr) = match sink {
        Sink::Streams(writer) => {
            writer.finish().await.map_err(Over::Output)?;
            (Tail::default(), Tail::default())
        }
        Sink::Kept(stdout, stderr) => (stdout, stderr),
    };
    Ok(Followed {
        end: end?,
        stdout,
        stderr,
    })
}

/// Sends input and orders, in the order in which they come, and for ever: that the agent has gone is
/// for the receiving half to say. Gives the error with which standard input cannot be read.
async fn send(
    mut input: CommandInput<'_>,
    mut stdin: Option<mpsc::Receiver<std::io::Result<Vec<u8>>>>,
    mut orders: mpsc::Receiver<Order>,
) -> std::io::Error {
    loop {
        let piece = async {
            match &mut stdin {
                Some(stdin) => stdin.recv().await,
                None => std::future::pending().await,
            }
        };
        let sent = tokio::select! {
            biased;
            order = orders.recv() => match order {
                Some(Order::Signal(signal, sent)) => {
                    let result = input.signal(signal).await;
                    if result.is_ok() {
                        let _ = sent.send(());
                    }
                    result
                }
                Some(Order::Resize) => input.resize(window()).await,
                None => std::future::pending().await,
            },
            piece = piece => match piece {
                Some(Ok(bytes)) => input.write(&bytes).await,
                Some(Err(error)) => return error,
                None => {
                    stdin = None;
                    input.close().await
                }
            },
        };
        if sent.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Passes on what asks this process to end, and gives the signal's number once it is this process
/// that has to.
async fn obey(
    asked: &mut TerminationRequests,
    signals: ForSignals,
    orders: &mpsc::Sender<Order>,
) -> i32 {
    let first = asked.next().await;
    let Some(signal) = Signal::new(&signal::name(first)).filter(|_| signals == ForSignals::Command)
    else {
        return first;
    };
    let (sent, is_sent) = oneshot::channel();
    let sending = async {
        let _ = orders.send(Order::Signal(signal, sent)).await;
        is_sent.await.is_ok()
    };
    tokio::select! {
        sent = timeout(SEND_SIGNAL, sending) => if sent != Ok(true) {
            return first;
        },
        second = asked.next() => return second,
    }
    asked.next().await
}

/// Orders a change of the window's size to be told.
async fn watch_window(
    wanted: bool,
    mut changes: Signals,
    orders: &mpsc::Sender<Order>,
) -> Infallible {
    loop {
        if !wanted || changes.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
        let _ = orders.send(Order::Resize).await;
    }
}

/// Our terminal's size, as the wire has it.
pub(super) fn window() -> Window {
    let (cols, rows) = raw_terminal::size();
    Window { cols, rows }
}

fn failed(vm: &str, over: Over) -> Failure {
    match over {
        Over::Failed(error) => failure(vm, &error),
        Over::Output(Stuck::Failed(error)) => {
            Failure::failed(format!("cannot write to standard output: {error}"))
                .of(vm)
                .hint("look at where the output goes: a full disk, for example")
        }
        Over::Output(Stuck::Closed) => Failure::failed("nobody reads standard output").of(vm),
        Over::Input(error) => {
            Failure::failed(format!("cannot read standard input: {error}")).of(vm)
        }
        Over::Signalled(number) => Failure::signalled(number, "and with it the command").of(vm),
    }
}

/// What a command's end makes of ours.
pub(super) fn ended(vm: &str, exited: &ExecExited) -> Result<Ended, Failure> {
    if exited.timed_out {
        return Ok(Ended::TimedOut);
    }
    let number = exited.signal.as_deref().map(signal::number);
    match (exited.exit_code, number) {
        (Some(code), _) => Ok(Ended::Code(code)),
        (None, Some(Some(number))) => Ok(Ended::Signal(number)),
        (None, _) => Err(Failure::failed(
            "the agent does not say how the command ended: neither a code nor a known signal",
        )
        .of(vm)),
    }
}
