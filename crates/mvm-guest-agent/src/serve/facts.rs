//! What `hello` and `inspect` say of the agent itself.

use crate::machine::clock;
use crate::machine::system::own_rss_bytes;
use crate::machine::vsock::VsockKey;
use mvm_protocol::Timestamp;
use mvm_protocol::answer::Profile;
use mvm_protocol::lifecycle::Token;
use mvm_protocol::status::Agent;
use std::hash::{BuildHasher, RandomState};

/// This build's version.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What does not change while the agent runs.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// Whether the configuration allows a dev build's requests.
    pub(crate) exec: bool,
    /// Whether it exposes ports.
    pub(crate) exposes: bool,
    /// Tells requests apart. Its keys are this agent's own.
    pub(crate) hasher: RandomState,
    /// By which this agent's own sockets to hosts are told from those of what it starts.
    pub(crate) vsock: VsockKey,
}

impl Facts {
    pub(crate) fn new(exec: bool, exposes: bool) -> Self {
        let hasher = RandomState::new();
        Self {
            exec,
            exposes,
            vsock: VsockKey::new(&hasher),
            hasher,
        }
    }

    /// A token for a host that gave none. It only has to be another one each time: whoever could
    /// guess it may end the sleep without it.
    pub(crate) fn made_up_token(&self) -> Token {
        let now = clock::now();
        Token::made_up(self.hasher.hash_one((now.mono, now.wall)))
    }

    /// The agent itself, now, which is of this profile and was started then.
    pub(crate) fn agent(profile: Profile, started_at: Timestamp) -> Agent {
        Agent {
            version: VERSION.to_owned(),
            profile: profile.into(),
            pid: std::process::id(),
            rss_bytes: own_rss_bytes(),
            started_at,
            drop_in_errors: Vec::new(),
            drop_in_errors_omitted: 0,
        }
    }
}
