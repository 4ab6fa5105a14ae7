//! What an agent answers, read within bounds and deadlines.

use crate::error::{clipped, quoted};
use crate::{Awaited, Endpoint, Error, WIRE};
use mvm_protocol::answer::{AnswerFrame, AnswerOf};
use mvm_protocol::{Answer, Decoder, ErrorAnswer, Frame};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, ReadBuf};

/// The receiving half's state.
pub(crate) struct Incoming {
    pub(crate) endpoint: Endpoint,
    pub(crate) decoder: Decoder,
}

/// A set of answers, one of which is an error.
pub(crate) trait AnswerKind: DeserializeOwned + Serialize {
    /// The answer, or the error that it is.
    fn into_result(self) -> Result<Self, ErrorAnswer>;

    /// Reads a body leniently.
    fn read(body: &[u8]) -> Result<AnswerOf<Self>, serde_json::Error> {
        AnswerOf::read(body)
    }
}

impl AnswerKind for Answer {
    fn into_result(self) -> Result<Self, ErrorAnswer> {
        match self {
            Self::Error(error) => Err(error),
            answer => Ok(answer),
        }
    }

    fn read(body: &[u8]) -> Result<AnswerFrame, serde_json::Error> {
        AnswerFrame::read_status(body).map_or_else(|| AnswerFrame::read(body), Ok)
    }
}

/// How much of a frame the conversation shows, in bytes.
const SHOWN: usize = 4096;

impl Incoming {
    /// The next answer, which must be the one to the request `id`.
    ///
    /// An error without a number is taken as the answer: that is how an agent refuses what it could
    /// not read, and a connection beyond those that it has room for.
    pub(crate) async fn answer<A: AnswerKind>(
        &mut self,
        reader: &mut (impl AsyncRead + Unpin),
        id: u64,
        awaited: Awaited,
    ) -> Result<Result<A, ErrorAnswer>, Error> {
        let body = self.body(reader, awaited).await?;
        self.read(&body, id)
    }

    /// The next answer of a watch, likewise.
    pub(crate) async fn event(
        &mut self,
        reader: &mut (impl AsyncRead + Unpin),
        id: u64,
    ) -> Result<Result<Answer, ErrorAnswer>, Error> {
        let body = self.body(reader, Awaited::Event).await?;
        match AnswerFrame::read_heartbeat(&body) {
            Some(beat) if beat.id == Some(id) => Ok(Ok(beat.answer)),
            _ => self.read(&body, id),
        }
    }

    /// The body of the next frame, which must be JSON.
    async fn body(
        &mut self,
        reader: &mut (impl AsyncRead + Unpin),
        awaited: Awaited,
    ) -> Result<Vec<u8>, Error> {
        loop {
            match self.decoded()? {
                Some(Frame::Json(body)) => return Ok(body),
                Some(Frame::Data { .. } | Frame::EmptyData) => {
                    return Err(self.stranger("raw bytes where an answer belongs"));
                }
                None => {}
            }
            let decoder = &mut self.decoder;
            // There is a buffer only while there is something to be read: ten thousand watchers wait.
            let read = poll_fn(|cx| {
                let mut bytes = [MaybeUninit::uninit(); 4096];
                let mut buffer = ReadBuf::uninit(&mut bytes);
                ready!(Pin::new(&mut *reader).poll_read(cx, &mut buffer))?;
                decoder.push(buffer.filled());
                Poll::Ready(Ok(buffer.filled().len()))
            });
            match read.await {
                Ok(0) => return Err(self.closed(awaited)),
                Ok(_) => {}
                Err(source) => return Err(self.broken(source, awaited)),
            }
        }
    }

    /// Reads a body that has to be an answer to the request `id`.
    pub(crate) fn read<A: AnswerKind>(
        &self,
        body: &[u8],
        id: u64,
    ) -> Result<Result<A, ErrorAnswer>, Error> {
        let frame = A::read(body)
            .map_err(|error| self.stranger(&format!("{error} in {}", quoted(body))))?;
        let answered = frame.id;
        match frame.answer.into_result() {
            Err(error) if answered.is_none_or(|answered| answered == id) => Ok(Err(error)),
            Ok(answer) if answered == Some(id) => Ok(Ok(answer)),
            _ => Err(self.stranger(&match answered {
                Some(other) => format!("an answer numbered {other} to request {id}"),
                None => format!("an answer without the number {id} of its request"),
            })),
        }
    }

    /// The next frame. What was read stays in the decoder if the future is dropped.
    pub(crate) async fn frame(
        &mut self,
        reader: &mut (impl AsyncRead + Unpin),
        buffer: &mut [u8],
        awaited: Awaited,
    ) -> Result<Frame, Error> {
        loop {
            if let Some(frame) = self.decoded()? {
                return Ok(frame);
            }
            match reader.read(buffer).await {
                Ok(0) => return Err(self.closed(awaited)),
                Ok(count) => self.decoder.push(buffer.get(..count).unwrap_or_default()),
                Err(source) => return Err(self.broken(source, awaited)),
            }
        }
    }

    /// A frame that has come as a whole.
    fn decoded(&mut self) -> Result<Option<Frame>, Error> {
        let frame = self.decoder.next_frame();
        let frame = frame.map_err(|error| self.stranger(&error.to_string()))?;
        if let Some(Frame::Json(body)) = &frame {
            let shown = body.get(..SHOWN).unwrap_or(body);
            let more = if shown.len() < body.len() { "…" } else { "" };
            tracing::trace!(target: WIRE, "< {}{more}", String::from_utf8_lossy(shown));
        }
        Ok(frame)
    }

    /// Why reading or writing came to nothing.
    pub(crate) fn broken(&self, source: io::Error, awaited: Awaited) -> Error {
        if is_gone(&source) {
            return self.closed(awaited);
        }
        Error::Io {
            endpoint: self.endpoint.clone(),
            awaited,
            source,
        }
    }

    /// What a parser says of an answer may repeat all of it.
    pub(crate) fn stranger(&self, got: &str) -> Error {
        Error::NotAnAgent {
            endpoint: self.endpoint.clone(),
            got: clipped(got),
        }
    }

    /// A good answer to another request than the one that was sent.
    pub(crate) fn astray(&self, answer: &impl Serialize, request: &str) -> Error {
        let body = serde_json::to_vec(answer).unwrap_or_default();
        self.stranger(&format!("{} to the request `{request}`", quoted(&body)))
    }

    pub(crate) fn closed(&self, awaited: Awaited) -> Error {
        Error::Closed {
            endpoint: self.endpoint.clone(),
            awaited,
        }
    }

    pub(crate) fn timed_out(&self, awaited: Awaited, after: Duration) -> Error {
        Error::TimedOut {
            endpoint: self.endpoint.clone(),
            awaited,
            after,
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::NotConnected
            | io::ErrorKind::TimedOut
    )
}
