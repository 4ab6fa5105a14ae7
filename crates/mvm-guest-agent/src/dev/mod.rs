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
//! forward   a TCP port of the loopback           forward
//! ```

mod attach;
mod audit;
mod exec;
pub(crate) mod files;
mod flow;
mod forward;
mod host;
mod image;
mod jobs;
mod outbox;
mod relay;
mod ring;
mod running;
mod start;
mod terminal;

use crate::edge::process::Launcher;
use crate::edge::session::{Ending, Session};
use crate::edge::users::{self, Identity};
use mvm_protocol::answer::{ErrorAnswer, ErrorCode};
use mvm_protocol::dev::{DevAnswer, DevAnswerFrame, DevRequest, ParsedControl, ParsedDevRequest};
use mvm_protocol::frame::{HEADER, data_header, encode_json};
use mvm_protocol::{Frame, MAX_BODY};
use std::path::Path;
use std::rc::Rc;

/// What all connections share.
pub(crate) struct Dev {
    /// None where there can be no commands: in a simulation.
    launcher: Option<Rc<Launcher>>,
    jobs: jobs::Jobs,
    /// The agent's own user, whose name and home commands are told.
    user: Option<Identity>,
}

impl Dev {
    pub(crate) fn new(launcher: Option<Rc<Launcher>>) -> Self {
        let jobs = jobs::Jobs::default();
        let uid = rustix::process::geteuid().as_raw().to_string();
        Self {
            launcher,
            jobs,
            user: users::look_up(Path::new("/etc"), &uid).ok(),
        }
    }

    fn launcher(&self) -> Result<Rc<Launcher>, ErrorAnswer> {
        let launcher = self.launcher.clone();
        launcher.ok_or_else(|| failed("commands cannot be started here"))
    }

    /// The guest goes to sleep, or has woken.
    pub(crate) fn hold_jobs(&self, hold: bool) {
        self.jobs.hold(hold);
    }

    /// The agent stops.
    pub(crate) async fn end_jobs(&self) {
        self.jobs.end().await;
    }
}

/// What a connection keeps from one request to the next.
#[derive(Default)]
pub(crate) struct OfSession {
    /// Whether what comes may have been sent for a request that has been answered to its end.
    late: bool,
    /// A request that came while another was under way: it is next.
    pub(crate) held_back: Option<Vec<u8>>,
}

impl Session {
    /// Serves a frame that is dev builds' alone; gives back one that is not.
    pub(crate) async fn serve_dev(&mut self, frame: Frame) -> Result<Option<Frame>, Ending> {
        let body = match frame {
            Frame::Data { .. } if self.dev.late => return Ok(None),
            Frame::Json(body) => body,
            other => return Ok(Some(other)),
        };
        if self.dev.late && is_control(&body) {
            return Ok(None);
        }
        self.dev.late = false;
        let parsed = ParsedDevRequest::read(&body);
        let request = match parsed.request {
            _ if !self.handle.facts().exec => return Ok(Some(Frame::Json(body))),
            Err(error) if error.code == ErrorCode::UnknownRequest || parsed.kind.is_none() => {
                return Ok(Some(Frame::Json(body)));
            }
            Err(error) => Err(error),
            Ok(request) => Ok(request),
        };
        self.dev.late = true;
        match request {
            Err(error) => self.dev_answer(DevAnswer::Error(error), parsed.id).await?,
            Ok(request) => self.dev_request(request, parsed.id).await?,
        }
        Ok(None)
    }

    async fn dev_request(&mut self, request: DevRequest, id: Option<u64>) -> Result<(), Ending> {
        match request {
            DevRequest::Exec(asked) => exec::serve(self, asked, id).await,
            DevRequest::Attach(asked) => attach::serve(self, asked, id).await,
            DevRequest::Jobs => {
                let answer = self.handle.dev().jobs.list(id);
                self.dev_answer(answer, id).await
            }
            DevRequest::JobSignal(asked) => {
                let answer = self.handle.dev().jobs.signal(asked);
                self.dev_answer(answer.unwrap_or_else(DevAnswer::Error), id)
                    .await
            }
            DevRequest::Put(_) | DevRequest::Get(_) => relay::serve(self, request, id).await,
            DevRequest::Forward(asked) => forward::serve(self, asked, id).await,
        }
    }

    async fn dev_answer(&mut self, answer: DevAnswer, id: Option<u64>) -> Result<(), Ending> {
        self.write(&encode(answer, id)).await
    }
}

/// Whether this is something that is sent for a request under way.
fn is_control(body: &[u8]) -> bool {
    match ParsedControl::read(body).request {
        Ok(_) => true,
        Err(error) => error.code != ErrorCode::UnknownRequest,
    }
}

/// A data frame's header, and its channel.
const DATA_HEADER: usize = HEADER + 1;

/// Writes the header of a data frame of so many bytes in front of them.
fn write_data_header(frame: &mut [u8], channel: u8, bytes: usize) {
    let header = data_header(channel, bytes);
    if let Some(place) = frame.first_chunk_mut() {
        *place = header;
    }
}

/// An answer as a frame. None of them is longer than a frame may be; that would be told.
fn encode(answer: DevAnswer, id: Option<u64>) -> Vec<u8> {
    let to_json = |answer| serde_json::to_vec(&DevAnswerFrame { answer, id }).unwrap_or_default();
    let mut body = to_json(answer);
    if body.len() > MAX_BODY {
        body = to_json(DevAnswer::Error(failed(
            "the answer does not fit into a frame",
        )));
    }
    encode_json(&body).unwrap_or_default()
}

fn failed(message: impl Into<String>) -> ErrorAnswer {
    ErrorAnswer::new(ErrorCode::Failed, message)
}
