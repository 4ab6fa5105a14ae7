//! What of the agent is fuzzed, beyond what its libraries read: see `mvm_fuzz_targets`.
//!
//! ```text
//! agent_session    what a host sends, cut into any pieces: the session, the driver and the core
//! drop_in_folder   whatever lies in a drop-in folder
//! journal          what an earlier agent, or somebody else, has left in the run directory
//! agent_unpack     dev builds: the archive of a `put`, and that of a `get` of what came of it
//! ```

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc,
    clippy::indexing_slicing,
    reason = "a target fails by panicking"
)]

mod drop_in_folder;
mod journal;
mod machine;
mod session;

pub use drop_in_folder::drop_in_folder;
pub use journal::journal;
pub use session::agent_session;

use crate::core::worker::BusyPolicy;
use crate::core::{Now, Settings};
use mvm_protocol::Timestamp;
use std::time::Duration;

/// A core's settings.
fn settings() -> Settings {
    Settings {
        max_concurrent_checks: 4,
        sample_interval: Duration::from_secs(5),
        busy: BusyPolicy {
            threshold: 0.1,
            signals: Vec::new(),
        },
        seed: 7,
        since_boot: Duration::ZERO,
    }
}

/// So many seconds after the agent has started.
fn after(seconds: u64) -> Now {
    Now {
        mono: Duration::from_secs(1000 + seconds),
        wall: Timestamp(1_795_000_000_000),
    }
}

#[cfg(test)]
mod tests {
    use mvm_fuzz_targets::corpus::run;

    #[test]
    fn agent_session() {
        run("agent_session", super::agent_session());
    }

    #[test]
    fn drop_in_folder() {
        run("drop_in_folder", super::drop_in_folder());
    }

    #[test]
    fn journal() {
        run("journal", super::journal());
    }
}
