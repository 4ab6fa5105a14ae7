//! The guest as `/proc` describes it, for `inspect` and `hello`.

use super::proc::{field, read_small};
use mvm_protocol::status::System;
use std::time::Duration;

/// The kernel's id of this boot; for a clone the one that its wake gave it.
pub(crate) fn boot_id() -> String {
    let id = read_small("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

/// Bytes of this process that are resident in memory. `VmRSS` is wrong for processes this small: the
/// kernel batches its counters (Documentation/filesystems/proc.rst on smaps_rollup).
pub(crate) fn own_rss_bytes() -> u64 {
    let rollup = read_small("/proc/self/smaps_rollup").unwrap_or_default();
    field(&rollup, "Rss:")
        .unwrap_or_default()
        .saturating_mul(1024)
}

/// When the kernel made this process, since the machine's boot (`starttime` of proc_pid_stat(5)).
pub(crate) fn process_started() -> Option<Duration> {
    let stat = read_small("/proc/self/stat").ok()?;
    // The second field is the program's name in parentheses, with whatever is in it.
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks: u64 = fields.split_whitespace().nth(19)?.parse().ok()?;
    // USER_HZ, in which the kernel tells times to programs, is 100 wherever Rust has Linux.
    Some(Duration::from_millis(ticks.checked_mul(10)?))
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
    use crate::machine::clock;

    #[test]
    fn the_machine_is_described() {
        let system = system();
        assert!(!system.hostname.is_empty() && !system.kernel.is_empty() && system.cpus > 0);
        assert!(system.memory_total_bytes > system.memory_available_bytes);
        assert!(system.memory_available_bytes > 0);
        assert_eq!(boot_id().len(), 36);
        assert!(own_rss_bytes() > 100_000);
        let since_start = clock::uptime().checked_sub(process_started().unwrap());
        assert!(since_start.unwrap() < Duration::from_secs(600));
    }
}
