//! HTTP/1.1 with JSON over a VMM's Unix socket, as Firecracker and Cloud Hypervisor speak it.
//!
//! hyper speaks it, on a runtime of one thread that lives for one request: the callers block, and a
//! request has a connection of its own, so that nothing of one that was given up is left for the
//! next. From async code they are called on a thread for blocking work.
//!
//! A VMM is trusted with its guest, and not with this program: what it sends is capped, and its words
//! are cleaned of control characters before they get into an error.

use crate::deadline::Deadline;
use crate::socket;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HOST, TRANSFER_ENCODING};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::error::Error as StdError;
use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

/// The most that the head of an answer may have, in bytes. Real ones have about 150.
const MAX_HEAD: usize = 16 * 1024;

/// The most that the body of an answer may have, in bytes. The longest is Cloud Hypervisor's
/// `vm.info`, of some ten thousand.
const MAX_BODY: usize = 1024 * 1024;

/// The most headers; real answers have five.
const MAX_HEADERS: usize = 64;

/// The most of a refusal's words that is told, in bytes.
const MAX_MESSAGE: usize = 2048;

/// What stands in every request, and in every answer that has a body.
const JSON: &str = "application/json";

/// How often it is looked at whether the caller still wants the answer, and whether a socket whose
/// queue was full has room: neither gives an event.
const TICK: Duration = Duration::from_millis(100);

/// What is to be done with a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Read it.
    Get,
    /// Set it, or begin an action.
    Put,
    /// Change a part of it.
    Patch,
}

impl Method {
    fn name(self) -> hyper::Method {
        match self {
            Self::Get => hyper::Method::GET,
            Self::Put => hyper::Method::PUT,
            Self::Patch => hyper::Method::PATCH,
        }
    }
}

/// Why a request had no good answer.
#[derive(Debug, Error)]
pub enum HttpError {
    /// No socket, or one that nobody listens on.
    #[error("nobody listens on its API socket")]
    NotListening,
    /// It was refused.
    #[error("it answers {status}: {message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The VMM's words.
        message: String,
    },
    /// The connection ended before the answer was whole. What was asked may have been done.
    #[error("it closed the connection in the middle of the answer")]
    Closed,
    /// The deadline passed. What was asked may have been done, or be done later.
    #[error("it has not answered within {:.1} s", after.as_secs_f64())]
    TimedOut {
        /// How long that was.
        after: Duration,
    },
    /// The caller asked to stop waiting.
    #[error("interrupted while waiting for its answer")]
    Interrupted,
    /// What came is no HTTP/1.1 answer, or more than any real one.
    #[error("its answer is not understood: {0}")]
    NotHttp(String),
    /// The body is not of the shape that the API has for it.
    #[error("its answer is not what its API promises: {0}")]
    Unexpected(serde_json::Error),
    /// The request could not be put into JSON.
    #[error("cannot write the request: {0}")]
    Request(serde_json::Error),
    /// The system refused something.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Where a VMM's API is.
#[derive(Debug, Clone, Copy)]
pub struct Api<'a> {
    /// The folder that the socket is in, of any length.
    pub folder: &'a Path,
    /// The socket's name there.
    pub socket: &'a str,
}

impl Api<'_> {
    /// Reads a resource.
    pub fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        deadline: Deadline<'_>,
    ) -> Result<T, HttpError> {
        let body = self.exchange(Method::Get, path, None, deadline)?;
        serde_json::from_slice(&body).map_err(HttpError::Unexpected)
    }

    /// Asks for something that has no answer but that it was done.
    pub fn ask<T: Serialize>(
        &self,
        method: Method,
        path: &str,
        request: &T,
        deadline: Deadline<'_>,
    ) -> Result<(), HttpError> {
        let body = serde_json::to_vec(request).map_err(HttpError::Request)?;
        self.exchange(method, path, Some(body), deadline)
            .map(|_| ())
    }

    /// The same, of an action that takes nothing.
    pub fn act(&self, path: &str, deadline: Deadline<'_>) -> Result<(), HttpError> {
        self.exchange(Method::Put, path, None, deadline).map(|_| ())
    }

    /// One request and its answer's body. Any status but 2xx is an error.
    fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        deadline: Deadline<'_>,
    ) -> Result<Bytes, HttpError> {
        let mut request = Request::builder()
            .method(method.name())
            .uri(path)
            .header(HOST, "localhost")
            .header(ACCEPT, JSON);
        if body.is_some() {
            request = request.header(CONTENT_TYPE, JSON);
        }
        let request = request
            .body(Full::from(body.unwrap_or_default()))
            .map_err(io::Error::other)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()?;
        runtime.block_on(async {
            let mut answer = pin!(self.answer(request));
            loop {
                check(deadline)?;
                let step = TICK.min(deadline.left());
                if let Ok(answer) = timeout(step, &mut answer).await {
                    return answer;
                }
            }
        })
    }

    /// Asks, and waits as long as it takes.
    async fn answer(&self, request: Request<Full<Bytes>>) -> Result<Bytes, HttpError> {
        let stream = self.dial().await?;
        let (mut sender, connection) = http1::Builder::new()
            // A VMM's parser need not know that a header's name has letters of either case.
            .title_case_headers(true)
            .max_headers(MAX_HEADERS)
            .max_buf_size(MAX_HEAD)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(failed)?;
        let connection = tokio::spawn(connection);
        let answer = sender.send_request(request).await.map_err(failed)?;
        let status = answer.status();
        let body = whole_body(answer).await?;
        drop(sender);
        // What came behind the answer shows when the connection ends. That a VMM whose answer is
        // whole ends it in its own way does not count.
        if let Ok(Err(error)) = connection.await
            && let error @ HttpError::NotHttp(_) = failed(error)
        {
            return Err(error);
        }
        if status.is_success() {
            Ok(body)
        } else {
            Err(HttpError::Refused {
                status: status.as_u16(),
                message: message(&body),
            })
        }
    }

    async fn dial(&self) -> Result<UnixStream, HttpError> {
        loop {
            let error = match socket::connect(self.folder, self.socket) {
                Ok(socket) => return Ok(UnixStream::from_std(StdUnixStream::from(socket))?),
                Err(error) => error,
            };
            match error.kind() {
                ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                    return Err(HttpError::NotListening);
                }
                // Its queue is full: it is busy, or hangs.
                ErrorKind::WouldBlock | ErrorKind::Interrupted => sleep(TICK).await,
                _ => return Err(error.into()),
            }
        }
    }
}

async fn whole_body(answer: Response<Incoming>) -> Result<Bytes, HttpError> {
    let (head, body) = answer.into_parts();
    let too_long = || HttpError::NotHttp(format!("its body has more than {MAX_BODY} bytes"));
    // By HTTP's rules one without a length ends with the connection. Both VMMs leave the length out
    // where there is no body, and keep the connection.
    if !head.headers.contains_key(CONTENT_LENGTH) && !head.headers.contains_key(TRANSFER_ENCODING) {
        return Ok(Bytes::new());
    }
    if body.size_hint().lower() > MAX_BODY as u64 {
        return Err(too_long());
    }
    match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_long()),
        Err(error) => Err(match error.downcast::<hyper::Error>() {
            Ok(error) => failed(*error),
            Err(error) => io::Error::other(error).into(),
        }),
    }
}

/// What hyper's errors mean here.
fn failed(error: hyper::Error) -> HttpError {
    if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        return HttpError::Closed;
    }
    let Some(cause) = error.source() else {
        return HttpError::NotHttp(error.to_string());
    };
    match cause.downcast_ref::<io::Error>().map(io::Error::kind) {
        // It died, perhaps with what was sent to it unread; or before its answer was whole.
        Some(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof) => {
            HttpError::Closed
        }
        Some(ErrorKind::InvalidData | ErrorKind::InvalidInput) | None => {
            HttpError::NotHttp(format!("{error}: {cause}"))
        }
        Some(_) => io::Error::other(error).into(),
    }
}

fn check(deadline: Deadline<'_>) -> Result<(), HttpError> {
    if deadline.is_cancelled() {
        Err(HttpError::Interrupted)
    } else if deadline.left().is_zero() {
        Err(HttpError::TimedOut {
            after: deadline.whole(),
        })
    } else {
        Ok(())
    }
}

/// A refusal's words: Firecracker's `{"fault_message": …}`, Cloud Hypervisor's array of strings
/// (the cause last), else the text as it is.
fn message(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Words {
        Fault { fault_message: String },
        Chain(Vec<String>),
    }
    let words = match serde_json::from_slice(body) {
        Ok(Words::Fault { fault_message }) => fault_message,
        Ok(Words::Chain(chain)) => chain.join(": "),
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    let clean = words.replace(char::is_control, " ");
    let mut clean = clean.trim().to_owned();
    if clean.len() > MAX_MESSAGE {
        clean.truncate(clean.floor_char_boundary(MAX_MESSAGE));
        clean.push('…');
    }
    if clean.is_empty() {
        clean.push_str("it gave no reason");
    }
    clean
}

#[cfg(test)]
mod tests;
