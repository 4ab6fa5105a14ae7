//! Requests and their answers on one connection.

use crate::error::quoted;
use crate::handshake::{Opened, Stream};
use crate::transport;
use crate::{Awaited, Deadlines, Dialer, Endpoint, Error, WIRE};
use mvm_protocol::answer::{AnswerFrame, AnswerOf, Checked, Hello, Reloaded};
use mvm_protocol::frame::encode_json;
use mvm_protocol::lifecycle::{Awake, Ready, SleepPrep, Wake};
use mvm_protocol::request::{Check, FREEZE, PAYLOAD};
use mvm_protocol::status::{Inspect, Status};
use mvm_protocol::{Answer, Decoder, ErrorAnswer, ErrorCode, Frame, Request, RequestFrame};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::time::timeout;

/// A connection to an agent, past the handshake.
///
/// Every request carries a number, and its answer must carry the same. A session whose request was
/// given up half-way, by an error or by dropping its future, is out of step: each further request
/// on it fails with [`Error::Closed`], and a new session has to be opened. Dropping the session
/// closes the connection.
pub struct Session {
    pub(crate) stream: Box<dyn Stream>,
    pub(crate) incoming: Incoming,
    pub(crate) deadlines: Deadlines,
    pub(crate) next_id: u64,
    pub(crate) in_step: bool,
    /// The rest of a frame whose sending was given up: it goes before whatever is sent next.
    pub(crate) send_buffer: SendBuffer,
}

/// Bytes that are still to be sent, so that a frame that was begun is finished, whoever was dropped
/// meanwhile.
#[derive(Debug, Default)]
pub(crate) struct SendBuffer {
    bytes: Vec<u8>,
    sent: usize,
}

impl SendBuffer {
    /// Adds what is to be sent after the rest.
    pub(crate) fn push(&mut self, bytes: Vec<u8>) {
        if self.sent == self.bytes.len() {
            self.bytes = bytes;
            self.sent = 0;
        } else {
            self.bytes.extend(bytes);
        }
    }

    /// Sends all of it. The future may be dropped: what it has not sent stays here.
    pub(crate) async fn send(&mut self, writer: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        while let Some(rest) = self.bytes.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match writer.write(rest).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                count => self.sent += count,
            }
        }
        writer.flush().await
    }
}

/// The receiving half's state.
pub(crate) struct Incoming {
    pub(crate) endpoint: Endpoint,
    decoder: Decoder,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Session")
            .field("endpoint", &self.incoming.endpoint)
            .field("in_step", &self.in_step)
            .finish_non_exhaustive()
    }
}

impl Dialer {
    /// A conversation with the agent behind that endpoint.
    ///
    /// # Errors
    ///
    /// Whatever keeps it from being dialled, or [`Error::TimedOut`]: the handshake goes on then, and
    /// is finished unseen.
    pub async fn connect(
        &self,
        endpoint: &Endpoint,
        deadlines: &Deadlines,
    ) -> Result<Session, Error> {
        let opened = transport::open(self, endpoint, deadlines).await?;
        Ok(Session::new(opened, endpoint, deadlines))
    }
}

impl Session {
    /// Dials, and shakes hands where the endpoint asks for it, with a [`Dialer`] of its own: a
    /// handshake that is given up is finished as long as the runtime runs. What can end in the middle
    /// of one uses [`Dialer::connect`].
    pub async fn connect(endpoint: &Endpoint, deadlines: &Deadlines) -> Result<Self, Error> {
        Dialer::new().connect(endpoint, deadlines).await
    }

    /// Shakes hands on a stream that is connected already: a socket of another kind, or one half of
    /// an in-memory pair. The endpoint is what errors say about it.
    pub async fn over(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        endpoint: &Endpoint,
        deadlines: &Deadlines,
    ) -> Result<Self, Error> {
        let opened = transport::over(stream, endpoint, deadlines).await?;
        Ok(Self::new(opened, endpoint, deadlines))
    }

    fn new(opened: Opened, endpoint: &Endpoint, deadlines: &Deadlines) -> Self {
        let mut decoder = Decoder::default();
        decoder.push(&opened.early);
        Self {
            stream: opened.stream,
            incoming: Incoming {
                endpoint: endpoint.clone(),
                decoder,
            },
            deadlines: *deadlines,
            next_id: 1,
            in_step: true,
            send_buffer: SendBuffer::default(),
        }
    }

    /// Sends one request and gives its answer, whichever it is, within its deadline.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] if the agent answers with an error, [`Error::TooOld`] if it does not know
    /// the request; after these two the session can be used further.
    pub async fn request(&mut self, request: &Request) -> Result<Answer, Error> {
        let mut answers = self.pipeline(std::slice::from_ref(request)).await?;
        match answers.pop() {
            Some(Ok(answer)) => Ok(answer),
            Some(Err(error)) if error.code == ErrorCode::UnknownRequest => {
                Err(self.explain(request.type_name(), error).await)
            }
            Some(Err(error)) => Err(Error::Refused(error)),
            None => Err(self.incoming.closed(Awaited::Answer)),
        }
    }

    /// Sends all requests without waiting in between, and gives their answers in the same order;
    /// each has its own deadline, which starts when the one before it has come. It writes and
    /// reads at once, so that any number of requests can be given.
    ///
    /// A request of which the agent makes a stream (`watch`) can only be the last.
    ///
    /// # Errors
    ///
    /// Those that end the session. What the agent refuses stands among the answers.
    pub async fn pipeline(
        &mut self,
        requests: &[Request],
    ) -> Result<Vec<Result<Answer, ErrorAnswer>>, Error> {
        if !self.in_step {
            return Err(self.incoming.closed(Awaited::Answer));
        }
        let first = self.next_id;
        let mut bytes = Vec::new();
        for (id, request) in (first..).zip(requests) {
            bytes.extend(encode(request, id)?);
            self.next_id = id + 1;
        }
        self.send_buffer.push(bytes);
        self.in_step = false;
        let (mut reader, mut writer) = tokio::io::split(&mut self.stream);
        let incoming = &mut self.incoming;
        let deadlines = &self.deadlines;
        let writing = self.send_buffer.send(&mut writer);
        let reading = async {
            let mut answers = Vec::with_capacity(requests.len());
            for (id, request) in (first..).zip(requests) {
                let after = deadlines.of(request);
                let answer = timeout(after, incoming.answer(&mut reader, id, Awaited::Answer))
                    .await
                    .map_err(|_| incoming.timed_out(Awaited::Answer, after))??;
                answers.push(answer);
            }
            Ok::<_, Error>(answers)
        };
        tokio::pin!(reading);
        let answers = tokio::select! {
            answers = &mut reading => answers?,
            // A failed write ends nothing: an agent that closed may have said why, unread yet.
            _ = writing => reading.await?,
        };
        self.in_step = true;
        Ok(answers)
    }

    /// The time from sending `ping` to having its answer.
    pub async fn ping(&mut self) -> Result<Duration, Error> {
        let start = Instant::now();
        match self.request(&Request::Ping).await? {
            Answer::Pong => Ok(start.elapsed()),
            other => Err(self.incoming.astray(&other, "ping")),
        }
    }

    /// Who serves the connection.
    pub async fn hello(&mut self) -> Result<Hello, Error> {
        match self.request(&Request::Hello).await? {
            Answer::Hello(hello) => Ok(hello),
            other => Err(self.incoming.astray(&other, "hello")),
        }
    }

    /// Fails if the agent does not serve a request of dev builds, as its `hello` shows.
    pub async fn serves(&mut self, request: &'static str) -> Result<(), Error> {
        let hello = self.hello().await?;
        if hello.capabilities.iter().any(|served| served == request) {
            return Ok(());
        }
        Err(Error::NotServed {
            request,
            profile: hello.profile,
        })
    }

    /// Lifecycle, worker, health and integrations.
    pub async fn status(&mut self) -> Result<Status, Error> {
        match self.request(&Request::Status).await? {
            Answer::Status(status) => Ok(status),
            other => Err(self.incoming.astray(&other, "status")),
        }
    }

    /// All of `status`, and probes, system, agent and snapshot history.
    pub async fn inspect(&mut self) -> Result<Inspect, Error> {
        match self.request(&Request::Inspect).await? {
            Answer::Inspect(inspect) => Ok(*inspect),
            other => Err(self.incoming.astray(&other, "inspect")),
        }
    }

    /// Runs one health check or probe now.
    pub async fn check(&mut self, check: Check) -> Result<Checked, Error> {
        match self.request(&Request::Check(check)).await? {
            Answer::Checked(checked) => Ok(checked),
            other => Err(self.incoming.astray(&other, "check")),
        }
    }

    /// Has the drop-ins read anew.
    pub async fn reload(&mut self) -> Result<Reloaded, Error> {
        match self.request(&Request::Reload).await? {
            Answer::Reloaded(reloaded) => Ok(reloaded),
            other => Err(self.incoming.astray(&other, "reload")),
        }
    }

    /// Has the guest made ready to be frozen. The connection is to be closed before it is: one that
    /// is open then stays open and silent for ever.
    ///
    /// # Errors
    ///
    /// [`Error::TooOld`] if all of its work is to be frozen and the agent cannot do that; then nothing
    /// was asked of it.
    pub async fn sleep_prep(&mut self, asked: SleepPrep) -> Result<Ready, Error> {
        if asked.require_freeze {
            self.can(FREEZE).await?;
        }
        match self.request(&Request::SleepPrep(asked)).await? {
            Answer::Ready(ready) => Ok(ready),
            other => Err(self.incoming.astray(&other, "sleep-prep")),
        }
    }

    /// Lets the guest run on.
    ///
    /// # Errors
    ///
    /// [`Error::TooOld`] if there is a payload, which the agent does not know; then nothing was asked
    /// of it.
    pub async fn wake(&mut self, asked: Wake) -> Result<Awake, Error> {
        if asked.payload.is_some() {
            self.can(PAYLOAD).await?;
        }
        match self.request(&Request::Wake(Box::new(asked))).await? {
            Answer::Awake(awake) => Ok(awake),
            other => Err(self.incoming.astray(&other, "wake")),
        }
    }

    /// Fails if the agent's `hello` does not list a capability: it would refuse what belongs to it.
    async fn can(&mut self, capability: &'static str) -> Result<(), Error> {
        let hello = self.hello().await?;
        if hello.capabilities.iter().any(|listed| listed == capability) {
            return Ok(());
        }
        Err(Error::TooOld {
            request: capability,
            agent_version: hello.agent_version,
        })
    }

    /// Tells an agent that does not have the request from one that will not do it.
    pub(crate) async fn explain(&mut self, request: &'static str, refusal: ErrorAnswer) -> Error {
        let hello = self.pipeline(&[Request::Hello]).await;
        let Some(Ok(Answer::Hello(hello))) = hello.ok().and_then(|mut answers| answers.pop())
        else {
            return Error::Refused(refusal);
        };
        let served = hello.capabilities.iter().any(|served| served == request);
        match refusal.code.known() {
            Some(ErrorCode::UnknownRequest) => Error::TooOld {
                request,
                agent_version: hello.agent_version,
            },
            Some(ErrorCode::NotAllowed) if !served => Error::NotServed {
                request,
                profile: hello.profile,
            },
            _ => Error::Refused(refusal),
        }
    }
}

fn encode(request: &Request, id: u64) -> Result<Vec<u8>, Error> {
    let frame = RequestFrame {
        request: request.clone(),
        id: Some(id),
    };
    // Random bytes that somebody has seen are none, and a payload may have secrets in it.
    let secret = matches!(
        request, Request::Wake(wake) if wake.entropy.is_some() || wake.payload.is_some()
    );
    encode_frame(&frame, secret)
}

/// A frame of a value that holds strings and numbers alone; JSON has a form for all of them.
pub(crate) fn encode_frame(frame: &impl Serialize, secret: bool) -> Result<Vec<u8>, Error> {
    let body = serde_json::to_vec(frame).unwrap_or_default();
    if secret {
        tracing::trace!(target: WIRE, "> {{\"type\":\"wake\",…}} with secrets, {} bytes", body.len());
    } else {
        tracing::trace!(target: WIRE, "> {}", String::from_utf8_lossy(&body));
    }
    encode_json(&body).map_err(|_| Error::RequestTooLarge { bytes: body.len() })
}

/// A set of answers, one of which is an error.
pub(crate) trait AnswerKind: DeserializeOwned + Serialize {
    /// The answer, or the error that it is.
    fn into_result(self) -> Result<Self, ErrorAnswer>;
}

impl AnswerKind for Answer {
    fn into_result(self) -> Result<Self, ErrorAnswer> {
        match self {
            Self::Error(error) => Err(error),
            answer => Ok(answer),
        }
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
                    return Err(self.stranger("raw bytes where an answer belongs".into()));
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
        let frame = AnswerOf::<A>::read(body)
            .map_err(|error| self.stranger(format!("{error} in {}", quoted(body))))?;
        let answered = frame.id;
        match frame.answer.into_result() {
            Err(error) if answered.is_none_or(|answered| answered == id) => Ok(Err(error)),
            Ok(answer) if answered == Some(id) => Ok(Ok(answer)),
            _ => Err(self.stranger(match answered {
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
        let frame = frame.map_err(|error| self.stranger(error.to_string()))?;
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

    pub(crate) fn stranger(&self, got: String) -> Error {
        Error::NotAnAgent {
            endpoint: self.endpoint.clone(),
            got,
        }
    }

    /// A good answer to another request than the one that was sent.
    pub(crate) fn astray(&self, answer: &impl Serialize, request: &str) -> Error {
        let body = serde_json::to_vec(answer).unwrap_or_default();
        self.stranger(format!("{} to the request `{request}`", quoted(&body)))
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
