//! `exec`: a command whose input and output are the connection's.

use super::jobs::Jobs;
use super::running::{Outcome, Running};
use super::start::{Commands, Started};
use super::terminal::Terminal;
use crate::core::open::Kind;
use crate::machine::turns::between_pieces;
use crate::ports::audit::Audit;
use crate::ports::flow::{Discard, InputQueue};
use crate::ports::host::{Host, Sent};
use crate::ports::reply::{self, failed};
use crate::serve::connection::{Connection, Ending};
use crate::serve::handle::stopping;
use mvm_protocol::dev::channel::STDIN;
use mvm_protocol::dev::exec::{Exec, ExecExited, ExecStarted};
use mvm_protocol::dev::{Control, DevAnswer};
use mvm_protocol::signal;
use tokio::sync::oneshot;

/// Runs a command to its end, or begins a job.
pub(super) async fn serve(
    connection: &mut Connection,
    commands: &Commands,
    jobs: &Jobs,
    asked: Exec,
    id: Option<u64>,
) -> Result<(), Ending> {
    let kind = if asked.detach { "job" } else { "exec" };
    let audit = Audit::begin(kind, asked.argv.program());
    let started = async {
        let admitted = connection.handle.open(Kind::Active).await?;
        let slot = asked.detach.then(|| jobs.reserve_slot()).transpose()?;
        let started = commands.start(admitted.run, &asked).await?;
        // From here to its beginning nothing is awaited.
        drop(slot);
        Ok((admitted, started))
    };
    let (mut admitted, started) = match started.await {
        Ok(started) => started,
        Err(error) => {
            audit.refused(&error);
            return reply::send(connection, DevAnswer::Error(error), id).await;
        }
    };
    if asked.detach {
        let answer = jobs.begin(&asked, started, audit);
        return reply::send(connection, answer, id).await;
    }
    let Started {
        running,
        stdin,
        terminal,
    } = started;
    let mut host = Host::new(connection, id, asked.stdin);
    host.answer(DevAnswer::ExecStarted(ExecStarted { pid: running.pid() }));
    let mut exec = Execution {
        running,
        stdin,
        terminal,
        was_told: false,
    };
    let served = exec.serve(&mut host, &mut admitted.end).await;
    let outcome = match exec.running.outcome() {
        Some(outcome) => outcome,
        // The host is gone: nothing is left of what it asked for.
        None => exec.kill().await,
    };
    audit.end(&outcome.in_words());
    let is_stopping = exec.was_told && host.connection.handle.is_stopping();
    // From here on it delays no sleep, however slowly the host reads. An agent that stops waits for it,
    // since after that nothing is sent any more.
    let kept = is_stopping.then_some(admitted);
    served?;
    host.answer(if is_stopping {
        DevAnswer::Error(stopping())
    } else {
        last_frame(&outcome)
    });
    let finished = host.finish().await;
    drop(kept);
    finished
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
    running: Running,
    stdin: InputQueue,
    terminal: Option<Terminal>,
    /// Whether the agent has asked it to end.
    was_told: bool,
}

impl Execution {
    /// Carries bytes until the command has ended and its output has been read.
    async fn serve(
        &mut self,
        host: &mut Host<'_, Control>,
        end: &mut oneshot::Receiver<()>,
    ) -> Result<(), Ending> {
        while self.running.outcome().is_none() {
            self.take(host).await?;
            host.send().await?;
            let room = host.out.is_empty();
            tokio::select! {
                next = host.next(self.stdin.has_room()) => next?,
                () = self.stdin.takes() => self.stdin.write(),
                event = self.running.next_event(room) => {
                    self.running.act(event, &mut host.out).await;
                }
                _ = &mut *end, if !self.was_told => {
                    self.was_told = true;
                    self.running.terminate();
                }
            }
        }
        Ok(())
    }

    /// Takes what the host has sent, as far as there is room for it.
    async fn take(&mut self, host: &mut Host<'_, Control>) -> Result<(), Ending> {
        while self.stdin.has_room()
            && let Some(sent) = host.sent().await?
        {
            match sent {
                // Input that was not asked for, or that nobody reads any more, is dropped.
                Sent::Data(STDIN, bytes) => self.stdin.push(bytes),
                Sent::Data(..) => host.refuse("a command takes data on channel 0 alone", None),
                Sent::Control(Control::StdinClose, _) => self.stdin.end(),
                Sent::Control(Control::Signal(send), _) => {
                    self.running.signal(send.signal.number());
                }
                Sent::Control(Control::Resize(window), id) => match &self.terminal {
                    Some(terminal) => terminal.resize(window),
                    None => host.refuse("the command has no terminal", id),
                },
                Sent::Control(Control::PutEnd | Control::ForwardEnd, id) => host.refuse_control(id),
            }
        }
        Ok(())
    }

    /// Ends the command and all that it started.
    async fn kill(&mut self) -> Outcome {
        self.stdin.close();
        self.running.kill();
        loop {
            if let Some(outcome) = self.running.outcome() {
                return outcome;
            }
            between_pieces().await;
            let event = self.running.next_event(true).await;
            self.running.act(event, &mut Discard).await;
        }
    }
}
