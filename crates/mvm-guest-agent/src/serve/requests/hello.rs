//! `hello`: who is there, and what it can do.

use crate::core::Core;
use crate::machine::system::boot_id;
use crate::serve::facts::{Facts, VERSION};
use mvm_protocol::answer::{Answer, Hello, Profile};
use mvm_protocol::request::{DEV_REQUEST_TYPES, FEATURES, FORWARD, REQUEST_TYPES};

pub(super) fn answer(core: &Core, facts: &Facts, profile: Profile) -> Answer {
    let all = REQUEST_TYPES.iter().chain(&FEATURES);
    let mut capabilities: Vec<String> = all.map(|&it| it.to_owned()).collect();
    if profile == Profile::Dev && facts.exec {
        capabilities.extend(DEV_REQUEST_TYPES.map(str::to_owned));
    } else if facts.exposes {
        capabilities.push(FORWARD.to_owned());
    }
    Answer::Hello(Hello {
        protocol: mvm_protocol::VERSION,
        agent_version: VERSION.to_owned(),
        profile: profile.into(),
        capabilities,
        boot_id: boot_id(),
        generation: core.snapshot().generation,
    })
}
