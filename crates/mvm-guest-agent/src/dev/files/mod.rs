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
//! Whatever ends the agent ends standard input as well, so that nothing half written stays; for what is
//! ended itself before it has removed that, there is a [`record`].

mod beneath;
mod content;
#[cfg(any(test, fuzzing))]
#[allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a target fails by panicking"
)]
pub(super) mod fuzz;
mod get;
mod pack;
mod put;
pub(crate) mod record;
mod report;
mod sparse;
mod target;
mod unpack;

use crate::ports::reply::failed;
use lexopt::{Arg, Parser, ValueExt};
use mvm_protocol::dev::{DevAnswer, DevRequest, ParsedDevRequest};
use report::report;
use std::process::ExitCode;

/// The flag by which the agent starts this process, with a request's body as its value.
pub(super) const FLAG: &str = "serve-file";

/// What stands in a body's place if what earlier agents have left is to be removed.
pub(super) const REMOVE_LEFT: &str = "remove-left";

/// The request's body, if this process was started to serve one; an error is a sentence.
pub(crate) fn asked(mut parser: Parser) -> Result<Option<String>, String> {
    match parser.next() {
        Ok(Some(Arg::Long(FLAG))) => {}
        _ => return Ok(None),
    }
    let body = parser.value().and_then(ValueExt::string);
    body.map(Some).map_err(|error| format!("--{FLAG}: {error}"))
}

/// Serves the request that is given as its body.
pub(crate) fn serve(body: &str) -> ExitCode {
    if body == REMOVE_LEFT {
        record::remove_left();
        return ExitCode::SUCCESS;
    }
    let served = match ParsedDevRequest::read(body.as_bytes()).request {
        Ok(DevRequest::Put(asked)) => put::serve(&asked),
        Ok(DevRequest::Get(asked)) => get::serve(&asked),
        Ok(_) => Err(failed("not a file's request")),
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
