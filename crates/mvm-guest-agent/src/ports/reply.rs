//! Answers as frames, of whichever kind.

use crate::serve::connection::{Connection, Ending};
use mvm_protocol::MAX_BODY;
use mvm_protocol::answer::{Answer, AnswerOf, ErrorAnswer, ErrorCode};
use mvm_protocol::frame::{HEADER, data_header, encode_json};
use serde::Serialize;

/// Sends an answer, and waits until the host has taken it.
pub(crate) async fn send(
    connection: &Connection,
    answer: impl Serialize,
    id: Option<u64>,
) -> Result<(), Ending> {
    connection.write(&encode(answer, id)).await
}

/// A data frame's header, and its channel.
pub(crate) const DATA_HEADER: usize = HEADER + 1;

/// Writes the header of a data frame of so many bytes in front of them.
pub(crate) fn write_data_header(frame: &mut [u8], channel: u8, bytes: usize) {
    let header = data_header(channel, bytes);
    if let Some(start) = frame.first_chunk_mut() {
        *start = header;
    }
}

/// An answer as a frame. None of them is longer than a frame may be; that would be told.
pub(crate) fn encode(answer: impl Serialize, id: Option<u64>) -> Vec<u8> {
    let mut body = to_json(answer, id);
    if body.len() > MAX_BODY {
        let error = failed("the answer does not fit into a frame");
        body = to_json(Answer::Error(error), id);
    }
    encode_json(&body).unwrap_or_default()
}

fn to_json(answer: impl Serialize, id: Option<u64>) -> Vec<u8> {
    serde_json::to_vec(&AnswerOf { answer, id }).unwrap_or_default()
}

/// A failure that is no other code's.
pub(crate) fn failed(message: impl Into<String>) -> ErrorAnswer {
    ErrorAnswer::new(ErrorCode::Failed, message)
}
