//! A command in a guest, joined to this process: its output here, our input, signals and window
//! there, until it ends. `exec` and `attach` share it.

use super::dev::failure;
use crate::raw_terminal::{self, RawTerminal};
use crate::report::{Ended, Failure};
use crate::stdio::{self, Stream, WriteError, Writer};
use crate::termination::TerminationRequests;
use mvm_client::dev::{Command, CommandInput, CommandOutput, Output};
use mvm_protocol::dev::exec::{ExecExited, Window};
use mvm_protocol::signal::{self, Signal};
use std::cell::Cell;
use std::convert::Infallible;
use std::time::Duration;
use tokio::signal::unix::{Signal as Signals, SignalKind, signal as signals};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

/// How long a signal may take to be sent. It waits behind input that the command does not read.
const SEND_SIGNAL: Duration = Duration::from_secs(2);

/// How much of each stream is kept for `--json`, in bytes: its end.
const KEPT: usize = 1024 * 1024;

/// The signal by which a command ends whose output nobody reads.
pub(super) const SIGPIPE: i32 = 13;

/// What of this process the command gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Passthrough {
    /// Our standard input.
    pub(super) input: bool,
    /// Our terminal's size, and its changes.
    pub(super) window: bool,
    /// Our terminal itself, each key of it.
    pub(super) keys: bool,
    /// Which process the signals to this one are for.
    pub(super) signals: SignalTarget,
}

/// Who gets a signal that asks this process to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SignalTarget {
    /// The command. The second one is for us.
    Command,
    /// This process.
    Mvmctl,
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

/// Why a command is no longer followed, and when.
#[derive(Debug)]
pub(super) struct Cut {
    pub(super) why: Why,
    /// What has come is still taken, until nothing has come for so long.
    pub(super) after_silence: Duration,
}

/// Why a command is not followed to its end.
#[derive(Debug)]
pub(super) enum Why {
    /// The guest is about to be frozen: the connection has to be closed before.
    AboutToBeFrozen,
    /// The VM does not run any more.
    NotRunning(Failure),
    /// The guest does not answer any more, or has not kept its limit.
    StandsStill(Failure),
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

/// Where output goes, through as many connections as it takes.
#[derive(Debug)]
pub(super) struct OutputSink {
    sink: Sink,
    /// How many bytes were taken.
    taken: u64,
    /// How many of those that come next were taken before, on another connection.
    repeated: u64,
    /// There may be another connection after this one.
    goes_on: bool,
}

#[derive(Debug)]
enum Sink {
    Streams(Writer),
    Kept(Tail, Tail),
}

impl OutputSink {
    /// To our standard output and error.
    pub(super) fn streams() -> Result<Self, Failure> {
        Ok(Self::of(Sink::Streams(Writer::start()?)))
    }

    /// Kept, and not written.
    pub(super) fn kept() -> Self {
        Self::of(Sink::Kept(Tail::default(), Tail::default()))
    }

    fn of(sink: Sink) -> Self {
        Self {
            sink,
            taken: 0,
            repeated: 0,
            goes_on: false,
        }
    }

    /// For what may be followed on after its connection was lost: who has it finishes the output.
    pub(super) fn going_on(self) -> Self {
        Self {
            goes_on: true,
            ..self
        }
    }

    /// How many bytes were taken, of both streams together.
    pub(super) fn taken(&self) -> u64 {
        self.taken
    }

    /// So many of the bytes that come next are known already.
    pub(super) fn expect_repeated(&mut self, bytes: u64) {
        self.repeated = bytes;
    }

    /// What was kept of each stream.
    pub(super) fn into_kept(self) -> (Tail, Tail) {
        match self.sink {
            Sink::Streams(_) => Default::default(),
            Sink::Kept(stdout, stderr) => (stdout, stderr),
        }
    }

    /// Takes a piece. It counts once it is taken: if the future is dropped it is none of it.
    async fn take(&mut self, stream: Stream, mut bytes: Vec<u8>) -> Result<(), WriteError> {
        let known = usize::try_from(self.repeated).unwrap_or(usize::MAX);
        let known = known.min(bytes.len());
        bytes.drain(..known);
        let count = bytes.len() as u64;
        if count > 0 {
            match (&mut self.sink, stream) {
                (Sink::Streams(writer), _) => writer.write(stream, bytes).await?,
                (Sink::Kept(stdout, _), Stream::Stdout) => stdout.push(&bytes),
                (Sink::Kept(_, stderr), Stream::Stderr) => stderr.push(&bytes),
            }
        }
        self.repeated -= known as u64;
        self.taken += count;
        Ok(())
    }

    /// Waits until all is where it goes. Nothing is taken after that.
    pub(super) async fn finish(&mut self) -> Result<(), WriteError> {
        match &mut self.sink {
            Sink::Streams(writer) => writer.finish().await,
            Sink::Kept(..) => Ok(()),
        }
    }

    /// Waits until nothing more can be written, and says why.
    async fn broken(&mut self) -> WriteError {
        match &mut self.sink {
            Sink::Streams(writer) => writer.why().await,
            Sink::Kept(..) => std::future::pending().await,
        }
    }
}

/// When something came from a guest last: its sign of life.
#[derive(Debug)]
pub(super) struct LastHeard(Cell<Instant>);

impl LastHeard {
    /// Now.
    pub(super) fn now() -> Self {
        Self(Cell::new(Instant::now()))
    }

    /// Something came.
    pub(super) fn heard(&self) {
        self.0.set(Instant::now());
    }

    /// How long ago that was.
    pub(super) fn elapsed(&self) -> Duration {
        self.0.get().elapsed()
    }
}

/// Why a command is not followed to its end.
#[derive(Debug)]
pub(super) enum Broken {
    Connection(mvm_client::Error),
    Output(WriteError),
    Input(std::io::Error),
    /// A signal was for us, or could not be passed on.
    Signalled(i32),
    Cut(Why),
}

/// What the sending half is told between pieces of input.
enum Control {
    Signal(Signal, oneshot::Sender<()>),
    Resize,
}

/// Follows a command to its end, or until `cut` says that there is none to be waited for. Without
/// `requests` signals are the caller's.
pub(super) async fn follow(
    command: Command<'_>,
    passthrough: Passthrough,
    requests: Option<TerminationRequests>,
    output: &mut OutputSink,
    heard: &LastHeard,
    cut: impl Future<Output = Cut>,
) -> Result<Result<End, Broken>, Failure> {
    let windows = signals(SignalKind::window_change())?;
    let stdin = if passthrough.input {
        Some(stdio::read()?)
    } else {
        None
    };
    // Raw from here to the end of this function, whichever that is.
    let terminal = if passthrough.keys {
        let raw = RawTerminal::enter();
        Some(
            raw.map_err(|error| Failure::failed(format!("cannot make the terminal raw: {error}")))?,
        )
    } else {
        None
    };
    let (input, from_guest) = command.split();
    let (controls, controlled) = mpsc::channel(4);
    let followed = tokio::select! {
        followed = receive(from_guest, output, heard, cut) => followed,
        error = send(input, stdin, controlled) => Err(Broken::Input(error)),
        number = pass_signals_on(requests, passthrough.signals, &controls) => {
            Err(Broken::Signalled(number))
        }
        never = watch_window(passthrough.window, windows, &controls) => match never {},
    };
    // Before anything is said.
    if let Some(terminal) = terminal {
        terminal.leave(followed.is_err());
    }
    Ok(match followed {
        Err(Broken::Output(WriteError::Closed)) => Ok(End::Unread),
        followed => followed,
    })
}

/// Takes the output to where it goes, until all of it is there.
async fn receive(
    mut from_guest: CommandOutput<'_>,
    output: &mut OutputSink,
    heard: &LastHeard,
    cut: impl Future<Output = Cut>,
) -> Result<End, Broken> {
    tokio::pin!(cut);
    // Why nothing more is waited for, and until when it is.
    let mut ending: Option<(Cut, Instant)> = None;
    let end = loop {
        let until = ending.as_ref().map(|(_, until)| *until);
        let next = tokio::select! {
            biased;
            next = from_guest.next() => next,
            // A command that says nothing more would never be told.
            error = output.broken() => return Err(Broken::Output(error)),
            cut = &mut cut, if ending.is_none() => {
                let until = Instant::now() + cut.after_silence;
                ending = Some((cut, until));
                continue;
            }
            () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {
                match ending.take() {
                    Some((cut, _)) => break Err(Broken::Cut(cut.why)),
                    None => continue,
                }
            }
        };
        heard.heard();
        let (stream, bytes) = match next {
            Ok(Output::Stdout(bytes)) => (Stream::Stdout, bytes),
            Ok(Output::Stderr(bytes)) => (Stream::Stderr, bytes),
            Ok(Output::Exited(exited)) => break Ok(End::Exited(exited)),
            Ok(Output::RunsOn) => break Ok(End::RunsOn),
            Err(error) => break Err(Broken::Connection(error)),
        };
        output.take(stream, bytes).await.map_err(Broken::Output)?;
        if let Some((cut, until)) = &mut ending {
            // Time in which our own reader stood still is not the guest's.
            *until = Instant::now() + cut.after_silence;
        }
    };
    // What has come is written in any case.
    if !output.goes_on {
        output.finish().await.map_err(Broken::Output)?;
    }
    end
}

/// Sends input and controls, in the order in which they come, and for ever: that the agent has gone is
/// for the receiving half to say. Gives the error with which standard input cannot be read.
async fn send(
    mut input: CommandInput<'_>,
    mut stdin: Option<mpsc::Receiver<std::io::Result<Vec<u8>>>>,
    mut controls: mpsc::Receiver<Control>,
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
            control = controls.recv() => match control {
                Some(Control::Signal(signal, sent)) => {
                    let result = input.signal(signal).await;
                    if result.is_ok() {
                        let _ = sent.send(());
                    }
                    result
                }
                Some(Control::Resize) => input.resize(window()).await,
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
async fn pass_signals_on(
    requests: Option<TerminationRequests>,
    target: SignalTarget,
    controls: &mpsc::Sender<Control>,
) -> i32 {
    let Some(mut requests) = requests else {
        return std::future::pending().await;
    };
    let first = requests.next().await;
    let Some(signal) =
        Signal::new(&signal::name(first)).filter(|_| target == SignalTarget::Command)
    else {
        return first;
    };
    let (sent, is_sent) = oneshot::channel();
    let sending = async {
        let _ = controls.send(Control::Signal(signal, sent)).await;
        is_sent.await.is_ok()
    };
    tokio::select! {
        sent = timeout(SEND_SIGNAL, sending) => if sent != Ok(true) {
            return first;
        },
        second = requests.next() => return second,
    }
    requests.next().await
}

/// Has a change of the window's size told.
async fn watch_window(
    wanted: bool,
    mut changes: Signals,
    controls: &mpsc::Sender<Control>,
) -> Infallible {
    loop {
        if !wanted || changes.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
        let _ = controls.send(Control::Resize).await;
    }
}

/// Our terminal's size, as the wire has it.
pub(super) fn window() -> Window {
    let (cols, rows) = raw_terminal::size();
    Window { cols, rows }
}

/// Why it is not known how the command ended.
pub(super) fn failed(vm: &str, broken: Broken) -> Failure {
    match broken {
        Broken::Connection(error) => failure(vm, &error),
        Broken::Output(WriteError::Failed(error)) => {
            Failure::failed(format!("cannot write to standard output: {error}"))
                .of(vm)
                .hint("look at where the output goes: a full disk, for example")
        }
        Broken::Output(WriteError::Closed) => {
            Failure::failed("nobody reads standard output").of(vm)
        }
        Broken::Input(error) => {
            Failure::failed(format!("cannot read standard input: {error}")).of(vm)
        }
        Broken::Signalled(number) => Failure::signalled(number, "and with it the command").of(vm),
        Broken::Cut(Why::AboutToBeFrozen) => {
            Failure::failed("the guest is being put to sleep").of(vm)
        }
        Broken::Cut(Why::NotRunning(failure) | Why::StandsStill(failure)) => failure,
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
