//! One connection: the handshake, frames in, frames out, and how long each may take.
//!
//! What is taken from the host is bounded in size and in time: a host that stalls within a frame, or
//! never reads, is cut off, and no other connection notices.

use super::encode;
use super::handle::Handle;
use crate::machine::stream::Stream;
use mvm_protocol::answer::{Answer, ErrorAnswer, ErrorCode};
use mvm_protocol::handshake::{LineReader, ok_line, parse_connect};
use mvm_protocol::request::Request;
use mvm_protocol::{Decoder, Frame, FrameError, PORT};
use std::io;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};

/// How long a host may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timeouts {
    /// From the connection to the end of its first frame.
    pub(crate) first_frame: Duration,
    /// Between the pieces of a frame that has begun.
    pub(crate) within_frame: Duration,
    /// Between one frame and the next; and until it reads what was written.
    pub(crate) idle: Duration,
    /// How long what it sends is still taken after it was told that it is cut off.
    pub(crate) linger: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            first_frame: Duration::from_secs(10),
            within_frame: Duration::from_secs(10),
            idle: Duration::from_secs(600),
            linger: Duration::from_secs(2),
        }
    }
}

/// How long an answer is waited for once the host has closed: one that has closed its own direction alone,
/// as it must not, gets what is quick.
const GONE: Duration = Duration::from_secs(2);

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

/// A connection to a host.
pub(crate) struct Connection {
    pub(crate) stream: Stream,
    /// The way to the driver.
    pub(crate) handle: Handle,
    pub(crate) timeouts: Timeouts,
    pub(crate) decoder: Decoder,
    /// A request that arrived while another was under way: it is the next frame.
    pub(crate) postponed: Option<Vec<u8>>,
}

impl Connection {
    pub(crate) fn new(stream: Stream, handle: Handle, timeouts: Timeouts) -> Self {
        Self {
            stream,
            handle,
            timeouts,
            decoder: Decoder::default(),
            postponed: None,
        }
    }

    pub(super) async fn shake_hands(&mut self, deadline: Instant) -> Result<(), Ending> {
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

    /// The answer to a request. A host that has gone does not keep its place for as long as a check may
    /// take.
    pub(super) async fn answer_to(&self, request: Request) -> Result<Answer, Ending> {
        let gone = async {
            self.stream.closed().await;
            sleep(GONE).await;
        };
        tokio::select! {
            biased;
            answer = self.handle.ask(request) => Ok(answer),
            () = gone => Err(Ending::Closed),
        }
    }

    /// The next frame, or the end of the session.
    pub(super) async fn frame(&mut self, deadline: Instant) -> Result<Frame, Ending> {
        if let Some(body) = self.postponed.take() {
            return Ok(Frame::Json(body));
        }
        loop {
            match self.decoder.next_frame() {
                Ok(Some(frame)) => return Ok(frame),
                Ok(None) => {}
                Err(error) => return Err(self.out_of_step(error).await),
            }
            let deadline = if self.decoder.is_mid_frame() {
                deadline.min(Instant::now() + self.timeouts.within_frame)
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

    pub(super) async fn answer(&mut self, answer: Answer, id: Option<u64>) -> Result<(), Ending> {
        let frame = encode::frame(answer, id);
        self.write(&frame).await
    }

    pub(super) async fn read(&self, deadline: Instant) -> Result<Vec<u8>, Ending> {
        let mut buffer = [0_u8; 4096];
        match timeout_at(deadline, self.stream.read(&mut buffer)).await {
            Err(_) => Err(Ending::TooSlow),
            Ok(Ok(0) | Err(_)) => Err(Ending::Closed),
            Ok(Ok(read)) => Ok(buffer.get(..read).unwrap_or_default().to_vec()),
        }
    }

    pub(crate) async fn write(&self, mut bytes: &[u8]) -> Result<(), Ending> {
        while !bytes.is_empty() {
            let deadline = Instant::now() + self.timeouts.idle;
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
    pub(super) async fn linger(&self) {
        let deadline = Instant::now() + self.timeouts.linger;
        while self.read(deadline).await.is_ok() {}
    }
}
