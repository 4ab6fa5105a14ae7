//! What a client reads: answers of an agent that it has no reason to trust.
//!
//! What is read reads the same when it is written again.

use mvm_protocol::answer::{Answer, AnswerOf};
use mvm_protocol::dev::DevAnswer;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// One body of an answer.
pub fn answers() -> impl FnMut(&[u8]) {
    |body| {
        check::<Answer>(body);
        check::<DevAnswer>(body);
    }
}

/// A body as one kind of answer.
fn check<A: DeserializeOwned + Serialize>(body: &[u8]) {
    if let Ok(frame) = AnswerOf::<A>::read(body) {
        let written = serde_json::to_vec(&frame).unwrap();
        let again = AnswerOf::<A>::read(&written).unwrap();
        assert_eq!(serde_json::to_vec(&again).unwrap(), written);
    }
}
