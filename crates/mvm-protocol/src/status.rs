//! What `status`, `inspect`, `check` and `watch` report.

use crate::lenient::Lenient;
use crate::timestamp::Timestamp;
use serde::{Deserialize, Serialize};

/// Where the guest is between running and frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Lifecycle {
    /// The normal state.
    Running,
    /// A sleep-prep is under way.
    Preparing,
    /// About to be frozen.
    Ready,
    /// A wake is under way.
    Waking,
}

impl Lifecycle {
    /// The state as it stands on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Preparing => "preparing",
            Self::Ready => "ready",
            Self::Waking => "waking",
        }
    }
}

/// A verdict on a service, or on the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// No verdict yet, since the start or the last wake, or failing within the grace period.
    Starting,
    /// The check succeeds.
    Healthy,
    /// The check fails.
    Unhealthy,
    /// There is no health command. Never said of a guest.
    Unchecked,
}

impl Health {
    /// The verdict on a guest: unhealthy if any integration is, else starting if any is, else
    /// healthy.
    pub fn of_guest(integrations: impl IntoIterator<Item = Self>) -> Self {
        integrations
            .into_iter()
            .fold(Self::Healthy, |guest, one| match (guest, one) {
                (Self::Unhealthy, _) | (_, Self::Unhealthy) => Self::Unhealthy,
                (Self::Starting, _) | (_, Self::Starting) => Self::Starting,
                _ => Self::Healthy,
            })
    }
}

/// The answer to `status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Status {
    /// Where the guest is between running and frozen.
    pub lifecycle: Lenient<Lifecycle>,
    /// The verdict on the guest.
    pub health: Lenient<Health>,
    /// Seconds since the guest's boot, time asleep included (`CLOCK_BOOTTIME`).
    pub uptime_secs: f64,
    /// The guest's wall clock when it answered; null from an agent that does not tell. The times of
    /// this answer are to be compared with it, and not with the clock of whoever reads them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub now: Option<Timestamp>,
    /// Idle or busy.
    pub worker: Worker,
    /// The services, in load order.
    pub integrations: Vec<IntegrationStatus>,
    /// How many integrations found no room in the frame. Those that are not healthy go first.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub integrations_omitted: usize,
}

/// Whether the guest has work.
///
/// Its times, and all others of the guest's past but the snapshots', count the time in which the
/// guest has run: a guest that was idle for ten seconds, was frozen for a week and has run for five
/// more is idle since 15 seconds before `now`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Worker {
    /// Idle or busy.
    pub state: Lenient<WorkerState>,
    /// Since when.
    pub since: Timestamp,
    /// When it was last seen busy, or held; null if never, which is where a clone begins.
    pub last_busy_at: Option<Timestamp>,
    /// The signals that make it busy.
    pub because: Vec<Lenient<BusySignal>>,
    /// What else keeps it from being put to sleep: `session` and `inhibit` where they hold, and are
    /// none of the signals that make it busy. Left out if nothing does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held_by: Vec<Lenient<BusySignal>>,
    /// The 1-minute load average, as the kernel has it.
    pub load1: f64,
    /// What counts of it: the load that the guest's own work made in the last minute, or since its
    /// last wake if that is shorter. Without what it came with at the wake, and without what the
    /// agent's own checks made. Null if it could not be told, or by an agent that does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load1_counted: Option<f64>,
    /// Threads that run or could, from `/proc/loadavg`.
    pub runnable: u32,
}

impl Worker {
    /// Whether the guest has work of any kind: it is busy, or an open command or a file that inhibits
    /// holds it, whichever signals its settings count. A state that we do not know is work, too.
    pub fn is_at_work(&self) -> bool {
        self.state != WorkerState::Idle || !self.held_by.is_empty()
    }

    /// Since when it has had none, if it has none: the last moment at which it was seen at work.
    pub fn idle_since(&self) -> Timestamp {
        self.last_busy_at
            .map_or(self.since, |last_busy| last_busy.max(self.since))
    }
}

/// Idle or busy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum WorkerState {
    /// No signal says otherwise.
    Idle,
    /// At least one signal does.
    Busy,
}

/// What can make a guest busy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum BusySignal {
    /// What counts of the 1-minute load average is at or over the threshold.
    Loadavg,
    /// The share of CPU time used since the last sample is at or over the threshold.
    Cpu,
    /// The share of time in which something waited for a CPU is at or over the threshold.
    Pressure,
    /// An exec, put or get is open.
    Session,
    /// A file in `busy.d` says so.
    Inhibit,
}

/// A service's entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct IntegrationStatus {
    /// Its name.
    pub name: String,
    /// The verdict.
    pub health: Lenient<Health>,
    /// Since when.
    pub since: Timestamp,
    /// How many checks have failed in a row.
    pub consecutive_failures: u64,
    /// How many checks have ended.
    pub checks: u64,
    /// How many of them have failed.
    pub failures: u64,
    /// When it was healthy for the first time, in seconds since the guest's boot. Left out if it was
    /// not before the guest's first sleep or restore.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_healthy_secs: Option<f64>,
    /// The last check; null before the first one since the start, or since a wake.
    pub last_check: Option<LastCheck>,
}

/// How a check ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LastCheck {
    /// When it started.
    pub at: Timestamp,
    /// How long it took.
    pub duration_ms: u64,
    /// Its exit code; null if it did not exit.
    pub exit_code: Option<i32>,
    /// The signal that ended it, without `SIG`; null if none did.
    pub signal: Option<String>,
    /// Whether it was killed since its time was up.
    pub timed_out: bool,
    /// The end of what it printed, or why it could not be started.
    pub output: String,
    /// Whether it printed more than is kept.
    pub truncated: bool,
}

/// A probe's entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ProbeStatus {
    /// Its name.
    pub name: String,
    /// Whether its last run succeeded; false before the first.
    pub ok: bool,
    /// What its last run printed, trimmed: a JSON value for `output` `json`, else a string. Null
    /// if that run failed or there was none.
    pub value: serde_json::Value,
    /// Whether that is from before the guest was frozen: it has woken, and the probe has not run
    /// since.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stale: bool,
    /// The last run; null before the first one.
    pub last_check: Option<LastCheck>,
}

/// The answer to `inspect`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Inspect {
    /// All of `status`.
    #[serde(flatten)]
    pub status: Status,
    /// The probes, in load order.
    pub probes: Vec<ProbeStatus>,
    /// How many probes found no room in the frame.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub probes_omitted: usize,
    /// The guest.
    pub system: System,
    /// The agent.
    pub agent: Agent,
    /// Its history of snapshots.
    pub snapshot: Snapshot,
    /// When what was up in its boot; null from an agent that does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<Boot>,
}

/// When what was up, in seconds since the guest's boot (`CLOCK_BOOTTIME`).
///
/// They are times of the boot, and of the agent that runs: a guest that was restored has those of the
/// boot that its snapshot goes back to, and what was not up before its first sleep or restore is left
/// out for good.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Boot {
    /// When the kernel made the agent's process, by `/proc/self/stat`: to the hundredth of a second.
    /// Left out if it cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process_started_secs: Option<f64>,
    /// When the agent began its work.
    pub agent_started_secs: f64,
    /// When the drop-ins were loaded for the first time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drop_ins_loaded_secs: Option<f64>,
    /// When the guest was ready: its drop-ins loaded, and for the first time every integration that has
    /// a check healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_secs: Option<f64>,
}

/// What the guest is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct System {
    /// Its host name.
    pub hostname: String,
    /// Its kernel's release.
    pub kernel: String,
    /// CPUs that are online.
    pub cpus: usize,
    /// `MemTotal` of `/proc/meminfo`.
    pub memory_total_bytes: u64,
    /// `MemAvailable` of `/proc/meminfo`.
    pub memory_available_bytes: u64,
    /// The load averages over 1, 5 and 15 minutes.
    pub load: [f64; 3],
}

/// Which build of the agent it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// Has no code for remote commands.
    Prod,
    /// Serves remote commands, files, jobs and ports as well.
    Dev,
}

/// What the agent is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Agent {
    /// Its version.
    pub version: String,
    /// Which build it is.
    pub profile: Lenient<Profile>,
    /// Its process id in the guest.
    pub pid: u32,
    /// Its resident memory, from `/proc/self/smaps_rollup`.
    pub rss_bytes: u64,
    /// When it started.
    pub started_at: Timestamp,
    /// The drop-in files that were rejected.
    pub drop_in_errors: Vec<DropInError>,
    /// How many rejected files found no room in the frame.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub drop_in_errors_omitted: usize,
}

/// A rejected drop-in file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DropInError {
    /// Its path.
    pub file: String,
    /// Why, with line and field where they are known.
    pub message: String,
}

/// What the drop-in folders hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DropIns {
    /// How many integrations are loaded.
    pub integrations: usize,
    /// How many probes are loaded.
    pub probes: usize,
    /// The files that were rejected.
    pub errors: Vec<DropInError>,
    /// How many rejected files found no room in the frame.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub errors_omitted: usize,
}

/// The guest's history of snapshots.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Snapshot {
    /// How many restores this guest has seen.
    pub generation: u64,
    /// When it was last made ready; null if never.
    pub last_sleep: Option<Timestamp>,
    /// When it last woke; null if never.
    pub last_wake: Option<Timestamp>,
    /// How many restores the agent has noticed that no host announced by a `wake`. Not there if
    /// there were none.
    #[serde(default, skip_serializing_if = "is_none_of_them")]
    pub unannounced: u64,
}

/// By what a restore was noticed that no host announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum RestoreSign {
    /// The kernel said that the VM's generation id (VMGENID) is another one.
    Vmgenid,
    /// The generation counter of the vmclock device is another one.
    Vmclock,
    /// The guest's vsock CID is another one.
    Cid,
}

impl RestoreSign {
    /// The sign as it stands on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Vmgenid => "vmgenid",
            Self::Vmclock => "vmclock",
            Self::Cid => "cid",
        }
    }
}

/// A restore of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Restored {
    /// Whether a host has announced it. False: who announces one gets the answer to `wake`, and no
    /// event tells of it.
    pub announced: bool,
    /// By what the agent noticed it.
    pub by: Lenient<RestoreSign>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde asks for a reference"
)]
pub(crate) fn is_zero(count: &usize) -> bool {
    *count == 0
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde asks for a reference"
)]
fn is_none_of_them(count: &u64) -> bool {
    *count == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_is_as_well_as_its_worst() {
        use Health::{Healthy, Starting, Unchecked, Unhealthy};
        assert_eq!(Health::of_guest([]), Healthy);
        assert_eq!(Health::of_guest([Unchecked]), Healthy);
        assert_eq!(Health::of_guest([Healthy, Starting, Unchecked]), Starting);
        assert_eq!(Health::of_guest([Unhealthy, Starting, Healthy]), Unhealthy);
        assert_eq!(Health::of_guest([Starting, Unhealthy]), Unhealthy);
    }
}
