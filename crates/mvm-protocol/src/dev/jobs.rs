//! Jobs: commands that go on when the connection that started them is closed.

use super::exec::Send;
use crate::lenient::Lenient;
use crate::signal::Signal;
use crate::timestamp::Timestamp;
use serde::{Deserialize, Serialize};

/// How much of a job's output is kept in bytes: its end.
pub const KEPT_OUTPUT: usize = 1024 * 1024;

/// How many jobs are remembered. Beyond, the one that ended first is forgotten; if all run, a new one
/// is refused.
pub const KEPT_JOBS: usize = 64;

/// Fields of `attach`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Attach {
    /// Which job.
    pub job: u64,
    /// Whether what it will print is sent as well, until it ends. Otherwise what is kept is sent, and
    /// then `exec-exited` if it has ended or `job-started` if it runs.
    #[serde(default = "yes")]
    pub follow: bool,
}

fn yes() -> bool {
    true
}

/// Fields of `job-signal`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct JobSignal {
    /// Which job.
    pub job: u64,
    /// What is sent to its process group. `KILL` ends its whole tree.
    #[serde(default = "term")]
    pub signal: Signal,
}

fn term() -> Signal {
    Signal::TERM
}

impl From<JobSignal> for Send {
    fn from(asked: JobSignal) -> Self {
        Self {
            signal: asked.signal,
        }
    }
}

/// A job runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct JobStarted {
    /// Its number, from 1, not used again while this agent runs.
    pub job: u64,
    /// Its process id in the guest, which is its process group's as well.
    pub pid: u32,
}

/// Answers `jobs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Jobs {
    /// The jobs that are remembered, in the order in which they were started.
    pub jobs: Vec<Job>,
}

/// One job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Job {
    /// Its number.
    pub job: u64,
    /// What it runs. Shortened if all jobs would not fit a frame.
    pub argv: Vec<String>,
    /// Its process id in the guest.
    pub pid: u32,
    /// Whether it runs.
    pub state: Lenient<JobState>,
    /// When it was started.
    pub started_at: Timestamp,
    /// When it ended; null while it has not.
    pub ended_at: Option<Timestamp>,
    /// What it exited with; null if it has not, or a signal ended it.
    pub exit_code: Option<i32>,
    /// The signal that ended it, without `SIG`; null if none did.
    pub signal: Option<String>,
    /// Whether its time was up and the agent ended it.
    pub timed_out: bool,
    /// How much it has printed in bytes. The last [`KEPT_OUTPUT`] of them are kept.
    pub output_bytes: u64,
}

/// Whether a job runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// It does.
    Running,
    /// It is held, since the guest sleeps.
    Held,
    /// It has ended.
    Ended,
}

/// Answers `job-signal`: it was sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct JobSignaled {
    /// Which job.
    pub job: u64,
}
