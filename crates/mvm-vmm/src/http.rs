//! HTTP/1.1 with JSON over a VMM's Unix socket, as Firecracker and Cloud Hypervisor speak it.
//!
//! One connection a request, and all of it blocks, with a deadline on each step. hyper would bring
//! an async runtime into a crate that has none, for requests of a few hundred bytes that are
//! answered in turn; so only the head of an answer is left to a library, httparse, which is hyper's
//! own.
//!
//! A VMM is trusted with its guest, and not with this program: what it sends is capped, and its words
//! are cleaned of control characters before they get into an error.

use crate::launch::Deadline;
use crate::socket;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;
use thiserror::Error;

/// The most that the head of an answer may have, in bytes. Real ones have about 150.
const MAX_HEAD: usize = 16 * 1024;

/// The most that the body of an answer may have, in bytes. The longest is Cloud Hypervisor's
/// `vm.info`, of some ten thousand.
const MAX_BODY: usize = 1024 * 1024;

/// The most headers; real answers have five.
const MAX_HEADERS: usize = 64;

/// The most of a refusal's words that is told, in bytes.
const MAX_MESSAGE: usize = 2048;

/// How often it is looked at whether the caller still wants the answer.
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
    fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
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
        self.exchange(method, path, Some(&body), deadline)
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
        body: Option<&[u8]>,
        deadline: Deadline<'_>,
    ) -> Result<Vec<u8>, HttpError> {
        let connection = Connection {
            socket: self.dial(deadline)?,
            deadline,
        };
        let method = method.name();
        let about_body = body.map_or(String::new(), |body| {
            let length = body.len();
            format!("Content-Type: application/json\r\nContent-Length: {length}\r\n")
        });
        let mut bytes = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\
             {about_body}\r\n"
        )
        .into_bytes();
        bytes.extend_from_slice(body.unwrap_or_default());
        connection.write(&bytes)?;
        let (status, body) = connection.answer()?;
        if (200..300).contains(&status) {
            Ok(body)
        } else {
            Err(HttpError::Refused {
                status,
                message: message(&body),
            })
        }
    }

    fn dial(&self, deadline: Deadline<'_>) -> Result<OwnedFd, HttpError> {
        loop {
            let error = match socket::connect(self.folder, self.socket) {
                Ok(socket) => return Ok(socket),
                Err(error) => error,
            };
            match error.kind() {
                ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                    return Err(HttpError::NotListening);
                }
                // Its queue is full: it is busy, or hangs. There is no event to wait for.
                ErrorKind::WouldBlock | ErrorKind::Interrupted => {
                    check(deadline)?;
                    std::thread::sleep(TICK.min(deadline.left()));
                }
                _ => return Err(error.into()),
            }
        }
    }
}

struct Connection<'a> {
    socket: OwnedFd,
    deadline: Deadline<'a>,
}

impl Connection<'_> {
    fn write(&self, mut bytes: &[u8]) -> Result<(), HttpError> {
        while !bytes.is_empty() {
            match send(&self.socket, bytes, SendFlags::NOSIGNAL) {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT)?,
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(HttpError::Closed),
                Err(errno) => return Err(io::Error::from(errno).into()),
            }
        }
        Ok(())
    }

    /// Reads what there is; 0 at the end.
    fn read(&self, into: &mut Vec<u8>) -> Result<usize, HttpError> {
        let mut buffer = [0_u8; 8192];
        loop {
            match recv(&self.socket, &mut buffer, RecvFlags::empty()) {
                Ok((count, _)) => {
                    into.extend_from_slice(buffer.get(..count).unwrap_or_default());
                    return Ok(count);
                }
                Err(Errno::AGAIN) => self.wait(PollFlags::IN)?,
                Err(Errno::INTR) => {}
                // With what was sent to it unread: it died.
                Err(Errno::CONNRESET) => return Ok(0),
                Err(errno) => return Err(io::Error::from(errno).into()),
            }
        }
    }

    fn wait(&self, what: PollFlags) -> Result<(), HttpError> {
        check(self.deadline)?;
        let time = Timespec::try_from(TICK.min(self.deadline.left())).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&self.socket, what)], Some(&time)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(io::Error::from(errno).into()),
        }
    }

    fn answer(&self) -> Result<(u16, Vec<u8>), HttpError> {
        let mut bytes = Vec::new();
        let (head, at) = loop {
            if let Some(found) = Head::parse(&bytes)? {
                break found;
            }
            if bytes.len() > MAX_HEAD {
                return Err(HttpError::NotHttp(format!(
                    "its head has more than {MAX_HEAD} bytes"
                )));
            }
            if self.read(&mut bytes)? == 0 {
                return Err(HttpError::Closed);
            }
        };
        let mut body = bytes.split_off(at);
        while body.len() < head.length {
            if self.read(&mut body)? == 0 {
                return Err(HttpError::Closed);
            }
        }
        if body.len() > head.length {
            return Err(HttpError::NotHttp("it goes on after its end".into()));
        }
        Ok((head.status, body))
    }
}

/// What of an answer's head is needed.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    status: u16,
    length: usize,
}

impl Head {
    /// The head and where the body begins, once the head is whole.
    fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, HttpError> {
        let wrong = |reason: &str| HttpError::NotHttp(reason.to_owned());
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut answer = httparse::Response::new(&mut headers);
        let at = match answer.parse(bytes) {
            Ok(httparse::Status::Complete(at)) => at,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(error) => return Err(wrong(&error.to_string())),
        };
        let status = answer.code.ok_or_else(|| wrong("it has no status"))?;
        let mut length = None;
        for header in &*answer.headers {
            if header.name.eq_ignore_ascii_case("transfer-encoding") {
                return Err(wrong("it is sent in chunks, which neither VMM does"));
            }
            if header.name.eq_ignore_ascii_case("content-length") {
                let text = str::from_utf8(header.value).unwrap_or_default();
                let value: usize = text
                    .trim()
                    .parse()
                    .map_err(|_| wrong("its length is no number"))?;
                if length.replace(value).is_some_and(|other| other != value) {
                    return Err(wrong("it has two lengths"));
                }
            }
        }
        // One without a length has no body: neither VMM sends one that ends with the connection.
        let length = length.unwrap_or(0);
        if length > MAX_BODY {
            return Err(wrong(&format!("its body has more than {MAX_BODY} bytes")));
        }
        Ok(Some((Self { status, length }, at)))
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
