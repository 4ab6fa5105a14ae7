//! `exec`: a command whose input and output are the connection's.

use super::audit::Audit;
use super::failed;
use super::flow::{Inlet, Nowhere, Outbox};
use super::running::{Happened, Outcome, Running};
use super::start::{Started, start};
use crate::core::open::Kind;
use crate::edge::session::{Ending, Session};
use mvm_protocol::Frame;
use mvm_protocol::answer::ErrorCode;
use mvm_protocol::dev::channel::STDIN;
use mvm_protocol::dev::exec::{Exec, ExecExited, ExecStarted};
use mvm_protocol::dev::{Control, DevAnswer, ParsedControl};
use mvm_protocol::signal;

/// What came about.
enum Event {
    /// The host sent something, or its end.
    Read(std::io::Result<usize>),
    /// The host is gone.
    Gone,
    /// The host has taken something.
    Room,
    /// The command has taken something.
    Takes,
    Command(Happened),
    /// It has to end, since the guest goes to sleep.
    End,
}

/// Runs a command to its end.
pub(super) async fn serve(
    session: &mut Session,
    asked: Exec,
    id: Option<u64>,
) -> Result<(), Ending> {
    let audit = Audit::begin("exec", asked.argv.program());
    let admitted = session.handle.open(Kind::Works).await;
    let started = admitted.and_then(|admitted| {
        let started = start(session.handle.dev(), admitted.run, &asked)?;
        Ok((admitted, started))
    });
    let (mut admitted, Started { running, stdin }) = match started {
        Ok(started) => started,
        Err(error) => {
            audit.refused(&error);
            return session.dev_answer(DevAnswer::Error(error), id).await;
        }
    };
    let mut exec = Execution {
        id,
        running,
        stdin,
        out: Outbox::default(),
        buffer: vec![
            0;
            if asked.stdin {
                super::flow::PIECE
            } else {
                4096
            }
        ],
    };
    let pid = exec.running.pid();
    exec.out
        .push(DevAnswer::ExecStarted(ExecStarted { pid }), id);
    let served = exec.serve(session, &mut admitted.end).await;
    let outcome = match exec.running.outcome() {
        Some(outcome) => outcome,
        // The host is gone: nothing is left of what it asked for.
        None => exec.kill().await,
    };
    audit.exited(&outcome);
    // From here on it keeps nobody from sleeping, however slowly the host reads.
    drop(admitted);
    served?;
    exec.out.push(last_frame(&outcome), id);
    exec.flush(session).await
}

/// The last frame of a command's answer.
pub(super) fn last_frame(outcome: &Outcome) -> DevAnswer {
    if outcome.unkillable {
        let message =
            "the command is stuck in the kernel: not even KILL ends it; it was left behind";
        return DevAnswer::Error(failed(message));
    }
    DevAnswer::ExecExited(ExecExited {
        exit_code: outcome.exit.code,
        signal: outcome.exit.signal.map(signal::name),
        timed_out: outcome.timed_out,
        truncated: outcome.truncated,
    })
}

struct Execution {
    id: Option<u64>,
    running: Running,
    stdin: Inlet,
    out: Outbox,
    buffer: Vec<u8>,
}

impl Execution {
    /// Carries bytes until the command has ended and its output has been read.
    async fn serve(
        &mut self,
        session: &mut Session,
        end: &mut tokio::sync::oneshot::Receiver<()>,
    ) -> Result<(), Ending> {
        let mut told = false;
        // What was sent along with the request has been read already.
        self.frames(session).await?;
        while self.running.outcome().is_none() {
            self.out.send(&session.stream)?;
            let listens = self.stdin.has_room() && session.dev.held_back.is_none();
            let event = tokio::select! {
                read = session.stream.read(&mut self.buffer), if listens => Event::Read(read),
                () = session.stream.closed(), if !listens => Event::Gone,
                () = self.out.has_room() => Event::Room,
                () = self.stdin.takes() => Event::Takes,
                happened = self.running.happens(self.out.is_empty()) => Event::Command(happened),
                _ = &mut *end, if !told => Event::End,
            };
            match event {
                Event::Read(Ok(read @ 1..)) => {
                    let bytes = self.buffer.get(..read).unwrap_or_default();
                    session.decoder.push(bytes);
                    self.frames(session).await?;
                }
                Event::Read(_) | Event::Gone => return Err(Ending::Closed),
                Event::Room => {}
                Event::Takes => {
                    self.stdin.write();
                    // What came behind a full input may be whole frames.
                    self.frames(session).await?;
                }
                Event::Command(happened) => self.running.act(happened, &mut self.out).await,
                Event::End => {
                    told = true;
                    self.running.terminate();
                }
            }
        }
        Ok(())
    }

    /// Takes what the host has sent, as far as there is room for it.
    async fn frames(&mut self, session: &mut Session) -> Result<(), Ending> {
        while self.stdin.has_room() && session.dev.held_back.is_none() {
            match session.decoder.next_frame() {
                Ok(None) => break,
                Ok(Some(Frame::Json(body))) => self.control(session, body),
                // Input that was not asked for, or that nobody reads any more, is dropped.
                Ok(Some(Frame::Data {
                    channel: STDIN,
                    bytes,
                })) => self.stdin.push(bytes),
                Ok(Some(Frame::Data { .. } | Frame::EmptyData)) => {
                    self.refuse("a command takes data on channel 0 alone", None);
                }
                Err(error) => return Err(session.out_of_step(error).await),
            }
        }
        Ok(())
    }

    fn control(&mut self, session: &mut Session, body: Vec<u8>) {
        let parsed = ParsedControl::read(&body);
        match parsed.request {
            Ok(Control::StdinClose) => self.stdin.end(),
            Ok(Control::Signal(send)) => self.running.signal(send.signal.number()),
            Ok(Control::Resize(_)) => {}
            Ok(Control::PutEnd | Control::ForwardEnd) => {
                self.refuse("that belongs to another request", parsed.id);
            }
            // A request: its turn comes when this one is over.
            Err(error) if error.code == ErrorCode::UnknownRequest => {
                session.dev.held_back = Some(body);
            }
            Err(error) => self.out.push(DevAnswer::Error(error), parsed.id),
        }
    }

    fn refuse(&mut self, message: &str, id: Option<u64>) {
        let error = mvm_protocol::answer::ErrorAnswer::new(ErrorCode::BadRequest, message);
        self.out.push(DevAnswer::Error(error), id.or(self.id));
    }

    /// Sends what is left, and drops what the host still sends meanwhile: it may not read before
    /// that is taken.
    async fn flush(&mut self, session: &mut Session) -> Result<(), Ending> {
        self.stdin.close();
        let idle = session.patience.idle;
        loop {
            self.out.send(&session.stream)?;
            if self.out.is_empty() {
                return Ok(());
            }
            let listens = session.dev.held_back.is_none();
            tokio::select! {
                () = self.out.has_room() => {}
                read = session.stream.read(&mut self.buffer), if listens => match read {
                    Ok(read @ 1..) => {
                        session.decoder.push(self.buffer.get(..read).unwrap_or_default());
                        self.frames(session).await?;
                    }
                    _ => return Err(Ending::Closed),
                },
                () = tokio::time::sleep(idle) => return Err(Ending::TooSlow),
            }
        }
    }

    /// Ends the command and all that it started.
    async fn kill(&mut self) -> Outcome {
        self.stdin.close();
        self.running.kill();
        loop {
            if let Some(outcome) = self.running.outcome() {
                return outcome;
            }
            let happened = self.running.happens(true).await;
            self.running.act(happened, &mut Nowhere).await;
        }
    }
}
