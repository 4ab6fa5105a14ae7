//! What is kept of an agent's answers for the metrics alone: bounded, whatever a guest sends.

use crate::label;
use mvm_protocol::Lenient;
use mvm_protocol::status::{Health, Inspect, IntegrationStatus, ProbeStatus, Status};
use serde_json::Value;

/// How many integrations, and how many probes, of one VM are told.
pub const MAX_SERIES: usize = 64;

/// What one guest's series are made of.
#[derive(Debug, Clone, Default)]
pub(crate) struct Detail {
    pub(crate) integrations: Vec<Integration>,
    /// What only `inspect` tells. None before its first answer.
    pub(crate) inspected: Option<Box<Inspected>>,
    /// Integrations and probes for which there was no room, or whose label was taken.
    dropped: [usize; 2],
}

/// What only `inspect` tells.
#[derive(Debug, Clone)]
pub(crate) struct Inspected {
    pub(crate) version: Box<str>,
    pub(crate) profile: Box<str>,
    pub(crate) rss_bytes: u64,
    pub(crate) drop_in_errors: usize,
    pub(crate) cpus: usize,
    pub(crate) memory_total_bytes: u64,
    pub(crate) memory_available_bytes: u64,
    pub(crate) generation: u64,
    pub(crate) unannounced: u64,
    pub(crate) probes: Vec<Probe>,
}

#[derive(Debug, Clone)]
pub(crate) struct Integration {
    pub(crate) name: Box<str>,
    pub(crate) health: Option<Health>,
    pub(crate) consecutive_failures: u64,
    pub(crate) checks: u64,
    pub(crate) failures: u64,
    pub(crate) last_duration_ms: Option<u64>,
}

#[derive(Debug, Clone)]
pub(crate) struct Probe {
    pub(crate) name: Box<str>,
    pub(crate) is_ok: bool,
    pub(crate) value: Option<f64>,
    pub(crate) last_duration_ms: Option<u64>,
}

impl Detail {
    /// Takes the integrations of a status. Returns how many more are left out than before.
    pub(crate) fn status(&mut self, status: &Status) -> usize {
        self.integrations.clear();
        let mut dropped = believable(status.integrations_omitted);
        for one in &status.integrations {
            if !self.put(one) {
                dropped += 1;
            }
        }
        self.integrations.shrink_to_fit();
        self.drop_more(0, dropped)
    }

    /// The guest was restored and nobody announced it: its generation has grown by one.
    pub(crate) fn restored(&mut self) {
        if let Some(inspected) = &mut self.inspected {
            inspected.generation = inspected.generation.saturating_add(1);
            inspected.unannounced = inspected.unannounced.saturating_add(1);
        }
    }

    /// Takes one integration. Returns how many more are left out than before.
    pub(crate) fn integration(&mut self, one: &IntegrationStatus) -> usize {
        if self.put(one) {
            return 0;
        }
        // Which of those that are left out it is, nobody knows: it is counted once as a whole.
        let dropped = self.dropped[0].max(1);
        self.drop_more(0, dropped)
    }

    /// Takes what `inspect` tells beyond the status. Returns how many more are left out than before.
    pub(crate) fn inspect(&mut self, inspect: &Inspect) -> usize {
        let mut probes: Vec<Probe> = Vec::new();
        let mut dropped = believable(inspect.probes_omitted);
        for one in &inspect.probes {
            let probe = Probe::new(one);
            if probes.len() < MAX_SERIES && probes.iter().all(|other| other.name != probe.name) {
                probes.push(probe);
            } else {
                dropped += 1;
            }
        }
        probes.shrink_to_fit();
        let agent = &inspect.agent;
        self.inspected = Some(Box::new(Inspected {
            version: label::clean(&agent.version),
            profile: match agent.profile {
                Lenient::Known(profile) => match profile {
                    mvm_protocol::answer::Profile::Prod => "prod".into(),
                    mvm_protocol::answer::Profile::Dev => "dev".into(),
                },
                Lenient::Other(word) => label::clean(word.as_str()),
            },
            rss_bytes: agent.rss_bytes,
            drop_in_errors: agent
                .drop_in_errors
                .len()
                .saturating_add(agent.drop_in_errors_omitted),
            cpus: inspect.system.cpus,
            memory_total_bytes: inspect.system.memory_total_bytes,
            memory_available_bytes: inspect.system.memory_available_bytes,
            generation: inspect.snapshot.generation,
            unannounced: inspect.snapshot.unannounced,
            probes,
        }));
        self.drop_more(1, dropped)
    }

    /// The verdict on the guest, as its agent makes it of its integrations. Where some are left out
    /// it is at least as bad as the agent has said: until the next status, which tells.
    pub(crate) fn health(&self, said: Lenient<Health>) -> Lenient<Health> {
        let known = Health::of_guest(self.integrations.iter().filter_map(|one| one.health));
        let [left_out, _] = self.dropped;
        match said.known() {
            Some(said) if left_out > 0 => Health::of_guest([said, known]).into(),
            _ => known.into(),
        }
    }

    /// The drop-in folders were read anew, with so many files rejected.
    pub(crate) fn drop_ins(&mut self, errors: usize) {
        if let Some(inspected) = &mut self.inspected {
            inspected.drop_in_errors = errors;
        }
    }

    /// Takes an integration if there is room, or if it is there already. Two whose names are the same
    /// once they are cleaned would be one series with two values, for which a scrape is refused.
    fn put(&mut self, one: &IntegrationStatus) -> bool {
        let new = Integration::new(one);
        let mut known = self.integrations.iter_mut();
        if let Some(known) = known.find(|known| known.name == new.name) {
            *known = new;
            return true;
        }
        let has_room = self.integrations.len() < MAX_SERIES;
        if has_room {
            self.integrations.push(new);
        }
        has_room
    }

    fn drop_more(&mut self, kind: usize, dropped: usize) -> usize {
        let Some(before) = self.dropped.get_mut(kind) else {
            return 0;
        };
        let more = dropped.saturating_sub(*before);
        *before = dropped;
        more
    }
}

/// A guest may claim to have left out any number: it is not believed beyond what a frame could hold.
fn believable(omitted: usize) -> usize {
    omitted.min(mvm_protocol::MAX_BODY)
}

impl Integration {
    fn new(one: &IntegrationStatus) -> Self {
        Self {
            name: label::clean(&one.name),
            health: one.health.known(),
            consecutive_failures: one.consecutive_failures,
            checks: one.checks,
            failures: one.failures,
            last_duration_ms: one.last_check.as_ref().map(|check| check.duration_ms),
        }
    }
}

impl Probe {
    fn new(one: &ProbeStatus) -> Self {
        Self {
            name: label::clean(&one.name),
            is_ok: one.ok,
            // One of before a freeze says nothing of now.
            value: number(&one.value).filter(|_| !one.stale),
            last_duration_ms: one.last_check.as_ref().map(|check| check.duration_ms),
        }
    }
}

/// The number that a probe's value is: a JSON number, true and false as 1 and 0, or a text that is a
/// number, with a per cent sign or without (`42%` is 42).
fn number(value: &Value) -> Option<f64> {
    let number = match value {
        Value::Number(number) => number.as_f64(),
        Value::Bool(yes) => Some(f64::from(u8::from(*yes))),
        Value::String(text) => {
            let text = text.trim();
            let text = text.strip_suffix('%').unwrap_or(text).trim_end();
            text.parse().ok()
        }
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    };
    // `inf` and `nan` are numbers to a parser.
    number.filter(|number| number.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_that_are_numbers() {
        for (value, expected) in [
            (json!(7), Some(7.0)),
            (json!(-0.5), Some(-0.5)),
            (json!(true), Some(1.0)),
            (json!("42%"), Some(42.0)),
            (json!(" 1e3 "), Some(1000.0)),
            (json!("inf"), None),
            (json!("NaN%"), None),
            (json!("12 files"), None),
            (json!(""), None),
            (json!(null), None),
            (json!({"used": 1}), None),
        ] {
            assert_eq!(number(&value), expected, "{value}");
        }
    }
}
