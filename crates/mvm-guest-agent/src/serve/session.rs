//! What a host asks for on one connection, one request after the other.
//!
//! A session knows no state but its own connection's.

use super::connection::{Connection, Ending, Handshake, Timeouts};
use super::extension::Extension;
use super::handle::Handle;
use super::requests;
use super::watchers::Queue;
use crate::machine::clock;
use crate::machine::stream::Stream;
use mvm_protocol::answer::{Answer, Change, ErrorAnswer, ErrorCode, Event};
use mvm_protocol::request::{ParsedRequest, Request};
use mvm_protocol::status::Lifecycle;
use mvm_protocol::{Frame, Lenient};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// Serves a connection until one side ends it.
pub(crate) async fn serve<E: Extension>(
    stream: Stream,
    handshake: Handshake,
    handle: Handle,
    extension: E,
    timeouts: Timeouts,
) -> Ending {
    let mut session = Session {
        connection: Connection::new(stream, handle, timeouts),
        extension,
        extension_state: E::Session::default(),
    };
    match session.run(handshake).await {
        Ok(never) => match never {},
        Err(ending) => ending,
    }
}

/// Tells a host that all connections are taken, and closes.
pub(crate) async fn refuse(stream: Stream, handshake: Handshake, handle: Handle) {
    let timeouts = Timeouts {
        first_frame: Duration::from_secs(1),
        linger: Duration::from_millis(500),
        ..Timeouts::default()
    };
    let mut connection = Connection::new(stream, handle, timeouts);
    let deadline = Instant::now() + timeouts.first_frame;
    if handshake == Handshake::ByAgent && connection.shake_hands(deadline).await.is_err() {
        return;
    }
    let _ = connection.answer(too_many_connections(), None).await;
    connection.linger().await;
}

/// What a host is told when all connections are taken.
fn too_many_connections() -> Answer {
    let message = "all connections are taken: close some, or raise max_connections";
    Answer::Error(ErrorAnswer::new(ErrorCode::TooManyConnections, message))
}

enum Never {}

/// A connection, and what the build's extension remembers of it.
struct Session<E: Extension> {
    connection: Connection,
    extension: E,
    extension_state: E::Session,
}

impl<E: Extension> Session<E> {
    async fn run(&mut self, handshake: Handshake) -> Result<Never, Ending> {
        let mut deadline = Instant::now() + self.connection.timeouts.first_frame;
        if handshake == Handshake::ByAgent {
            self.connection.shake_hands(deadline).await?;
        }
        loop {
            let frame = in_turn(self.connection.frame(deadline)).await?;
            let connection = &mut self.connection;
            let state = &mut self.extension_state;
            let Some(frame) = self.extension.serve(connection, state, frame).await? else {
                deadline = Instant::now() + connection.timeouts.idle;
                continue;
            };
            let (id, answer) = match frame {
                Frame::Json(body) => {
                    let parsed = ParsedRequest::read(&body);
                    let id = parsed.id;
                    match requests::admit(parsed, self.connection.handle.facts(), E::PROFILE) {
                        Ok(Request::Watch(watch)) => {
                            return self.watch(watch.heartbeat(), id).await;
                        }
                        Ok(request) => (id, self.connection.answer_to(request).await?),
                        Err(refusal) => (id, Answer::Error(refusal)),
                    }
                }
                Frame::Data { .. } | Frame::EmptyData => (None, stray_data()),
            };
            self.connection.answer(answer, id).await?;
            deadline = Instant::now() + self.connection.timeouts.idle;
        }
    }

    /// A `status` frame, then changes and heartbeats until the host closes.
    async fn watch(&mut self, heartbeat: Duration, id: Option<u64>) -> Result<Never, Ending> {
        let queue = Rc::new(Queue::default());
        let status = self.connection.handle.watch(Rc::clone(&queue)).await;
        let is_ready = |lifecycle: &Lenient<Lifecycle>| *lifecycle == Lifecycle::Ready;
        // A guest that is about to be frozen sends nothing.
        let mut ready = matches!(&status, Answer::Status(status) if is_ready(&status.lifecycle));
        self.connection.answer(status, id).await?;
        // What was sent along with the watch has been read already.
        self.refuse_while_watching().await?;
        let mut beat = Instant::now() + heartbeat;
        let mut buffer = [0_u8; 4096];
        // When the rest of a frame is to be there.
        let mut late: Option<Instant> = None;
        loop {
            let event = tokio::select! {
                event = queue.next() => (*event).clone(),
                () = sleep_until(late.unwrap_or(beat)), if late.is_some() => {
                    return Err(Ending::TooSlow);
                }
                () = sleep_until(beat), if !ready => {
                    beat = (beat + heartbeat).max(Instant::now());
                    Event { at: clock::now().wall, change: Change::Heartbeat { heartbeat: true } }
                }
                read = self.connection.stream.read(&mut buffer) => {
                    let read = match read? { 0 => return Err(Ending::Closed), read => read };
                    self.connection.decoder.push(buffer.get(..read).unwrap_or_default());
                    self.refuse_while_watching().await?;
                    late = self.connection.decoder.is_mid_frame()
                        .then(|| Instant::now() + self.connection.timeouts.within_frame);
                    continue;
                }
            };
            if let Change::Lifecycle { lifecycle } = &event.change
                && std::mem::replace(&mut ready, is_ready(lifecycle))
            {
                beat = Instant::now() + heartbeat;
            }
            self.connection.answer(Answer::Event(event), id).await?;
        }
    }

    /// A watch has no end but the connection's, so a request after it would wait for ever.
    async fn refuse_while_watching(&mut self) -> Result<(), Ending> {
        loop {
            let frame = match self.connection.decoder.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => return Ok(()),
                Err(error) => return Err(self.connection.out_of_step(error).await),
            };
            let id = match frame {
                Frame::Json(body) => ParsedRequest::read(&body).id,
                Frame::Data { .. } | Frame::EmptyData => None,
            };
            let message = "this connection watches: send other requests on another one";
            let error = ErrorAnswer::new(ErrorCode::BadRequest, message);
            self.connection.answer(Answer::Error(error), id).await?;
        }
    }
}

/// Gives what comes, and others their turn before if it was there already: a host that sends requests
/// faster than they are answered would keep the one thread there is.
async fn in_turn<T>(coming: impl Future<Output = T>) -> T {
    let mut coming = pin!(coming);
    let mut waited = false;
    let came = poll_fn(|context| {
        let polled = coming.as_mut().poll(context);
        waited |= polled.is_pending();
        polled
    });
    let came = came.await;
    if !waited {
        tokio::task::yield_now().await;
    }
    came
}

fn stray_data() -> Answer {
    let message = "a data frame that belongs to no request";
    Answer::Error(ErrorAnswer::new(ErrorCode::BadRequest, message))
}

#[cfg(test)]
#[path = "session_tests.rs"]
pub(crate) mod tests;
