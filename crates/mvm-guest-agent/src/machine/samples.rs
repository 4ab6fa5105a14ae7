//! Reads the signals that tell idle from busy.

use super::inhibit::Inhibitors;
use super::proc::read_small;
use crate::core::signs::Marks;
use crate::core::worker::Sample;
use mvm_protocol::status::BusySignal;
use std::time::Duration;

/// What has to be remembered from one sample to the next.
#[derive(Debug)]
pub(crate) struct Sampler {
    signals: Vec<BusySignal>,
    inhibitors: Inhibitors,
    last: Option<Reading>,
}

/// What has been used until a moment on the monotonic clock.
#[derive(Debug, Clone, Copy)]
struct Reading {
    times: CpuTimes,
    checks: Duration,
    mono: Duration,
}

/// `/proc/stat`'s first line, in ticks of all CPUs together.
#[derive(Debug, Clone, Copy, PartialEq)]
struct CpuTimes {
    busy: u64,
    total: u64,
    /// Stolen by the host, or idle while a disk was waited for.
    waited: u64,
}

/// `USER_HZ`: 100 on every architecture that Rust's musl and glibc targets know.
const TICKS_PER_SEC: f64 = 100.0;

impl Sampler {
    /// Reads nothing but what `signals` need.
    pub(crate) fn new(signals: Vec<BusySignal>, inhibitors: Inhibitors) -> Self {
        Self {
            signals,
            inhibitors,
            last: None,
        }
    }

    /// Reads the signals. `checks` is the CPU time that the agent's own checks have used since its
    /// start, `mono` the monotonic clock.
    pub(crate) fn sample(&mut self, checks: Duration, mono: Duration) -> Sample {
        let uses = |signal| self.signals.contains(&signal);
        let pressure = uses(BusySignal::Pressure);
        let (cpu, work) = if uses(BusySignal::Cpu) || uses(BusySignal::Loadavg) {
            self.cpu(checks, mono)
        } else {
            (None, None)
        };
        let (load1, runnable) =
            read_small("/proc/loadavg").map_or((None, None), |text| parse_loadavg(&text));
        Sample {
            load1,
            runnable,
            work,
            cpu,
            pressure: if pressure {
                read_small("/proc/pressure/cpu")
                    .ok()
                    .and_then(|text| parse_pressure(&text))
            } else {
                None
            },
            // Counted by the sessions that serve exec, put and get; this build has none.
            sessions: 0,
            // Whether it counts or not: it holds the guest.
            inhibited: self.inhibitors.any(mono),
            // Read by who knows where they are.
            marks: Marks::default(),
        }
    }

    /// The share of CPU time used since the last reading, and how many CPUs were used or waited for.
    fn cpu(&mut self, checks: Duration, mono: Duration) -> (Option<f64>, Option<f64>) {
        let times = read_small("/proc/stat")
            .ok()
            .and_then(|text| parse_stat(&text));
        let now = times.map(|times| Reading {
            times,
            checks,
            mono,
        });
        match (std::mem::replace(&mut self.last, now), now) {
            (Some(last), Some(now)) => {
                let checks = now.checks.saturating_sub(last.checks);
                (share(last.times, now.times, checks), work(&last, &now))
            }
            _ => (None, None),
        }
    }
}

/// How many CPUs were used, stolen, or idle while a disk was waited for, between two readings, the
/// checks' own time taken out. That is told when a check has ended, so that it may be less than none.
fn work(last: &Reading, now: &Reading) -> Option<f64> {
    let used = |reading: &Reading| {
        let ticks = reading.times.busy.saturating_add(reading.times.waited);
        ticks as f64 / TICKS_PER_SEC - reading.checks.as_secs_f64()
    };
    let secs = now.mono.checked_sub(last.mono)?.as_secs_f64();
    (secs > 0.0).then(|| (used(now) - used(last)) / secs)
}

/// The share of CPU time used between two readings, the checks' own time taken out.
fn share(last: CpuTimes, now: CpuTimes, checks: Duration) -> Option<f64> {
    let total = now
        .total
        .checked_sub(last.total)
        .filter(|total| *total > 0)? as f64;
    let busy = now.busy.saturating_sub(last.busy) as f64 - checks.as_secs_f64() * TICKS_PER_SEC;
    Some((busy / total).clamp(0.0, 1.0))
}

/// `0.02 0.05 0.01 1/123 4567` (proc_loadavg(5)).
fn parse_loadavg(text: &str) -> (Option<f64>, Option<u32>) {
    let mut words = text.split_whitespace();
    let load1 = words.next().and_then(|word| word.parse().ok());
    let runnable = words
        .nth(2)
        .and_then(|word| word.split('/').next()?.parse().ok());
    (load1, runnable)
}

/// `cpu user nice system idle iowait irq softirq steal …` (proc_stat(5)). Time stolen by the host is
/// neither this guest's work nor its rest, so it is no part of the total.
fn parse_stat(text: &str) -> Option<CpuTimes> {
    let mut words = text
        .lines()
        .next()?
        .strip_prefix("cpu ")?
        .split_whitespace();
    let mut next = || words.next().and_then(|word| word.parse::<u64>().ok());
    let (user, nice, system, idle) = (next()?, next()?, next()?, next()?);
    let mut next = || next().unwrap_or(0);
    let (iowait, irq, softirq, steal) = (next(), next(), next(), next());
    let busy = user + nice + system + irq + softirq;
    Some(CpuTimes {
        busy,
        total: busy + idle + iowait,
        waited: iowait + steal,
    })
}

/// `some avg10=0.12 avg60=… avg300=… total=…`, in percent (Documentation/accounting/psi.rst).
fn parse_pressure(text: &str) -> Option<f64> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let avg10 = some
        .split_whitespace()
        .find_map(|word| word.strip_prefix("avg10="))?;
    avg10.parse::<f64>().ok().map(|percent| percent / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_read() {
        assert_eq!(
            parse_loadavg("0.52 0.58 0.59 3/592 12345\n"),
            (Some(0.52), Some(3))
        );
        assert_eq!(parse_loadavg(""), (None, None));
        let stat = "cpu  10 1 5 80 4 2 3 7 0 0\ncpu0 1 2 3\n";
        assert_eq!(
            parse_stat(stat),
            Some(CpuTimes {
                busy: 21,
                total: 105,
                waited: 11
            })
        );
        assert_eq!(parse_stat("intr 1"), None);
        let psi = "some avg10=12.50 avg60=1.00 avg300=0.00 total=1\nfull avg10=99.00 total=0\n";
        assert_eq!(parse_pressure(psi), Some(0.125));
    }

    #[test]
    fn cpu_time_of_checks_is_subtracted() {
        let (last, now) = (
            CpuTimes {
                busy: 100,
                total: 1000,
                waited: 0,
            },
            CpuTimes {
                busy: 150,
                total: 1500,
                waited: 0,
            },
        );
        assert_eq!(share(last, now, Duration::ZERO), Some(0.1));
        assert_eq!(share(last, now, Duration::from_millis(400)), Some(0.02));
        assert_eq!(share(last, now, Duration::from_secs(9)), Some(0.0));
        assert_eq!(share(now, now, Duration::ZERO), None);
    }

    #[test]
    fn work_is_what_ran_waited_or_was_kept_from_running() {
        let at = |secs, busy, waited, checks_ms| Reading {
            times: CpuTimes {
                busy,
                total: 0,
                waited,
            },
            checks: Duration::from_millis(checks_ms),
            mono: Duration::from_secs(secs),
        };
        let work = |last: &Reading, now: &Reading| {
            work(last, now).map(|work| (work * 1000.0).round() / 1000.0)
        };
        let began = at(10, 100, 10, 0);
        assert_eq!(work(&began, &at(15, 600, 10, 0)), Some(1.0), "one CPU");
        assert_eq!(work(&began, &at(15, 2100, 10, 0)), Some(4.0), "four");
        assert_eq!(work(&began, &at(15, 100, 260, 0)), Some(0.5), "a disk");
        assert_eq!(
            work(&began, &at(15, 150, 10, 500)),
            Some(0.0),
            "its own checks"
        );
        assert_eq!(
            work(&began, &at(15, 100, 10, 500)),
            Some(-0.1),
            "whose time came with the last reading"
        );
        assert_eq!(
            work(&began, &at(10, 100, 10, 0)),
            None,
            "no time has passed"
        );
    }

    #[test]
    fn this_machine_can_be_sampled() {
        let dir = tempfile::tempdir().unwrap();
        let inhibitors = Inhibitors::new(dir.path().to_owned());
        let signals = vec![BusySignal::Loadavg, BusySignal::Cpu, BusySignal::Inhibit];
        let mut sampler = Sampler::new(signals, inhibitors);
        let sample = sampler.sample(Duration::ZERO, Duration::ZERO);
        assert!(sample.load1.is_some() && sample.runnable.is_some());
        assert_eq!(
            (sample.cpu, sample.inhibited),
            (None, false),
            "no share before a second reading"
        );
    }
}
