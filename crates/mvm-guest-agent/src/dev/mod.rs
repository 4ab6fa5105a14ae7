//! What dev builds serve beyond others: commands, files, jobs and ports.
//!
//! A prod build has none of this. Each request takes its connection over until its last frame is
//! sent: what it reads from the guest waits while the host does not read, and what the host sends
//! waits while the guest does not take it. So memory stays bounded both ways, however much flows.
//!
//! ```text
//! exec      a command on pipes or a terminal     start, running, exec
//! jobs      commands that go on without a host   jobs, ring, attach
//! put, get  files, by a process of their own     relay, files
//! forward   any TCP port of the loopback         crate::ports
//! ```

mod attach;
mod exec;
pub(crate) mod files;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod jobs;
mod relay;
mod ring;
mod running;
mod start;
mod terminal;

#[cfg(test)]
mod host_tests;

use crate::core::RunId;
use crate::core::registry::Command;
use crate::machine::process::Launcher;
use crate::ports::{Limits, Ports, forward, reply};
use crate::serve::connection::{Connection, Ending};
use crate::serve::extension::{Extension, Late, Sorted};
use jobs::Jobs;
use mvm_protocol::Frame;
use mvm_protocol::answer::Profile;
use mvm_protocol::dev::{Control, DevAnswer, DevRequest};
use start::Commands;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::oneshot;

/// What all connections of a dev build share.
pub(crate) struct Dev {
    commands: Commands,
    jobs: Jobs,
    /// Those that are reached where the configuration allows nothing else.
    ports: Ports,
}

impl Dev {
    pub(crate) fn new(launcher: Rc<Launcher>, ports: Ports) -> Self {
        Self {
            commands: Commands::new(launcher),
            jobs: Jobs::default(),
            ports,
        }
    }

    async fn request(
        &self,
        connection: &mut Connection,
        request: DevRequest,
        id: Option<u64>,
    ) -> Result<(), Ending> {
        let Self { commands, jobs, .. } = self;
        match request {
            DevRequest::Exec(asked) => exec::serve(connection, commands, jobs, asked, id).await,
            DevRequest::Attach(asked) => attach::serve(connection, jobs, asked, id).await,
            DevRequest::Jobs => reply::send(connection, jobs.list(id), id).await,
            DevRequest::JobSignal(asked) => {
                let answer = jobs.signal(asked).unwrap_or_else(DevAnswer::Error);
                reply::send(connection, answer, id).await
            }
            DevRequest::Put(_) | DevRequest::Get(_) => {
                relay::serve(connection, commands, request, id).await
            }
            DevRequest::Forward(asked) => {
                forward::serve(connection, asked, id, Limits::default()).await
            }
        }
    }
}

/// How long what earlier agents have left may take to be removed.
const REMOVED_WITHIN: Duration = Duration::from_mins(10);

/// Has removed what puts under earlier agents, which were killed, have left beside their targets.
pub(crate) async fn remove_left(launcher: Rc<Launcher>) {
    if !files::record::are_left(launcher.run_dir()) {
        return;
    }
    let words = [
        start::OWN_PROGRAM,
        &format!("--{}", files::FLAG),
        files::REMOVE_LEFT,
    ];
    let command = Command {
        what: "what puts have left".to_owned(),
        argv: words.map(str::to_owned).into(),
        user: None,
        timeout: REMOVED_WITHIN,
        split: false,
        context: None,
        pays: None,
    };
    // Runs of the core's are counted from 1 on.
    let (_keep, never) = oneshot::channel();
    launcher.run(RunId(0), command, never).await;
}

impl Extension for Rc<Dev> {
    const PROFILE: Profile = Profile::Dev;

    type Session = Late;

    async fn serve(
        &self,
        connection: &mut Connection,
        session: &mut Late,
        frame: Frame,
    ) -> Result<Option<Frame>, Ending> {
        if !connection.handle.facts().exec {
            return self.ports.serve(connection, session, frame).await;
        }
        let parsed = match session.sort::<DevRequest, Control>(frame) {
            Sorted::Request(parsed) => parsed,
            Sorted::Late => return Ok(None),
            Sorted::Other(frame) => return Ok(Some(frame)),
        };
        match parsed.request {
            Err(error) => reply::send(connection, DevAnswer::Error(error), parsed.id).await?,
            Ok(request) => self.request(connection, request, parsed.id).await?,
        }
        Ok(None)
    }

    fn freeze(&self) {
        self.jobs.freeze(true);
    }

    fn thaw(&self) {
        self.jobs.freeze(false);
    }

    fn stood_still(&self, time: Duration) {
        self.jobs.stood_still(time);
    }

    async fn shut_down(&self) {
        self.jobs.end().await;
    }
}
