//! `put` and `get`: carries bytes between the host and the process that has the files, see `files`.

use super::running::{CommandEvent, Running};
use super::start::Commands;
use crate::core::open::Kind;
use crate::machine::turns::between_pieces;
use crate::ports::audit::Audit;
use crate::ports::flow::{Discard, InputQueue, Sink};
use crate::ports::host::{Host, Sent};
use crate::ports::outbox::Outbox;
use crate::ports::reply::{self, failed};
use crate::serve::connection::{Connection, Ending};
use mvm_protocol::answer::{ErrorAnswer, ErrorCode};
use mvm_protocol::dev::channel::{FILE, STDOUT};
use mvm_protocol::dev::{
    Control, ControlFrame, DevAnswer, DevAnswerFrame, DevRequest, DevRequestFrame,
};
use mvm_protocol::frame::{encode_data, encode_json};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use tokio::sync::oneshot;

/// How long the process may take to give up what it has begun, and to clean up after itself.
const GIVE_UP_WITHIN: std::time::Duration = std::time::Duration::from_secs(10);

/// The longest report that is taken.
const LONGEST_REPORT: usize = 64 * 1024;

/// Writes or reads a file or a folder.
pub(super) async fn serve(
    connection: &mut Connection,
    commands: &Commands,
    asked: DevRequest,
    id: Option<u64>,
) -> Result<(), Ending> {
    let audit = Audit::begin(asked.type_name(), "");
    let takes = matches!(asked, DevRequest::Put(_));
    let started = async {
        let admitted = connection.handle.open(Kind::Active).await?;
        let request = DevRequestFrame {
            request: asked,
            id: None,
        };
        let body = serde_json::to_string(&request).map_err(|error| failed(error.to_string()))?;
        let started = commands.start_helper(admitted.run, &body, takes).await?;
        Ok((admitted, started))
    };
    let (mut admitted, started) = match started.await {
        Ok(started) => started,
        Err(error) => {
            audit.refused(&error);
            return reply::send(connection, DevAnswer::Error(error), id).await;
        }
    };
    let mut host = Host::new(connection, id, takes);
    let mut relay = Relay {
        running: started.running,
        input: started.stdin,
        takes,
        reports: Reports::default(),
        begun: false,
        last: None,
    };
    let served = relay.serve(&mut host, &mut admitted.end).await;
    relay.give_up().await;
    drop(admitted);
    let last = match relay.last.take() {
        Some(last) => last,
        None => DevAnswer::Error(failed(
            "the process that had the file was ended before it was done",
        )),
    };
    match &last {
        _ if served.is_err() => audit.end("broken off"),
        DevAnswer::Error(error) => audit.refused(error),
        _ => audit.end("done"),
    }
    served?;
    host.answer(last);
    host.finish().await
}

struct Relay {
    running: Running,
    input: InputQueue,
    /// Whether it is a `put`, which has something to clean up.
    takes: bool,
    reports: Reports,
    /// Whether content may be sent to the host.
    begun: bool,
    last: Option<DevAnswer>,
}

impl Relay {
    async fn serve(
        &mut self,
        host: &mut Host<'_, Control>,
        end: &mut oneshot::Receiver<()>,
    ) -> Result<(), Ending> {
        while self.running.outcome().is_none() {
            self.take(host).await?;
            // Before it has been told to begin it has nothing to send.
            host.awaits_input = self.takes && self.begun && !self.input.is_ending();
            host.send().await?;
            let room = host.out.is_empty();
            tokio::select! {
                next = host.next(self.input.has_room()) => next?,
                () = self.input.takes() => self.input.write(),
                event = self.running.next_event(room) => {
                    self.act(event, &mut host.out).await;
                    self.read_reports(Some(&mut *host));
                }
                _ = &mut *end => {
                    self.give_up().await;
                    // What was whole by then is there, and is said to be.
                    if !matches!(self.last, Some(DevAnswer::PutDone(_) | DevAnswer::GetDone(_))) {
                        let message = "the guest goes to sleep: try again when it has woken";
                        let error = ErrorAnswer::new(ErrorCode::Busy, message);
                        self.last = Some(DevAnswer::Error(error));
                    }
                }
            }
        }
        Ok(())
    }

    async fn act(&mut self, event: CommandEvent, out: &mut Outbox) {
        // What was said before the first byte is read before it.
        let event = match event {
            CommandEvent::Output(0) if !self.begun && self.running.stderr_is_open() => {
                CommandEvent::Output(1)
            }
            other => other,
        };
        let mut sink = ContentAndReports {
            out,
            reports: &mut self.reports,
        };
        self.running.act(event, &mut sink).await;
    }

    /// Takes what the host has sent, as far as there is room for it.
    async fn take(&mut self, host: &mut Host<'_, Control>) -> Result<(), Ending> {
        while self.input.has_room()
            && let Some(sent) = host.sent().await?
        {
            match sent {
                Sent::Data(FILE, bytes) => {
                    self.input
                        .push(encode_data(FILE, &bytes).unwrap_or_default());
                }
                Sent::Data(..) => host.refuse("a file's content comes on channel 3", None),
                Sent::Control(Control::PutEnd, _) => {
                    self.input.push(put_end());
                    self.input.end();
                }
                Sent::Control(_, id) => host.refuse_control(id),
            }
        }
        Ok(())
    }

    /// Passes on what the process has said.
    fn read_reports(&mut self, mut host: Option<&mut Host<'_, Control>>) {
        while let Some(answer) = self.reports.next() {
            match answer {
                DevAnswer::PutReady(_) | DevAnswer::GetStarted(_) => {
                    self.begun = true;
                    if let Some(host) = &mut host {
                        host.answer(answer);
                    }
                }
                last => self.last = Some(last),
            }
        }
    }

    /// Ends the process, unless it has ended: it cleans up when there is no more to be read.
    async fn give_up(&mut self) {
        self.input.close();
        if self.takes {
            self.running.end_within(GIVE_UP_WITHIN);
        } else {
            self.running.terminate();
        }
        while self.running.outcome().is_none() {
            between_pieces().await;
            let event = self.running.next_event(true).await;
            let mut sink = ReportsOnly {
                reports: &mut self.reports,
            };
            self.running.act(event, &mut sink).await;
        }
        self.read_reports(None);
    }
}

fn put_end() -> Vec<u8> {
    let request = Control::PutEnd;
    let body = serde_json::to_vec(&ControlFrame { request, id: None }).unwrap_or_default();
    encode_json(&body).unwrap_or_default()
}

/// Content goes to the host, reports are kept.
struct ContentAndReports<'a> {
    out: &'a mut Outbox,
    reports: &'a mut Reports,
}

impl Sink for ContentAndReports<'_> {
    fn take_from(&mut self, channel: u8, from: &OwnedFd) -> Result<usize, Errno> {
        if channel == STDOUT {
            self.out.take_from(FILE, from)
        } else {
            self.reports.take_from(channel, from)
        }
    }
}

/// Reports are kept, content is of no use any more.
struct ReportsOnly<'a> {
    reports: &'a mut Reports,
}

impl Sink for ReportsOnly<'_> {
    fn take_from(&mut self, channel: u8, from: &OwnedFd) -> Result<usize, Errno> {
        if channel == STDOUT {
            Discard.take_from(channel, from)
        } else {
            self.reports.take_from(channel, from)
        }
    }
}

/// What the process says, a line each.
#[derive(Default)]
struct Reports {
    bytes: Vec<u8>,
}

impl Reports {
    fn next(&mut self) -> Option<DevAnswer> {
        let at = self.bytes.iter().position(|byte| *byte == b'\n')?;
        let line: Vec<u8> = self.bytes.drain(..=at).collect();
        match DevAnswerFrame::read(&line) {
            Ok(frame) => Some(frame.answer),
            // It is our own program, so this is a fault of ours, and told as one.
            Err(_) => Some(DevAnswer::Error(failed(
                "the process that had the file said something else than an answer",
            ))),
        }
    }
}

impl Sink for Reports {
    fn take_from(&mut self, _: u8, from: &OwnedFd) -> Result<usize, Errno> {
        let mut buffer = [0_u8; 4096];
        let read = rustix::io::read(from, &mut buffer)?;
        if self.bytes.len() < LONGEST_REPORT {
            self.bytes.extend(buffer.get(..read).unwrap_or_default());
        }
        Ok(read)
    }
}
