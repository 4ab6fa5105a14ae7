//! `exec` and `attach`: a command in the guest, and its two halves.

use super::{Received, Receiving, Sending};
use crate::{Awaited, Error, Session};
use mvm_protocol::dev::exec::{Exec, ExecExited, Send, Window};
use mvm_protocol::dev::jobs::Attach;
use mvm_protocol::dev::{Control, DevAnswer, DevRequest, channel};
use mvm_protocol::signal::Signal;
use std::io;

/// A command that runs. Dropping it before it has ended leaves the session out of step; dropping the
/// session ends the command, unless it is a job.
#[derive(Debug)]
pub struct Command<'a> {
    /// Its process id in the guest.
    pub pid: u32,
    input: CommandInput<'a>,
    output: CommandOutput<'a>,
}

/// What a command is sent. Each of these waits while the agent does not read, which it does not
/// while a command leaves 256 KiB of its input unread; none of them waits for output. Their futures
/// may be dropped: a frame that was begun is finished before the next.
#[derive(Debug)]
pub struct CommandInput<'a> {
    sending: Sending<'a>,
}

/// What comes of a command.
#[derive(Debug)]
pub struct CommandOutput<'a> {
    receiving: Receiving<'a>,
}

/// What came of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// It wrote this to its standard output, or to its terminal.
    Stdout(Vec<u8>),
    /// It wrote this to its standard error.
    Stderr(Vec<u8>),
    /// It has ended. This is the last.
    Exited(ExecExited),
    /// It is a job that was not to be followed, and runs on. This is the last.
    RunsOn,
}

impl Session {
    /// Runs a command, which ends with this session unless it is a job: see
    /// [`Session::start_job`] for these.
    ///
    /// # Errors
    ///
    /// [`Error::NotServed`] of a prod build, or where it is switched off; [`Error::Refused`] with
    /// `not-found` or `not-allowed` if there is no such program, user or folder, or it may not be
    /// run. After both the session can be used further.
    pub async fn exec(&mut self, asked: Exec) -> Result<Command<'_>, Error> {
        self.command(DevRequest::Exec(asked)).await
    }

    /// What a job has printed and prints, and its end.
    pub async fn attach(&mut self, asked: Attach) -> Result<Command<'_>, Error> {
        self.command(DevRequest::Attach(asked)).await
    }

    async fn command(&mut self, request: DevRequest) -> Result<Command<'_>, Error> {
        let (answer, sending, receiving) = self.begin(request).await?;
        match answer {
            DevAnswer::ExecStarted(started) => Ok(Command {
                pid: started.pid,
                input: CommandInput { sending },
                output: CommandOutput { receiving },
            }),
            other => Err(receiving.astray(&other)),
        }
    }
}

impl<'a> Command<'a> {
    /// The two halves, which can be used at once.
    pub fn split(self) -> (CommandInput<'a>, CommandOutput<'a>) {
        (self.input, self.output)
    }
}

impl CommandInput<'_> {
    /// Sends standard input.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sending.data(channel::STDIN, bytes).await
    }

    /// Says that standard input ends.
    pub async fn close(&mut self) -> io::Result<()> {
        self.sending.control(Control::StdinClose).await
    }

    /// Sends a signal to the command's process group.
    pub async fn signal(&mut self, signal: Signal) -> io::Result<()> {
        self.sending.control(Control::Signal(Send { signal })).await
    }

    /// Says that the terminal has another size.
    pub async fn resize(&mut self, window: Window) -> io::Result<()> {
        self.sending.control(Control::Resize(window)).await
    }
}

impl CommandOutput<'_> {
    /// What comes next. There is no deadline: a command may be silent for any time. The future may
    /// be dropped without losing anything.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] if the agent went away: how the command ended is not known then.
    pub async fn next(&mut self) -> Result<Output, Error> {
        match self.receiving.next(Awaited::Command).await? {
            Received::Data { channel, bytes } => match channel {
                channel::STDOUT => Ok(Output::Stdout(bytes)),
                channel::STDERR => Ok(Output::Stderr(bytes)),
                other => Err(self.receiving.stray_data(other)),
            },
            Received::Answer(DevAnswer::ExecExited(exited)) => {
                self.receiving.is_over();
                Ok(Output::Exited(exited))
            }
            Received::Answer(DevAnswer::JobStarted(_)) => {
                self.receiving.is_over();
                Ok(Output::RunsOn)
            }
            Received::Answer(other) => Err(self.receiving.astray(&other)),
        }
    }
}
