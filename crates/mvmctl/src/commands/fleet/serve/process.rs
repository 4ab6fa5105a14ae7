//! Figures of this process, from `/proc/self`.

use mvm_fleet::metrics::Process;
use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};
use std::fs::{metadata, read_dir, read_to_string};

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
        open_fds: open_descriptors()?,
        max_fds: getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
        virtual_bytes: field(23)?,
        resident_bytes: field(24)? * page_size() as u64,
        started_seconds: boot + field(22)? as f64 / ticks,
    })
}

/// How many descriptors are open. The kernel says so as the folder's size since Linux 6.2; before that,
/// each of them is counted, which takes a sixth of a scrape where there are ten thousand.
fn open_descriptors() -> Option<u64> {
    let folder = "/proc/self/fd";
    match metadata(folder).ok()?.len() {
        0 => Some(read_dir(folder).ok()?.count() as u64),
        open => Some(open),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_descriptors_are_counted() {
        let before = open_descriptors().unwrap();
        let many: Vec<_> = (0..500)
            .map(|_| std::fs::File::open("/dev/null").unwrap())
            .collect();
        let now = open_descriptors().unwrap();
        // Other tests of this process open and close some meanwhile.
        assert!(now.abs_diff(before + 500) < 250, "{before}, then {now}");
        drop(many);
    }
}
