//! The standard metrics of a process, of the program that tells.

use super::text::{Family, Kind, Value, Writer};

/// Figures of the program that serves the metrics, from `/proc/self`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Process {
    /// CPU time, user and system, in seconds.
    pub cpu_seconds: f64,
    /// Open file descriptors.
    pub open_fds: u64,
    /// The soft limit on them.
    pub max_fds: u64,
    /// Virtual memory in bytes.
    pub virtual_bytes: u64,
    /// Resident memory in bytes.
    pub resident_bytes: u64,
    /// When it started, in seconds since 1970.
    pub started_seconds: f64,
}

const fn gauge(name: &'static str, unit: Option<&'static str>, help: &'static str) -> Family {
    Family {
        name,
        kind: Kind::Gauge,
        unit,
        help,
    }
}

const CPU: Family = Family {
    name: "process_cpu_seconds",
    kind: Kind::Counter,
    unit: Some("seconds"),
    help: "CPU time of the exporter, user and system.",
};
const OPEN_FDS: Family = gauge(
    "process_open_fds",
    None,
    "Open file descriptors of the exporter.",
);
const MAX_FDS: Family = gauge(
    "process_max_fds",
    None,
    "How many file descriptors the exporter may open.",
);
const VIRTUAL: Family = gauge(
    "process_virtual_memory_bytes",
    Some("bytes"),
    "Virtual memory of the exporter.",
);
const RESIDENT: Family = gauge(
    "process_resident_memory_bytes",
    Some("bytes"),
    "Resident memory of the exporter.",
);
const STARTED: Family = gauge(
    "process_start_time_seconds",
    Some("seconds"),
    "When the exporter started, in seconds since 1970.",
);

pub(super) fn families() -> impl Iterator<Item = &'static Family> {
    [&CPU, &OPEN_FDS, &MAX_FDS, &VIRTUAL, &RESIDENT, &STARTED].into_iter()
}

impl Process {
    pub(super) fn write(&self, writer: &mut Writer) {
        for (family, value) in [
            (&CPU, Value::Number(self.cpu_seconds)),
            (&OPEN_FDS, Value::Whole(self.open_fds)),
            (&MAX_FDS, Value::Whole(self.max_fds)),
            (&VIRTUAL, Value::Whole(self.virtual_bytes)),
            (&RESIDENT, Value::Whole(self.resident_bytes)),
            (&STARTED, Value::Number(self.started_seconds)),
        ] {
            writer.family(family);
            writer.sample("", &[], value);
        }
    }
}
