//! Each VM's series, a family a line.

use super::Exposition;
use super::text::{Family, Format, Kind, Value, Writer, labels};
use crate::state::State;
use crate::view::{Detail, Inspected, Integration, Observed, Probe, Vm};
use crate::{Now, label};
use mvm_protocol::status::{Health, Lifecycle};
use std::time::Duration;

/// A family, and the samples that one VM has in it.
struct Told {
    family: Family,
    of: Of,
}

/// Which VMs have samples, and which.
enum Of {
    /// Every VM.
    Vm(fn(&Vm, &Now, &mut Rows)),
    /// Those whose agent answers.
    Agent(fn(&Seen, &mut Rows)),
    /// Those whose agent has answered `inspect`.
    Inspected(fn(&Inspected) -> Value),
    /// Each integration.
    Integration(fn(&Integration) -> Option<Value>),
    /// Each probe.
    Probe(fn(&Probe) -> Option<Value>),
}

/// A VM whose agent answers.
struct Seen<'a> {
    observed: &'a Observed,
    detail: &'a Detail,
    idle: Option<Duration>,
    /// `CLOCK_BOOTTIME`
    now: Duration,
}

/// Where one VM's samples of one family go.
struct Rows<'a> {
    writer: &'a mut Writer,
    labels: &'a str,
}

impl Rows<'_> {
    fn put(&mut self, value: impl Into<Value>) {
        self.writer.sample(self.labels, &[], value.into());
    }

    fn put_as(&mut self, label: &str, value: &str, number: impl Into<Value>) {
        self.writer
            .sample(self.labels, &[(label, value)], number.into());
    }
}

const fn told(
    name: &'static str,
    kind: Kind,
    unit: Option<&'static str>,
    of: Of,
    help: &'static str,
) -> Told {
    let family = Family {
        name,
        kind,
        unit,
        help,
    };
    Told { family, of }
}

const SECONDS: Option<&str> = Some("seconds");
const BYTES: Option<&str> = Some("bytes");

static TOLD: [Told; 29] = {
    use Kind::{Counter, Gauge, Info};
    [
        told(
            "mvm_agent_up",
            Gauge,
            None,
            Of::Vm(agent_up),
            "1 if the VM's agent answers, 0 if it should and does not: then the VM has no other series.",
        ),
        told(
            "mvm_vm_state",
            Gauge,
            None,
            Of::Vm(vm_state),
            "1, with the VM's state as a label.",
        ),
        told(
            "mvm_vm_age_seconds",
            Gauge,
            SECONDS,
            Of::Vm(age),
            "Since the VM was started or cloned; not there if nobody has noted it.",
        ),
        told(
            "mvm_vm_failed_actions",
            Gauge,
            None,
            Of::Vm(failed_actions),
            "How many times in a row an action of the policy on the VM has failed, with the action; until it succeeds, or the VM is another one by a sleep, wake or stop.",
        ),
        told(
            "mvm_agent",
            Info,
            None,
            Of::Agent(agent_info),
            "The agent's version and profile.",
        ),
        told(
            "mvm_agent_answer_age_seconds",
            Gauge,
            SECONDS,
            Of::Agent(|seen, rows| {
                rows.put(seen.now.saturating_sub(seen.observed.seen));
            }),
            "How long ago the agent was heard last.",
        ),
        told(
            "mvm_agent_resident_memory_bytes",
            Gauge,
            BYTES,
            Of::Inspected(|inspected| Value::Whole(inspected.rss_bytes)),
            "The agent's own memory.",
        ),
        told(
            "mvm_agent_drop_in_errors",
            Gauge,
            None,
            Of::Inspected(|inspected| whole(inspected.drop_in_errors)),
            "Drop-in files that the agent has rejected.",
        ),
        told(
            "mvm_guest_lifecycle",
            Gauge,
            None,
            Of::Agent(lifecycle),
            "1, with the guest's lifecycle as a label: running, preparing, ready, waking.",
        ),
        told(
            "mvm_guest_health",
            Gauge,
            None,
            Of::Agent(health),
            "1, with the guest's health as a label: starting, healthy, unhealthy.",
        ),
        told(
            "mvm_guest_uptime_seconds",
            Gauge,
            SECONDS,
            Of::Agent(|seen, rows| rows.put(seen.observed.uptime(seen.now))),
            "Since the guest's boot, time asleep included.",
        ),
        told(
            "mvm_guest_generation",
            Gauge,
            None,
            Of::Inspected(|inspected| Value::Whole(inspected.generation)),
            "How many restores the guest has seen.",
        ),
        told(
            "mvm_guest_restores_unannounced",
            Counter,
            None,
            Of::Inspected(|inspected| Value::Whole(inspected.unannounced)),
            "How many of them no host announced.",
        ),
        told(
            "mvm_guest_cpus",
            Gauge,
            None,
            Of::Inspected(|inspected| whole(inspected.cpus)),
            "The guest's CPUs.",
        ),
        told(
            "mvm_guest_memory_total_bytes",
            Gauge,
            BYTES,
            Of::Inspected(|inspected| Value::Whole(inspected.memory_total_bytes)),
            "The guest's memory.",
        ),
        told(
            "mvm_guest_memory_available_bytes",
            Gauge,
            BYTES,
            Of::Inspected(|inspected| Value::Whole(inspected.memory_available_bytes)),
            "What of it is available.",
        ),
        told(
            "mvm_worker_busy",
            Gauge,
            None,
            Of::Agent(|seen, rows| rows.put(seen.observed.is_busy)),
            "1 if the guest works, 0 if it is idle.",
        ),
        told(
            "mvm_worker_busy_signal",
            Gauge,
            None,
            Of::Agent(signals),
            "1 for each signal that makes the guest busy: loadavg, cpu, pressure, session, inhibit.",
        ),
        told(
            "mvm_worker_idle_seconds",
            Gauge,
            SECONDS,
            Of::Agent(|seen, rows| rows.put(seen.idle.unwrap_or_default())),
            "For how long the guest has been idle by its own clock, as policies count it; 0 if it is not.",
        ),
        told(
            "mvm_worker_load1",
            Gauge,
            None,
            Of::Agent(|seen, rows| rows.put(Value::Number(seen.observed.load1))),
            "The guest's 1-minute load average.",
        ),
        told(
            "mvm_worker_runnable_threads",
            Gauge,
            None,
            Of::Agent(|seen, rows| rows.put(Value::Whole(seen.observed.runnable.into()))),
            "Threads of the guest that run or could.",
        ),
        told(
            "mvm_integration_health",
            Gauge,
            None,
            Of::Agent(integration_health),
            "1, with the integration's health as a label: starting, healthy, unhealthy, unchecked.",
        ),
        told(
            "mvm_integration_checks",
            Counter,
            None,
            Of::Integration(|one| Some(Value::Whole(one.checks))),
            "Checks of the integration that have ended.",
        ),
        told(
            "mvm_integration_check_failures",
            Counter,
            None,
            Of::Integration(|one| Some(Value::Whole(one.failures))),
            "Those of them that have failed.",
        ),
        told(
            "mvm_integration_consecutive_failures",
            Gauge,
            None,
            Of::Integration(|one| Some(Value::Whole(one.consecutive_failures))),
            "How many checks have failed in a row.",
        ),
        told(
            "mvm_integration_last_check_duration_seconds",
            Gauge,
            SECONDS,
            Of::Integration(|one| one.last_duration_ms.map(milliseconds)),
            "How long the last check took; not there before the first one.",
        ),
        told(
            "mvm_probe_ok",
            Gauge,
            None,
            Of::Probe(|one| Some(one.is_ok.into())),
            "1 if the probe's last run succeeded, else 0.",
        ),
        told(
            "mvm_probe_value",
            Gauge,
            None,
            Of::Probe(|one| one.value.map(Value::Number)),
            "The probe's value, if it is a number: JSON's, true or false as 1 or 0, a text such as 42 or 42%.",
        ),
        told(
            "mvm_probe_last_check_duration_seconds",
            Gauge,
            SECONDS,
            Of::Probe(|one| one.last_duration_ms.map(milliseconds)),
            "How long the last run took; not there before the first one.",
        ),
    ]
};

pub(super) fn families() -> impl Iterator<Item = &'static Family> {
    TOLD.iter().map(|told| &told.family)
}

/// One piece for each family. They are written side by side, one VM after the other: what is known of ten
/// thousand VMs is more than a CPU's cache has, and would be fetched anew for each family.
pub(super) fn write(told: &Exposition, format: Format) -> impl Iterator<Item = String> {
    let mut writers: Vec<(&Of, Writer)> = TOLD
        .iter()
        .map(|Told { family, of }| {
            let mut writer = Writer::new(format);
            writer.family(family);
            (of, writer)
        })
        .collect();
    for vm in told.view.vms() {
        // Names of VMs are their folders', and unique; so they are cleaned for others' sake alone.
        let [pool, name] = [vm.pool(), vm.name()].map(label::clean);
        let labels = labels(&[("pool", &pool), ("vm", &name)]);
        let seen = vm.seen().map(|(observed, detail)| Seen {
            observed,
            detail,
            idle: told.view.idle_for(vm, told.now),
            now: told.now.boottime,
        });
        for (of, writer) in &mut writers {
            let mut rows = Rows {
                writer,
                labels: &labels,
            };
            of.write(vm, seen.as_ref(), told.now, &mut rows);
        }
    }
    writers.into_iter().map(|(_, writer)| writer.into_text())
}

impl Of {
    fn write(&self, vm: &Vm, seen: Option<&Seen>, now: &Now, rows: &mut Rows) {
        let detail = seen.map(|seen| seen.detail);
        let inspected = detail.and_then(|detail| detail.inspected.as_deref());
        match self {
            Self::Vm(tell) => tell(vm, now, rows),
            Self::Agent(tell) => {
                if let Some(seen) = seen {
                    tell(seen, rows);
                }
            }
            Self::Inspected(value) => {
                if let Some(inspected) = inspected {
                    rows.put(value(inspected));
                }
            }
            Self::Integration(value) => {
                for one in detail.into_iter().flat_map(|detail| &detail.integrations) {
                    if let Some(value) = value(one) {
                        rows.put_as("integration", &one.name, value);
                    }
                }
            }
            Self::Probe(value) => {
                for one in inspected
                    .into_iter()
                    .flat_map(|inspected| &inspected.probes)
                {
                    if let Some(value) = value(one) {
                        rows.put_as("probe", &one.name, value);
                    }
                }
            }
        }
    }
}

fn agent_up(vm: &Vm, _: &Now, rows: &mut Rows) {
    if vm.seen().is_some() {
        rows.put(true);
    } else if vm.state() == State::Unknown {
        rows.put(false);
    }
}

fn vm_state(vm: &Vm, _: &Now, rows: &mut Rows) {
    if vm.state() != State::Unknown {
        rows.put_as("state", vm.state().as_str(), true);
    }
}

fn age(vm: &Vm, now: &Now, rows: &mut Rows) {
    if vm.state() != State::Unknown && vm.started_at().is_some() {
        rows.put(vm.age(now));
    }
}

fn failed_actions(vm: &Vm, _: &Now, rows: &mut Rows) {
    if let Some(failed) = vm.failed().filter(|_| vm.state() != State::Unknown) {
        rows.put_as(
            "action",
            failed.action.as_str(),
            Value::Whole(failed.times.into()),
        );
    }
}

fn agent_info(seen: &Seen, rows: &mut Rows) {
    if let Some(inspected) = &seen.detail.inspected {
        let labels = [
            ("version", &*inspected.version),
            ("profile", &*inspected.profile),
        ];
        rows.writer.sample(rows.labels, &labels, true.into());
    }
}

fn lifecycle(seen: &Seen, rows: &mut Rows) {
    let lifecycle = seen.observed.lifecycle.known().map(Lifecycle::as_str);
    rows.put_as("lifecycle", lifecycle.unwrap_or(OTHER), true);
}

fn health(seen: &Seen, rows: &mut Rows) {
    rows.put_as("health", word(seen.observed.health.known()), true);
}

fn signals(seen: &Seen, rows: &mut Rows) {
    for signal in seen.observed.because.names() {
        rows.put_as("signal", signal, true);
    }
}

fn integration_health(seen: &Seen, rows: &mut Rows) {
    for one in &seen.detail.integrations {
        let labels = [("integration", &*one.name), ("health", word(one.health))];
        rows.writer.sample(rows.labels, &labels, true.into());
    }
}

/// For a word of a newer agent's: each other one would be a series more.
const OTHER: &str = "other";

fn word(health: Option<Health>) -> &'static str {
    match health {
        Some(Health::Starting) => "starting",
        Some(Health::Healthy) => "healthy",
        Some(Health::Unhealthy) => "unhealthy",
        Some(Health::Unchecked) => "unchecked",
        None => OTHER,
    }
}

fn whole(number: usize) -> Value {
    Value::Whole(u64::try_from(number).unwrap_or(u64::MAX))
}

fn milliseconds(ms: u64) -> Value {
    Duration::from_millis(ms).into()
}
