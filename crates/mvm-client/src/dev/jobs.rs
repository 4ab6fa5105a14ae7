//! Jobs: commands that go on when the connection is closed that started them.

use crate::{Error, Session};
use mvm_protocol::dev::exec::Exec;
use mvm_protocol::dev::jobs::{Job, JobSignal, JobStarted};
use mvm_protocol::dev::{DevAnswer, DevRequest};

impl Session {
    /// Starts a command as a job.
    pub async fn start_job(&mut self, asked: Exec) -> Result<JobStarted, Error> {
        let asked = Exec {
            detach: true,
            ..asked
        };
        match self.ask(DevRequest::Exec(asked)).await? {
            DevAnswer::JobStarted(started) => Ok(started),
            other => Err(self.incoming.astray(&other, "exec")),
        }
    }

    /// The jobs that the agent remembers, in the order in which they were started.
    pub async fn jobs(&mut self) -> Result<Vec<Job>, Error> {
        match self.ask(DevRequest::Jobs).await? {
            DevAnswer::Jobs(jobs) => Ok(jobs.jobs),
            other => Err(self.incoming.astray(&other, "jobs")),
        }
    }

    /// Sends a signal to a job.
    pub async fn job_signal(&mut self, asked: JobSignal) -> Result<(), Error> {
        match self.ask(DevRequest::JobSignal(asked)).await? {
            DevAnswer::JobSignaled(_) => Ok(()),
            other => Err(self.incoming.astray(&other, "job-signal")),
        }
    }
}
