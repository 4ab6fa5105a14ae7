//! Figures of this process, from `/proc/self`.

use mvm_fleet::metrics::Process;
use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};
use std::fs::{read_dir, read_to_string};

/// What the kernel says of this process; `None` where `/proc` is not mounted.
pub(super) fn figures() -> Option<Process> {
    let stat = read_to_string("/proc/self/stat").ok()?;
    // The name in brackets may have anything in it.
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    // As proc_pid_stat(5) numbers them: `fields` begins with the third.
    let field = |number: usize| -> Option<u64> { fields.get(number - 3)?.parse().ok() };
    let ticks = clock_ticks_per_second() as f64;
    let boot: f64 = read_to_string("/proc/stat")
        .ok()?
        .lines()
        .find_map(|line| line.strip_prefix("btime "))?
        .trim()
        .parse()
        .ok()?;
    Some(Process {
        cpu_seconds: (field(14)? + field(15)?) as f64 / ticks,
        open_fds: read_dir("/proc/self/fd").ok()?.count() as u64,
        max_fds: getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
        virtual_bytes: field(23)?,
        resident_bytes: field(24)? * page_size() as u64,
        started_seconds: boot + field(22)? as f64 / ticks,
    })
}
