//! What dev builds of the agent serve: commands, files, jobs and ports.
//!
//! Each of these owns the connection while it is under way. Its two halves are independent: what is
//! sent never waits for what is received. Once its last frame has come, the session serves further
//! requests; given up before that, the session is out of step, and dropping it ends what was under
//! way in the guest.

pub mod archive;
mod exec;
mod files;
mod forward;
mod jobs;

pub use exec::{Command, CommandInput, CommandOutput, Output};
pub use files::{Download, Upload};
pub use forward::{FromPort, Port, PortInput, PortOutput};

use crate::handshake::Stream;
use crate::incoming::{AnswerKind, Incoming};
use crate::session::{SendBuffer, encode_frame};
use crate::{Awaited, Error, Session};
use mvm_protocol::dev::{Control, ControlFrame, DevAnswer, DevRequest, DevRequestFrame};
use mvm_protocol::frame::encode_data;
use mvm_protocol::{ErrorAnswer, ErrorCode, Frame, MAX_BODY};
use std::fmt;
use std::io;
use std::time::Duration;
use tokio::io::{ReadHalf, WriteHalf};
use tokio::time::timeout;

/// How much is read at once, in bytes.
const PIECE: usize = 256 * 1024;

impl AnswerKind for DevAnswer {
    fn into_result(self) -> Result<Self, ErrorAnswer> {
        match self {
            Self::Error(error) => Err(error),
            answer => Ok(answer),
        }
    }
}

/// The half of a connection by which a request that is under way is sent more.
struct Sending<'a> {
    writer: WriteHalf<&'a mut Box<dyn Stream>>,
    send_buffer: &'a mut SendBuffer,
}

/// The other half: what comes of it.
struct Receiving<'a> {
    reader: ReadHalf<&'a mut Box<dyn Stream>>,
    incoming: &'a mut Incoming,
    in_step: &'a mut bool,
    id: u64,
    request: &'static str,
    buffer: Vec<u8>,
}

/// What came.
enum Received {
    Data { channel: u8, bytes: Vec<u8> },
    Answer(DevAnswer),
}

impl Session {
    /// Begins a request, and gives its first answer with both halves of the connection.
    async fn begin(
        &mut self,
        request: DevRequest,
    ) -> Result<(DevAnswer, Sending<'_>, Receiving<'_>), Error> {
        if !self.in_step {
            return Err(self.incoming.closed(Awaited::Answer));
        }
        let id = self.next_id;
        let name = request.type_name();
        let frame = DevRequestFrame {
            request,
            id: Some(id),
        };
        self.send_buffer.push(encode_frame(&frame, false)?);
        self.next_id += 1;
        self.in_step = false;
        let after = self.deadlines.answer;
        let answered = {
            let (mut reader, mut writer) = tokio::io::split(&mut self.stream);
            let incoming = &mut self.incoming;
            let writing = self.send_buffer.send(&mut writer);
            let reading = incoming.answer(&mut reader, id, Awaited::Answer);
            let both = async {
                tokio::pin!(reading);
                tokio::select! {
                    answer = &mut reading => answer,
                    // A failed write ends nothing: an agent that closed may have said why.
                    _ = writing => reading.await,
                }
            };
            timeout(after, both).await
        };
        let answer: DevAnswer = match answered {
            Err(_) => return Err(self.incoming.timed_out(Awaited::Answer, after)),
            Ok(Err(error)) => return Err(error),
            Ok(Ok(Ok(answer))) => answer,
            Ok(Ok(Err(refusal))) => {
                self.in_step = true;
                let unserved = [ErrorCode::NotAllowed, ErrorCode::UnknownRequest];
                return Err(if unserved.iter().any(|code| refusal.code == *code) {
                    self.explain(name, refusal).await
                } else {
                    Error::Refused(refusal)
                });
            }
        };
        let (reader, writer) = tokio::io::split(&mut self.stream);
        let sending = Sending {
            writer,
            send_buffer: &mut self.send_buffer,
        };
        let receiving = Receiving {
            reader,
            incoming: &mut self.incoming,
            in_step: &mut self.in_step,
            id,
            request: name,
            buffer: Vec::new(),
        };
        Ok((answer, sending, receiving))
    }

    /// A request that has one answer and no more.
    async fn ask(&mut self, request: DevRequest) -> Result<DevAnswer, Error> {
        let (answer, _, receiving) = self.begin(request).await?;
        *receiving.in_step = true;
        Ok(answer)
    }
}

impl fmt::Debug for Sending<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Sending").finish_non_exhaustive()
    }
}

impl fmt::Debug for Receiving<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Receiving")
            .field("request", &self.request)
            .finish_non_exhaustive()
    }
}

impl Sending<'_> {
    /// Sends what was not sent yet. The future may be dropped, here and in what follows: a frame
    /// that was begun is finished before anything else is sent.
    async fn flush(&mut self) -> io::Result<()> {
        self.send_buffer.send(&mut self.writer).await
    }

    async fn data(&mut self, channel: u8, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(MAX_BODY - 1) {
            self.flush().await?;
            // Of that length it always fits a frame.
            self.send_buffer
                .push(encode_data(channel, piece).unwrap_or_default());
        }
        self.flush().await
    }

    async fn control(&mut self, control: Control) -> io::Result<()> {
        self.flush().await?;
        let frame = ControlFrame {
            request: control,
            id: None,
        };
        // It has no more than a word and two numbers.
        self.send_buffer
            .push(encode_frame(&frame, false).unwrap_or_default());
        self.flush().await
    }
}

impl Receiving<'_> {
    /// The next frame. The future may be dropped without losing anything.
    async fn next(&mut self, awaited: Awaited) -> Result<Received, Error> {
        if self.buffer.is_empty() {
            self.buffer.resize(PIECE, 0);
        }
        let frame = self
            .incoming
            .frame(&mut self.reader, &mut self.buffer, awaited);
        match frame.await? {
            Frame::Data { channel, bytes } => Ok(Received::Data { channel, bytes }),
            Frame::EmptyData => Err(self.incoming.stranger("raw bytes of no channel")),
            Frame::Json(body) => match self.incoming.read(&body, self.id)? {
                Ok(answer) => Ok(Received::Answer(answer)),
                Err(refusal) => {
                    self.is_over();
                    Err(Error::Refused(refusal))
                }
            },
        }
    }

    /// The last frame has come: the session serves further requests.
    fn is_over(&mut self) {
        *self.in_step = true;
    }

    fn astray(&self, answer: &DevAnswer) -> Error {
        self.incoming.astray(answer, self.request)
    }

    fn stray_data(&self, channel: u8) -> Error {
        let request = self.request;
        self.incoming.stranger(&format!(
            "bytes of channel {channel} to the request `{request}`"
        ))
    }

    /// It took too long.
    fn late(&self, awaited: Awaited, after: Duration) -> Error {
        self.incoming.timed_out(awaited, after)
    }
}
