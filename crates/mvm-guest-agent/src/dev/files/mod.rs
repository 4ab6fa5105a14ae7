//! The process that reads and writes files for `put` and `get`: this program once more.
//!
//! A disk may hold a call for as long as it likes, and the agent has one thread. So all that touches
//! files happens in a process of its own, which the agent only hands bytes to and takes bytes from:
//!
//! ```text
//! standard input    the host's frames: data, then put-end. Their end without put-end: give it up
//! standard output   what `get` reads
//! standard error    answers, one a line: put-ready, get-started, put-done, get-done, error
//! ```
//!
//! Whatever ends the agent ends standard input as well, so that nothing half written stays.

mod content;
mod get;
mod pack;
mod put;
mod sparse;
mod unpack;

use mvm_protocol::answer::{ErrorAnswer, ErrorCode};
use mvm_protocol::dev::{DevAnswer, DevRequest, ParsedDevRequest};
use mvm_protocol::object::printable;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;

/// Serves the request that is given as its body.
pub(crate) fn serve(body: &str) -> ExitCode {
    let served = match ParsedDevRequest::read(body.as_bytes()).request {
        Ok(DevRequest::Put(asked)) => put::serve(&asked),
        Ok(DevRequest::Get(asked)) => get::serve(&asked),
        Ok(_) => Err(super::failed("not a file's request")),
        Err(error) => Err(error),
    };
    match served {
        Ok(last) => {
            report(last);
            ExitCode::SUCCESS
        }
        Err(error) => {
            report(DevAnswer::Error(error));
            ExitCode::FAILURE
        }
    }
}

/// Hands an answer to the agent. If the agent is gone, so is everybody who could want it.
fn report(answer: DevAnswer) {
    let frame = mvm_protocol::dev::DevAnswerFrame { answer, id: None };
    let mut line = serde_json::to_vec(&frame).unwrap_or_default();
    line.push(b'\n');
    let _ = io::stderr().write_all(&line);
}

/// Standard output, without a buffer.
fn output() -> io::Result<File> {
    let fd: OwnedFd = rustix::io::dup(rustix::stdio::stdout())?;
    Ok(File::from(fd))
}

/// What failed with which file, in the terms of the protocol.
fn trouble(what: impl Display, path: &Path, error: &io::Error) -> ErrorAnswer {
    let code = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ErrorCode::NotFound,
        io::ErrorKind::PermissionDenied => ErrorCode::NotAllowed,
        _ => ErrorCode::Failed,
    };
    let path = shown(path);
    ErrorAnswer::new(code, format!("{what} {path}: {error}"))
}

fn shown(path: &Path) -> String {
    let text = path.to_string_lossy();
    // A path may be long, and its end tells more than its beginning.
    let from = text.char_indices().rev().nth(63).map_or(0, |(at, _)| at);
    let cut = if from > 0 { "…" } else { "" };
    format!("`{cut}{}`", printable(text.get(from..).unwrap_or_default()))
}
