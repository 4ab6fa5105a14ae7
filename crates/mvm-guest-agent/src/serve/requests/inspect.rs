//! `inspect`: all of `status`, and probes, system, agent and snapshot history.

use crate::core::{Core, Now};
use crate::machine::clock;
use crate::machine::system;
use crate::serve::facts::Facts;
use mvm_protocol::Answer;
use mvm_protocol::answer::Profile;
use mvm_protocol::status::Inspect;

pub(super) fn answer(core: &Core, profile: Profile, now: Now) -> Answer {
    let mut agent = Facts::agent(profile, core.started_at(now));
    agent.drop_in_errors = core.drop_in_errors().to_vec();
    Answer::Inspect(Box::new(Inspect {
        status: core.status(clock::uptime(), now),
        probes: core.probes(now),
        probes_omitted: 0,
        system: system::system(),
        agent,
        snapshot: core.snapshot(),
        boot: Some(core.boot().told(system::process_started())),
    }))
}
