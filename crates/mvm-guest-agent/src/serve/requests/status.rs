//! `status`: lifecycle, worker, health, integrations.

use crate::core::{Core, Now};
use crate::machine::clock;
use mvm_protocol::Answer;

pub(super) fn answer(core: &Core, now: Now) -> Answer {
    Answer::Status(core.status(clock::uptime(), now))
}
