//! What an agent costs a guest that does nothing: memory, threads, wakeups.

use crate::Result;
use crate::agent::Agent;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// The agent's default `sample_interval_secs`.
const SAMPLE_INTERVAL_SECS: f64 = 5.0;
const WATCHED: Duration = Duration::from_mins(1);

pub(crate) struct Figures {
    pub(crate) rss_bytes: u64,
    pub(crate) threads: u64,
    pub(crate) wakeups_a_minute: f64,
    /// What the schedule asks for: without drop-ins, the samples of the worker's state alone.
    pub(crate) samples_a_minute: f64,
}

pub(crate) fn measure(program: &Path) -> Result<Figures> {
    let mut agent = Agent::start(program, &[])?;
    // It has served a connection, as every agent has before long.
    let mut connection = agent.connect()?;
    connection.ask(&crate::agent::ping()?)?;
    drop(connection);
    std::thread::sleep(Duration::from_secs(2));
    let pid = agent.pid();
    let before = switches(pid)?;
    std::thread::sleep(WATCHED);
    let wakeups = switches(pid)? - before;
    #[expect(clippy::cast_precision_loss, reason = "a small count")]
    Ok(Figures {
        rss_bytes: rss_bytes(pid)?,
        threads: field(&format!("/proc/{pid}/status"), "Threads:")?,
        wakeups_a_minute: wakeups as f64 * 60.0 / WATCHED.as_secs_f64(),
        samples_a_minute: 60.0 / SAMPLE_INTERVAL_SECS,
    })
}

/// Resident memory. VmRSS is kept per CPU and off by more than small processes have.
pub(crate) fn rss_bytes(pid: u32) -> Result<u64> {
    Ok(field(&format!("/proc/{pid}/smaps_rollup"), "Rss:")? * 1024)
}

/// How often the process gave up the CPU to wait: once for each time that it was woken.
fn switches(pid: u32) -> Result<u64> {
    field(&format!("/proc/{pid}/status"), "voluntary_ctxt_switches:")
}

/// The number after a name at the start of a line.
fn field(file: &str, name: &str) -> Result<u64> {
    let text = fs::read_to_string(file)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.ok_or(format!("no {name} in {file}"))?.parse()?)
}
