//! Answers of dev builds as frames.

use crate::serve::connection::{Connection, Ending};
use mvm_protocol::MAX_BODY;
use mvm_protocol::answer::{ErrorAnswer, ErrorCode};
use mvm_protocol::dev::{DevAnswer, DevAnswerFrame};
use mvm_protocol::frame::{HEADER, data_header, encode_json};

/// Sends an answer, and waits until the host has taken it.
pub(super) async fn send(
    connection: &Connection,
    answer: DevAnswer,
    id: Option<u64>,
) -> Result<(), Ending> {
    connection.write(&encode(answer, id)).await
}

/// A data frame's header, and its channel.
pub(super) const DATA_HEADER: usize = HEADER + 1;

/// Writes the header of a data frame of so many bytes in front of them.
pub(super) fn write_data_header(frame: &mut [u8], channel: u8, bytes: usize) {
    let header = data_header(channel, bytes);
    if let Some(start) = frame.first_chunk_mut() {
        *start = header;
    }
}

/// An answer as a frame. None of them is longer than a frame may be; that would be told.
pub(super) fn encode(answer: DevAnswer, id: Option<u64>) -> Vec<u8> {
    let to_json = |answer| serde_json::to_vec(&DevAnswerFrame { answer, id }).unwrap_or_default();
    let mut body = to_json(answer);
    if body.len() > MAX_BODY {
        body = to_json(DevAnswer::Error(failed(
            "the answer does not fit into a frame",
        )));
    }
    encode_json(&body).unwrap_or_default()
}

/// A failure that is no other code's.
pub(super) fn failed(message: impl Into<String>) -> ErrorAnswer {
    ErrorAnswer::new(ErrorCode::Failed, message)
}
