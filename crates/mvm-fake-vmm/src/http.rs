//! HTTP, as much as a VMM's API server has.
//!
//! By hand, though there is hyper: a stand-in has to send half a status line, close in the middle of
//! an answer and never answer, and a server's library is there to prevent that.

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::net::UnixStream;

pub(super) struct Request {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) body: Vec<u8>,
}

impl Request {
    /// The next one; `None` at the end.
    pub(super) fn read(stream: &UnixStream) -> Option<Self> {
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let mut words = line.split_whitespace();
        let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
        let mut length = 0;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).ok()?;
            let Some((name, value)) = header.trim().split_once(':') else {
                break;
            };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().ok()?;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        Some(Self { method, path, body })
    }
}

pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: String,
    /// The process ends with an error after this answer.
    pub(super) then_quit: Option<String>,
    /// The process ends as it should.
    pub(super) then_exit: bool,
}

impl Answer {
    fn new(status: u16, body: impl Into<String>) -> Self {
        Self {
            status,
            body: body.into(),
            then_quit: None,
            then_exit: false,
        }
    }

    pub(super) fn done() -> Self {
        Self::new(204, "")
    }

    pub(super) fn ok(body: impl Into<String>) -> Self {
        Self::new(200, body)
    }

    pub(super) fn refusal(status: u16, body: impl Into<String>) -> Self {
        Self::new(status, body)
    }

    /// As both write it: no length where there is no body.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let about_body = match self.body.len() {
            0 => String::new(),
            length => {
                format!("Content-Type: application/json\r\nContent-Length: {length}\r\n")
            }
        };
        format!(
            "HTTP/1.1 {} \r\nServer: stand-in\r\nConnection: keep-alive\r\n{about_body}\r\n{}",
            self.status, self.body
        )
        .into_bytes()
    }
}
