//! What dev builds of the agent serve, and prod builds do not: commands, files, jobs and ports.
//!
//! Its requests and answers are types of their own, so that a prod build, which never reads or
//! writes one, has none of it in its binary but for [`forward`], by which it can expose ports.

#[cfg(feature = "archive")]
pub mod archive;
pub mod exec;
pub mod files;
pub mod forward;
pub mod jobs;

use crate::answer::{AnswerOf, ErrorAnswer};
use crate::object::{Object, Problem};
use crate::request::{FromObject, Parsed, RequestOf};
use exec::{Exec, ExecExited, ExecStarted};
use files::{Get, GetDone, GetStarted, Put, PutDone, PutReady};
use forward::{Forward, ForwardDone, ForwardStarted};
use jobs::{Attach, JobSignal, JobSignaled, JobStarted, Jobs};
use serde::{Deserialize, Serialize};

/// Whose bytes a data frame carries.
pub mod channel {
    /// To the command: its standard input. To a forwarded port: what the client sends.
    pub const STDIN: u8 = 0;
    /// From the command: its standard output, or its terminal. From a forwarded port: what it sends.
    pub const STDOUT: u8 = 1;
    /// From the command: its standard error.
    pub const STDERR: u8 = 2;
    /// A file's or an archive's content, either way.
    pub const FILE: u8 = 3;
}

/// What a host asks of a dev build beyond what it asks of any.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum DevRequest {
    /// Run a command: its output, and then its end, come back on the connection.
    Exec(Exec),
    /// Write a file or a folder, whole or not at all.
    Put(Put),
    /// Read a file or a folder.
    Get(Get),
    /// Which commands run or ran detached.
    Jobs,
    /// What a job printed and prints, and its end.
    Attach(Attach),
    /// Send a signal to a job.
    JobSignal(JobSignal),
    /// Join this connection to a TCP port of the guest's loopback.
    Forward(Forward),
}

impl DevRequest {
    /// The request's `type`.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Exec(_) => "exec",
            Self::Put(_) => "put",
            Self::Get(_) => "get",
            Self::Jobs => "jobs",
            Self::Attach(_) => "attach",
            Self::JobSignal(_) => "job-signal",
            Self::Forward(_) => "forward",
        }
    }
}

impl FromObject for DevRequest {
    fn from_object(kind: &str, object: Object) -> Option<Result<Self, Problem>> {
        Some(match kind {
            "exec" => object.into_shape().map(Self::Exec),
            "put" => object.into_shape().map(Self::Put),
            "get" => object.into_shape().map(Self::Get),
            "jobs" => object.into_empty().map(|()| Self::Jobs),
            "attach" => object.into_shape().map(Self::Attach),
            "job-signal" => object.into_shape().map(Self::JobSignal),
            "forward" => object.into_shape().map(Self::Forward),
            _ => return None,
        })
    }
}

/// A body read as one of these requests.
pub type ParsedDevRequest = Parsed<DevRequest>;

/// A body for one of these requests.
pub type DevRequestFrame = RequestOf<DevRequest>;

/// What a dev build answers to a [`DevRequest`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum DevAnswer {
    /// A command runs: data frames follow, then [`DevAnswer::ExecExited`].
    ExecStarted(ExecStarted),
    /// A command has ended, and its output has been sent.
    ExecExited(ExecExited),
    /// The file's content is waited for.
    PutReady(PutReady),
    /// The file or folder is there, whole.
    PutDone(PutDone),
    /// The file's content follows.
    GetStarted(GetStarted),
    /// That was all of it.
    GetDone(GetDone),
    /// A command runs, and goes on when the connection is closed.
    JobStarted(JobStarted),
    /// Answers `jobs`.
    Jobs(Jobs),
    /// Answers `job-signal`.
    JobSignaled(JobSignaled),
    /// The port is connected: data frames go both ways.
    ForwardStarted(ForwardStarted),
    /// One side has nothing more to send.
    ForwardEnd,
    /// Both sides have ended.
    ForwardDone(ForwardDone),
    /// The request was refused, or failed.
    Error(ErrorAnswer),
}

/// A body of one of these answers.
pub type DevAnswerFrame = AnswerOf<DevAnswer>;

/// What a client may send, besides data frames, while a request of its own is being served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Control {
    /// `exec`: standard input ends here.
    StdinClose,
    /// `exec`, `attach`: send this to the command's process group.
    Signal(exec::Send),
    /// `exec`, `attach`: the terminal has another size.
    Resize(exec::Window),
    /// `put`: the content ends here.
    PutEnd,
    /// `forward`: the client has nothing more to send.
    ForwardEnd,
}

impl FromObject for Control {
    fn from_object(kind: &str, object: Object) -> Option<Result<Self, Problem>> {
        Some(match kind {
            "stdin-close" => object.into_empty().map(|()| Self::StdinClose),
            "signal" => object.into_shape().map(Self::Signal),
            "resize" => object.into_shape().map(Self::Resize),
            "put-end" => object.into_empty().map(|()| Self::PutEnd),
            "forward-end" => object.into_empty().map(|()| Self::ForwardEnd),
            _ => return None,
        })
    }
}

/// A body read as one of these.
pub type ParsedControl = Parsed<Control>;

/// A body for one of these.
pub type ControlFrame = RequestOf<Control>;

#[cfg(test)]
mod tests;
