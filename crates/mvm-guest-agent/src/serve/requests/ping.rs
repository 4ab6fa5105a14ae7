//! `ping`: is the agent there?

use mvm_protocol::Answer;

pub(super) fn answer() -> Answer {
    Answer::Pong
}
