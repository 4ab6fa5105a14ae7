//! `hello`: who is there, and what it can do.

use crate::core::Core;
use crate::edge::system::{PROFILE, VERSION, boot_id};
use mvm_protocol::answer::{Answer, Hello};
use mvm_protocol::request::REQUEST_TYPES;

pub(super) fn answer(core: &Core) -> Answer {
    Answer::Hello(Hello {
        protocol: mvm_protocol::VERSION,
        agent_version: VERSION.to_owned(),
        profile: PROFILE,
        capabilities: REQUEST_TYPES.map(str::to_owned).to_vec(),
        boot_id: boot_id(),
        generation: core.snapshot().generation,
    })
}
