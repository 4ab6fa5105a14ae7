//! `inspect`: all of `status`, and probes, system, agent and snapshot history.

use crate::core::Core;
use crate::machine::clock;
use crate::machine::system;
use crate::serve::facts::Facts;
use mvm_protocol::Answer;
use mvm_protocol::answer::Profile;
use mvm_protocol::status::Inspect;

pub(super) fn answer(core: &Core, facts: &Facts, profile: Profile) -> Answer {
    let mut agent = facts.agent(profile);
    agent.drop_in_errors = core.drop_in_errors().to_vec();
    Answer::Inspect(Inspect {
        status: core.status(clock::uptime()),
        probes: core.probes(),
        probes_omitted: 0,
        system: system::system(),
        agent,
        snapshot: core.snapshot(),
    })
}
