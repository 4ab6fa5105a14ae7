//! `status`: lifecycle, worker, health, integrations.

use crate::core::Core;
use crate::machine::clock;
use mvm_protocol::Answer;

pub(super) fn answer(core: &Core) -> Answer {
    Answer::Status(core.status(clock::uptime()))
}
