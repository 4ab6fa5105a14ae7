//! What a client reads: answers of an agent that it has no reason to trust.
//!
//! What is read reads the same when it is written again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mvm_protocol::AnswerFrame;

fuzz_target!(|body: &[u8]| {
    if let Ok(frame) = AnswerFrame::read(body) {
        let written = serde_json::to_vec(&frame).unwrap();
        let again = AnswerFrame::read(&written).unwrap();
        assert_eq!(serde_json::to_vec(&again).unwrap(), written);
    }
});
