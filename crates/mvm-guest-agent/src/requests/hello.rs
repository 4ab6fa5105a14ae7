//! `hello`: who is there, and what it can do.

use crate::edge::system::{Facts, PROFILE, VERSION};
use mvm_protocol::answer::{Answer, Hello};
use mvm_protocol::request::REQUEST_TYPES;

pub(super) fn answer(facts: &Facts) -> Answer {
    Answer::Hello(Hello {
        protocol: mvm_protocol::VERSION,
        agent_version: VERSION.to_owned(),
        profile: PROFILE,
        capabilities: REQUEST_TYPES.map(str::to_owned).to_vec(),
        boot_id: facts.boot_id.clone(),
        // No wake is served yet, so none has been seen.
        generation: 0,
    })
}
