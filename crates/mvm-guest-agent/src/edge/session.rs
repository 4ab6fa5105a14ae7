//! One connection: handshake, frames in, frames out.
//!
//! A session knows no state but its own. What it takes from the host is bounded in size and in
//! time: whoever stalls in a frame, or never reads, is cut off, and nobody else notices.

use super::driver::Handle;
use super::encode;
use super::stream::Stream;
use super::watchers::Queue;
use crate::requests;
use mvm_protocol::answer::{Answer, Change, ErrorAnswer, ErrorCode, Event};
use mvm_protocol::handshake::{LineReader, ok_line, parse_connect};
use mvm_protocol::request::{ParsedRequest, Request};
use mvm_protocol::{Decoder, Frame, FrameError, PORT};
use std::io;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until, timeout_at};

/// How long a host may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// From the connection to the end of its first frame.
    pub(crate) first_frame: Duration,
    /// Between the pieces of a frame that has begun.
    pub(crate) within_frame: Duration,
    /// Between one frame and the next; and until it reads what was written.
    pub(crate) idle: Duration,
    /// How long what it sends is still taken after it was told that it is cut off.
    pub(crate) linger: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            first_frame: Duration::from_secs(10),
            within_frame: Duration::from_secs(10),
            idle: Duration::from_secs(600),
            linger: Duration::from_secs(2),
        }
    }
}

/// Who speaks the handshake: the VMM on vsock, the agent itself on a Unix socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handshake {
    ByVmm,
    ByAgent,
}

/// Why a session ended.
#[derive(Debug)]
pub(crate) enum Ending {
    /// The host closed, or went away.
    Closed,
    /// The host was too slow.
    TooSlow,
    /// The host broke the framing, or asked for another port.
    Broken,
}

impl From<io::Error> for Ending {
    fn from(_: io::Error) -> Self {
        Self::Closed
    }
}

/// Serves a connection until one side ends it.
pub(crate) async fn serve(
    stream: Stream,
    handshake: Handshake,
    handle: Handle,
    patience: Patience,
) -> Ending {
    let mut session = Session::new(stream, handle, patience);
    match session.run(handshake).await {
        Ok(never) => match never {},
        Err(ending) => ending,
    }
}

/// Tells a host that all connections are taken, and closes.
pub(crate) async fn refuse(stream: Stream, handshake: Handshake, handle: Handle) {
    let patience = Patience {
        first_frame: Duration::from_secs(1),
        linger: Duration::from_millis(500),
        ..Patience::default()
    };
    let mut session = Session::new(stream, handle, patience);
    let deadline = Instant::now() + session.patience.first_frame;
    if handshake == Handshake::ByAgent && session.shake_hands(deadline).await.is_err() {
        return;
    }
    let _ = session.answer(too_many_connections(), None).await;
    session.linger().await;
}

/// What a host is told when all connections are taken.
fn too_many_connections() -> Answer {
    let message = "all connections are taken: close some, or raise max_connections";
    Answer::Error(ErrorAnswer::new(ErrorCode::TooManyConnections, message))
}

enum Never {}

/// A connection, and what is known of it.
pub(crate) struct Session {
    pub(crate) stream: Stream,
    pub(crate) handle: Handle,
    pub(crate) patience: Patience,
    pub(crate) decoder: Decoder,
    #[cfg(feature = "dev")]
    pub(crate) dev: crate::dev::OfSession,
}

impl Session {
    fn new(stream: Stream, handle: Handle, patience: Patience) -> Self {
        Self {
            stream,
            handle,
            patience,
            decoder: Decoder::default(),
            #[cfg(feature = "dev")]
            dev: crate::dev::OfSession::default(),
        }
    }
}

impl Session {
    async fn run(&mut self, handshake: Handshake) -> Result<Never, Ending> {
        let mut deadline = Instant::now() + self.patience.first_frame;
        if handshake == Handshake::ByAgent {
            self.shake_hands(deadline).await?;
        }
        loop {
            let frame = self.frame(deadline).await?;
            #[cfg(feature = "dev")]
            let Some(frame) = self.serve_dev(frame).await? else {
                deadline = Instant::now() + self.patience.idle;
                continue;
            };
            let (id, answer) = match frame {
                Frame::Json(body) => {
                    let parsed = ParsedRequest::read(&body);
                    let id = parsed.id;
                    match requests::admit(parsed, &self.handle) {
                        Ok(Request::Watch(watch)) => {
                            return self.watch(watch.heartbeat(), id).await;
                        }
                        Ok(request) => (id, self.handle.ask(request).await),
                        Err(refusal) => (id, Answer::Error(refusal)),
                    }
                }
                Frame::Data { .. } | Frame::EmptyData => (None, stray_data()),
            };
            self.answer(answer, id).await?;
            deadline = Instant::now() + self.patience.idle;
        }
    }

    async fn shake_hands(&mut self, deadline: Instant) -> Result<(), Ending> {
        let mut line = LineReader::default();
        loop {
            let bytes = self.read(deadline).await?;
            let (taken, whole) = line.push(&bytes).map_err(|_| Ending::Broken)?;
            if let Some(line) = whole {
                if parse_connect(&line) != Ok(PORT) {
                    return Err(Ending::Broken);
                }
                self.write(ok_line(PORT).as_bytes()).await?;
                self.decoder.push(bytes.get(taken..).unwrap_or_default());
                return Ok(());
            }
        }
    }

    /// The next frame, or the end of the session.
    async fn frame(&mut self, deadline: Instant) -> Result<Frame, Ending> {
        #[cfg(feature = "dev")]
        if let Some(body) = self.dev.held_back.take() {
            return Ok(Frame::Json(body));
        }
        loop {
            match self.decoder.next_frame() {
                Ok(Some(frame)) => return Ok(frame),
                Ok(None) => {}
                Err(error) => return Err(self.out_of_step(error).await),
            }
            let deadline = if self.decoder.is_mid_frame() {
                deadline.min(Instant::now() + self.patience.within_frame)
            } else {
                deadline
            };
            let bytes = self.read(deadline).await?;
            self.decoder.push(&bytes);
        }
    }

    /// Tells a host that it broke the framing, and how.
    pub(crate) async fn out_of_step(&mut self, error: FrameError) -> Ending {
        let error = ErrorAnswer::new(ErrorCode::FrameTooLarge, error.to_string());
        if let Err(ending) = self.answer(Answer::Error(error), None).await {
            return ending;
        }
        self.linger().await;
        Ending::Broken
    }

    /// A `status` frame, then changes and heartbeats until the host closes.
    async fn watch(&mut self, heartbeat: Duration, id: Option<u64>) -> Result<Never, Ending> {
        let queue = Rc::new(Queue::default());
        let status = self.handle.watch(Rc::clone(&queue)).await;
        self.answer(status, id).await?;
        // What was sent along with the watch has been read already.
        self.refuse_while_watching().await?;
        let mut beat = Instant::now() + heartbeat;
        let mut buffer = [0_u8; 4096];
        loop {
            let event = tokio::select! {
                event = queue.next() => (*event).clone(),
                () = sleep_until(beat) => {
                    beat = (beat + heartbeat).max(Instant::now());
                    Event { at: super::clock::now().wall, change: Change::Heartbeat { heartbeat: true } }
                }
                read = self.stream.read(&mut buffer) => {
                    let read = match read? { 0 => return Err(Ending::Closed), read => read };
                    self.decoder.push(buffer.get(..read).unwrap_or_default());
                    self.refuse_while_watching().await?;
                    continue;
                }
            };
            self.answer(Answer::Event(event), id).await?;
        }
    }

    /// A watch has no end but the connection's, so a request after it would wait for ever.
    async fn refuse_while_watching(&mut self) -> Result<(), Ending> {
        while let Some(frame) = self.decoder.next_frame().map_err(|_| Ending::Broken)? {
            let id = match frame {
                Frame::Json(body) => ParsedRequest::read(&body).id,
                Frame::Data { .. } | Frame::EmptyData => None,
            };
            let message = "this connection watches: send other requests on another one";
            let error = ErrorAnswer::new(ErrorCode::BadRequest, message);
            self.answer(Answer::Error(error), id).await?;
        }
        Ok(())
    }

    async fn answer(&mut self, answer: Answer, id: Option<u64>) -> Result<(), Ending> {
        let frame = encode::frame(answer, id);
        self.write(&frame).await
    }

    async fn read(&self, deadline: Instant) -> Result<Vec<u8>, Ending> {
        let mut buffer = [0_u8; 4096];
        match timeout_at(deadline, self.stream.read(&mut buffer)).await {
            Err(_) => Err(Ending::TooSlow),
            Ok(Ok(0) | Err(_)) => Err(Ending::Closed),
            Ok(Ok(read)) => Ok(buffer.get(..read).unwrap_or_default().to_vec()),
        }
    }

    pub(crate) async fn write(&self, mut bytes: &[u8]) -> Result<(), Ending> {
        while !bytes.is_empty() {
            let deadline = Instant::now() + self.patience.idle;
            match timeout_at(deadline, self.stream.write(bytes)).await {
                Err(_) => return Err(Ending::TooSlow),
                Ok(Err(_)) => return Err(Ending::Closed),
                Ok(Ok(written)) => bytes = bytes.get(written..).unwrap_or_default(),
            }
        }
        Ok(())
    }

    /// Takes and forgets what the host still sends, so that it gets to read why it was cut off: a
    /// close with unread bytes resets the connection.
    async fn linger(&self) {
        let deadline = Instant::now() + self.patience.linger;
        while self.read(deadline).await.is_ok() {}
    }
}

fn stray_data() -> Answer {
    let message = "a data frame that belongs to no request";
    Answer::Error(ErrorAnswer::new(ErrorCode::BadRequest, message))
}

#[cfg(test)]
#[path = "session_tests.rs"]
pub(crate) mod tests;
