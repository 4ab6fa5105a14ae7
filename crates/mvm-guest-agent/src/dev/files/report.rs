//! How the file process answers, and the words of its errors.

use mvm_protocol::answer::{ErrorAnswer, ErrorCode};
use mvm_protocol::dev::{DevAnswer, DevAnswerFrame};
use mvm_protocol::object::printable;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

/// Hands an answer to the agent. If the agent is gone, so is everybody who could want it.
pub(super) fn report(answer: DevAnswer) {
    let frame = DevAnswerFrame { answer, id: None };
    let mut line = serde_json::to_vec(&frame).unwrap_or_default();
    line.push(b'\n');
    let _ = io::stderr().write_all(&line);
}

/// Standard output, without a buffer.
pub(super) fn output() -> io::Result<File> {
    let fd: OwnedFd = rustix::io::dup(rustix::stdio::stdout())?;
    Ok(File::from(fd))
}

/// What failed with which file, in the terms of the protocol.
pub(super) fn trouble(what: impl Display, path: &Path, error: &io::Error) -> ErrorAnswer {
    let code = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ErrorCode::NotFound,
        io::ErrorKind::PermissionDenied => ErrorCode::NotAllowed,
        _ => ErrorCode::Failed,
    };
    let path = shown(path);
    ErrorAnswer::new(code, format!("{what} {path}: {error}"))
}

/// A path in a message: printable, and no longer than it helps.
pub(super) fn shown(path: &Path) -> String {
    let text = path.to_string_lossy();
    // A path may be long, and its end tells more than its beginning.
    let from = text.char_indices().rev().nth(63).map_or(0, |(at, _)| at);
    let cut = if from > 0 { "…" } else { "" };
    format!("`{cut}{}`", printable(text.get(from..).unwrap_or_default()))
}
