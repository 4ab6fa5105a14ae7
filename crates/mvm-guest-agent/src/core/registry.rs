//! What is loaded: each integration and probe with its spec, its state and its run.

use super::ended::{End, Ended};
use super::lifecycle::Cause;
use super::schedule::CheckId;
use super::timeline::{Moment, Timeline, secs};
use super::verdict::{self, Thresholds, Verdict};
use super::{RunId, WaiterId};
use mvm_protocol::Timestamp;
use mvm_protocol::drop_in::{Integration, OutputFormat, Probe};
use mvm_protocol::object::is_too_deep;
use mvm_protocol::request::CheckKind;
use mvm_protocol::status::{DropInError, Health, IntegrationStatus, LastCheck, ProbeStatus};
use serde_json::Value;
use std::time::Duration;

/// What the drop-in folders hold, read by the machine layer, in load order.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Loaded {
    pub(crate) integrations: Vec<Integration>,
    pub(crate) probes: Vec<Probe>,
    pub(crate) errors: Vec<DropInError>,
}

/// One integration or probe.
#[derive(Debug)]
pub(crate) struct Check {
    pub(crate) id: CheckId,
    pub(crate) body: Body,
    pub(crate) running: Option<RunId>,
    /// A run that began before the guest was frozen: its outcome says nothing.
    void: Option<RunId>,
    /// Who is told the outcome of the next run to start.
    pub(crate) waiters: Vec<WaiterId>,
    /// Who is told the outcome of the present run.
    pub(crate) run_waiters: Vec<WaiterId>,
    /// When the last run began, and what came of it.
    last: Option<(Moment, LastCheck)>,
    /// Whether a sleep has cut the last run short.
    cut_short: bool,
    /// When it was healthy for the first time, since the boot.
    first_healthy: Option<Duration>,
}

/// What kind of check it is, with what only that kind has.
#[derive(Debug)]
pub(crate) enum Body {
    Integration {
        spec: Box<Integration>,
        verdict: Verdict,
        grace_until: Duration,
    },
    Probe {
        spec: Probe,
        ok: bool,
        value: Value,
        /// Whether that is from before the guest was frozen.
        stale: bool,
    },
}

/// The command of a check, as it is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Command {
    /// For the log: `integration web`.
    pub(crate) what: String,
    /// The program, by its absolute path, and its arguments.
    pub(crate) argv: Vec<String>,
    /// Whom it runs as; the agent's own user if `None`.
    pub(crate) user: Option<String>,
    pub(crate) timeout: Duration,
    /// Whether standard error has a pipe of its own.
    pub(crate) split: bool,
    /// What a lifecycle command is told of the sleep or wake in its environment.
    pub(crate) context: Option<LifecycleContext>,
    /// The integration to whom a restore command is owed: that it has ended is told even if the agent
    /// does not live to see it.
    pub(crate) pays: Option<String>,
}

/// `MVM_GENERATION`, `MVM_CAUSE` and `MVM_CLONE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LifecycleContext {
    /// How many restores this guest has seen.
    pub(crate) generation: u64,
    /// Why the guest runs on; `None` on the way to sleep.
    pub(crate) cause: Option<Cause>,
    /// Whether it is one of several from one snapshot.
    pub(crate) clone: bool,
}

impl Command {
    /// Whether it is a check's, and not one of a sleep or a wake.
    pub(crate) fn is_check(&self) -> bool {
        self.context.is_none()
    }
}

impl Check {
    pub(crate) fn integration(id: CheckId, spec: Integration, now: Duration, at: Moment) -> Self {
        let health = if spec.is_checked() {
            Health::Starting
        } else {
            Health::Unchecked
        };
        Self::new(
            id,
            Body::Integration {
                grace_until: now.saturating_add(spec.startup_grace_secs.duration()),
                verdict: Verdict::new(health, at),
                spec: Box::new(spec),
            },
        )
    }

    pub(crate) fn probe(id: CheckId, spec: Probe) -> Self {
        Self::new(
            id,
            Body::Probe {
                spec,
                ok: false,
                value: Value::Null,
                stale: false,
            },
        )
    }

    fn new(id: CheckId, body: Body) -> Self {
        let (waiters, run_waiters) = (Vec::new(), Vec::new());
        Self {
            id,
            body,
            running: None,
            void: None,
            waiters,
            run_waiters,
            last: None,
            cut_short: false,
            first_healthy: None,
        }
    }

    pub(crate) fn kind(&self) -> CheckKind {
        match self.body {
            Body::Integration { .. } => CheckKind::Integration,
            Body::Probe { .. } => CheckKind::Probe,
        }
    }

    pub(crate) fn name(&self) -> &str {
        match &self.body {
            Body::Integration { spec, .. } => spec.name.as_str(),
            Body::Probe { spec, .. } => spec.name.as_str(),
        }
    }

    pub(crate) fn is(&self, kind: CheckKind, name: &str) -> bool {
        self.kind() == kind && self.name() == name
    }

    /// Whether it came from just this drop-in.
    pub(crate) fn has_integration(&self, other: &Integration) -> bool {
        matches!(&self.body, Body::Integration { spec, .. } if **spec == *other)
    }

    /// Whether it came from just this drop-in.
    pub(crate) fn has_probe(&self, other: &Probe) -> bool {
        matches!(&self.body, Body::Probe { spec, .. } if spec == other)
    }

    /// How often it runs; `None` for an integration without a health check.
    pub(crate) fn interval(&self) -> Option<Duration> {
        match &self.body {
            Body::Integration { spec, .. } => spec
                .is_checked()
                .then(|| spec.health_interval_secs.duration()),
            Body::Probe { spec, .. } => Some(spec.interval_secs.duration()),
        }
    }

    /// What to run for it; `None` for an integration without a health check.
    pub(crate) fn command(&self) -> Option<Command> {
        let (what, argv, user, timeout, split) = match &self.body {
            Body::Integration { spec, .. } => (
                "integration",
                spec.health()?,
                &spec.user,
                spec.health_timeout_secs.duration(),
                false,
            ),
            Body::Probe { spec, .. } => (
                "probe",
                spec.run()?,
                &spec.user,
                spec.timeout_secs.duration(),
                true,
            ),
        };
        Some(Command {
            what: format!("{what} {}", self.name()),
            argv,
            user: user.as_ref().map(|user| user.as_str().to_owned()),
            timeout,
            split,
            context: None,
            pays: None,
        })
    }

    /// Notes that it is healthy at that time since the boot, if it is so for the first time.
    pub(crate) fn note_health(&mut self, at: Duration) {
        if self.health() == Some(Health::Healthy) {
            self.first_healthy.get_or_insert(at);
        }
    }

    /// The guest was frozen: a verdict from before is none, and a probe's value is an old one. True
    /// if there is a verdict that is to be told.
    pub(crate) fn distrust(&mut self, at: Moment) -> bool {
        self.void = self.running;
        match &mut self.body {
            Body::Integration { spec, verdict, .. } => {
                self.last = None;
                if spec.is_checked() {
                    verdict.begin_anew(at);
                }
                spec.is_checked()
            }
            Body::Probe { stale, .. } => {
                *stale = self.last.is_some();
                false
            }
        }
    }

    /// The guest runs again after it was frozen: its services have their grace anew.
    pub(crate) fn renew_grace(&mut self, now: Duration) {
        if let Body::Integration {
            spec, grace_until, ..
        } = &mut self.body
        {
            *grace_until = now.saturating_add(spec.startup_grace_secs.duration());
        }
    }

    /// Whether nothing is known of its service, or less than was to be known by now.
    pub(crate) fn is_overdue(&self) -> bool {
        self.cut_short || self.last.is_none()
    }

    /// The run has ended in the middle of a sleep or a wake: it says nothing.
    pub(crate) fn cut_short(&mut self) {
        self.cut_short = true;
    }

    /// The run has ended. True if its outcome counts.
    pub(crate) fn ended(&mut self) -> bool {
        let run = self.running.take();
        self.void.take_if(|void| run == Some(*void)).is_none()
    }

    /// Takes the end of a run, at `now` on the monotonic clock, the moment `at`. True if the verdict,
    /// or how the check ended, changed.
    pub(crate) fn record(&mut self, ended: &Ended, now: Duration, at: Moment) -> bool {
        // Told when it is asked for.
        let mut last = ended.to_last_check(Timestamp(0));
        let changed = match &mut self.body {
            Body::Integration {
                spec,
                verdict,
                grace_until,
            } => {
                let before = verdict.health;
                let result = match &ended.end {
                    End::NotStarted { for_want: true, .. } => verdict::Result::NotCounted,
                    _ if ended.is_success() => verdict::Result::Success,
                    _ => verdict::Result::Failure,
                };
                let thresholds = Thresholds {
                    success: spec.success_threshold.count(),
                    failure: spec.failure_threshold.count(),
                    grace_until: *grace_until,
                };
                verdict.record(result, &thresholds, now, at);
                let outcome = |c: &LastCheck| (c.exit_code, c.signal.clone(), c.timed_out);
                let before_last = self.last.as_ref().map(|(_, last)| outcome(last));
                verdict.health != before || before_last != Some(outcome(&last))
            }
            Body::Probe {
                spec,
                ok,
                value,
                stale,
            } => {
                *stale = false;
                let read = if ended.is_success() {
                    read_value(spec.output, ended)
                } else {
                    Ok(Value::Null)
                };
                *ok = ended.is_success() && read.is_ok();
                *value = read.unwrap_or_else(|reason| {
                    last.output = format!("{reason}\n{}", last.output).trim_end().to_owned();
                    Value::Null
                });
                false
            }
        };
        self.last = Some((at.before(ended.duration), last));
        self.cut_short = false;
        changed
    }

    fn last_check(&self, timeline: &Timeline) -> Option<LastCheck> {
        self.last.as_ref().map(|(at, last)| LastCheck {
            at: timeline.shown(*at),
            ..last.clone()
        })
    }

    pub(crate) fn integration_status(&self, timeline: &Timeline) -> Option<IntegrationStatus> {
        let Body::Integration { spec, verdict, .. } = &self.body else {
            return None;
        };
        Some(IntegrationStatus {
            name: spec.name.as_str().to_owned(),
            health: verdict.health.into(),
            since: timeline.shown(verdict.since),
            consecutive_failures: verdict.consecutive_failures,
            checks: verdict.checks,
            failures: verdict.failures,
            first_healthy_secs: self.first_healthy.map(secs),
            last_check: self.last_check(timeline),
        })
    }

    pub(crate) fn probe_status(&self, timeline: &Timeline) -> Option<ProbeStatus> {
        let Body::Probe {
            spec,
            ok,
            value,
            stale,
        } = &self.body
        else {
            return None;
        };
        Some(ProbeStatus {
            name: spec.name.as_str().to_owned(),
            ok: *ok,
            value: value.clone(),
            stale: *stale,
            last_check: self.last_check(timeline),
        })
    }

    pub(crate) fn health(&self) -> Option<Health> {
        match &self.body {
            Body::Integration { verdict, .. } => Some(verdict.health),
            Body::Probe { .. } => None,
        }
    }
}

/// A probe's value from what it printed, or why there is none.
fn read_value(format: OutputFormat, ended: &Ended) -> Result<Value, String> {
    let text = ended.stdout.text();
    let text = text.trim();
    match format {
        OutputFormat::Text => Ok(Value::String(text.to_owned())),
        OutputFormat::Json if ended.stdout.truncated => {
            Err("no value: more JSON than the 4096 bytes that are kept".to_owned())
        }
        OutputFormat::Json if is_too_deep(text) => {
            Err("no value: the JSON is nested more than 32 levels deep".to_owned())
        }
        OutputFormat::Json => {
            serde_json::from_str(text).map_err(|error| format!("no value: not JSON: {error}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Now;
    use super::super::ended::Tail;
    use super::*;

    fn probe(output: &str, stdout: &str, code: i32) -> ProbeStatus {
        let spec = serde_json::json!({ "name": "p", "command": "x", "output": output });
        let spec = serde_json::from_value(spec).unwrap();
        let mut check = Check::probe(CheckId(1), spec);
        let mut out = Tail::default();
        out.push(stdout.as_bytes());
        let mut err = Tail::default();
        err.push(b"complaint");
        let ended = Ended {
            duration: Duration::ZERO,
            end: End::Exited(code),
            stdout: out,
            stderr: err,
        };
        let timeline = Timeline::new(Now {
            mono: Duration::ZERO,
            wall: Timestamp(0),
        });
        check.record(&ended, Duration::ZERO, timeline.moment());
        check.probe_status(&timeline).unwrap()
    }

    #[test]
    fn a_value_is_standard_output_alone_and_trimmed() {
        let text = probe("text", " 42%\n", 0);
        assert_eq!((text.ok, text.value), (true, Value::from("42%")));
        assert_eq!(text.last_check.unwrap().output, " 42%\ncomplaint");
        let json = probe("json", "{\"a\": [1, 2.5]}\n", 0);
        assert_eq!(
            (json.ok, json.value),
            (true, serde_json::json!({ "a": [1, 2.5] }))
        );
    }

    #[test]
    fn a_failed_probe_has_no_value() {
        let failed = probe("text", "42%", 1);
        assert_eq!((failed.ok, failed.value), (false, Value::Null));
        for output in [
            "{",
            "",
            "1 2",
            &"[".repeat(40),
            &format!("\"{}\"", "x".repeat(5000)),
        ] {
            let bad = probe("json", output, 0);
            assert_eq!((bad.ok, bad.value), (false, Value::Null), "{output}");
            let told = bad.last_check.unwrap().output;
            assert!(told.starts_with("no value: "), "{told}");
        }
    }
}
