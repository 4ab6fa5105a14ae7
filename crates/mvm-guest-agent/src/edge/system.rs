//! What `inspect` and `hello` tell of the guest and of the agent itself.

use super::clock;
use super::proc::{field, read_small};
use mvm_protocol::Timestamp;
use mvm_protocol::answer::Profile;
use mvm_protocol::lifecycle::Token;
use mvm_protocol::status::{Agent, System};
use std::hash::{BuildHasher, RandomState};

/// What does not change while the agent runs.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) started_at: Timestamp,
    /// Whether the configuration lets a dev build serve exec, put and get.
    pub(crate) exec: bool,
    /// Tells requests apart. Its keys are this agent's own.
    pub(crate) hasher: RandomState,
}

/// Which build this is.
pub(crate) const PROFILE: Profile = if cfg!(feature = "dev") {
    Profile::Dev
} else {
    Profile::Prod
};

/// This build's version.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

impl Facts {
    pub(crate) fn new(started_at: Timestamp, exec: bool) -> Self {
        Self {
            started_at,
            exec,
            hasher: RandomState::new(),
        }
    }

    /// A token for a host that gave none. It only has to be another one each time: whoever could
    /// guess it may end the sleep without it.
    pub(crate) fn made_up_token(&self) -> Token {
        let now = clock::now();
        Token::made_up(self.hasher.hash_one((now.mono, now.wall)))
    }

    /// The agent itself, now.
    pub(crate) fn agent(&self) -> Agent {
        // VmRSS is wrong for processes this small: the kernel batches its counters
        // (Documentation/filesystems/proc.rst on smaps_rollup).
        let rollup = read_small("/proc/self/smaps_rollup").unwrap_or_default();
        Agent {
            version: VERSION.to_owned(),
            profile: PROFILE.into(),
            pid: std::process::id(),
            rss_bytes: field(&rollup, "Rss:")
                .unwrap_or_default()
                .saturating_mul(1024),
            started_at: self.started_at,
            drop_in_errors: Vec::new(),
            drop_in_errors_omitted: 0,
        }
    }
}

/// The kernel's id of this boot; for a clone the one that its wake gave it.
pub(crate) fn boot_id() -> String {
    let id = read_small("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

/// The guest, now. What cannot be read is 0 or empty.
pub(crate) fn system() -> System {
    let uname = rustix::system::uname();
    let memory = read_small("/proc/meminfo").unwrap_or_default();
    let bytes = |name| {
        field(&memory, name)
            .unwrap_or_default()
            .saturating_mul(1024)
    };
    let load = read_small("/proc/loadavg").unwrap_or_default();
    let mut load = load
        .split_whitespace()
        .map_while(|average| average.parse().ok());
    System {
        hostname: uname.nodename().to_string_lossy().into_owned(),
        kernel: uname.release().to_string_lossy().into_owned(),
        cpus: cpus(),
        memory_total_bytes: bytes("MemTotal:"),
        memory_available_bytes: bytes("MemAvailable:"),
        load: std::array::from_fn(|_| load.next().unwrap_or_default()),
    }
}

/// CPUs that are online: each has a line of its own in `/proc/stat` (proc_stat(5)). The standard
/// library's count takes the agent's own quota into account, which says nothing of the guest.
fn cpus() -> usize {
    let stat = read_small("/proc/stat").unwrap_or_default();
    let is_cpu = |line: &&str| {
        line.strip_prefix("cpu")
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    stat.lines().filter(is_cpu).count().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_described() {
        let system = system();
        assert!(!system.hostname.is_empty() && !system.kernel.is_empty() && system.cpus > 0);
        assert!(system.memory_total_bytes > system.memory_available_bytes);
        assert!(system.memory_available_bytes > 0);
        let facts = Facts::new(Timestamp(0), true);
        assert_eq!(boot_id().len(), 36);
        assert!(facts.agent().rss_bytes > 100_000);
    }
}
