//! `hello`: who is there, and what it can do.

use crate::core::Core;
use crate::edge::system::Facts;
use crate::edge::system::{PROFILE, VERSION, boot_id};
use mvm_protocol::answer::Profile;
use mvm_protocol::answer::{Answer, Hello};
use mvm_protocol::request::{DEV_REQUEST_TYPES, REQUEST_TYPES};

pub(super) fn answer(core: &Core, facts: &Facts) -> Answer {
    let mut capabilities = REQUEST_TYPES.map(str::to_owned).to_vec();
    if PROFILE == Profile::Dev && facts.exec {
        capabilities.extend(DEV_REQUEST_TYPES.map(str::to_owned));
    }
    Answer::Hello(Hello {
        protocol: mvm_protocol::VERSION,
        agent_version: VERSION.to_owned(),
        profile: PROFILE.into(),
        capabilities,
        boot_id: boot_id(),
        generation: core.snapshot().generation,
    })
}
