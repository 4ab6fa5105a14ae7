//! Which of the kernel's figures are the guest's own work.
//!
//! Two things make a load that is nobody's work:
//!
//! - **What the guest came with.** After a wake the load average is still that of the checkpoint,
//!   before the snapshot. It goes down by a known part each time that the kernel looks; what is above
//!   that has come since. Divided by the weight that this time has by now in an average over a
//!   minute it is the average load since the wake: a program that computes shows as 1 at the first
//!   look, where the kernel's own figure would take a minute.
//! - **The agent's own checks.** The kernel looks every five seconds at what runs in that instant, so
//!   a check of 33 ms that is met a few times shows as a load of a half. So the agent keeps a second
//!   average that cannot be met so: of the CPU time that was used, waited for, or spent waiting for
//!   disks, its checks' taken out.
//!
//! The lesser of the two counts.

use super::worker::{Counted, Sample};
use std::time::Duration;

/// By which the kernel's 1-minute load average goes down at each look, the share of it that is not
/// new (`EXP_1` of include/linux/sched/loadavg.h).
const KEPT: f64 = 1884.0 / 2048.0;

/// Between two looks: 5 s and a tick, of a kernel with the longest tick, 10 ms.
const LOOK: Duration = Duration::from_millis(5010);

/// `/proc/loadavg` has two digits: the difference of two figures is true to that.
const EXACT_TO: f64 = 0.01;

/// Over which time the averages go: of the load, and of the pressure.
const LOAD_SECS: f64 = 60.0;
const PRESSURE_SECS: f64 = 10.0;

/// How old the kernel's figure of the pressure may be.
const PRESSURE_LATE_SECS: f64 = 2.0;

/// What the figures are compared with.
#[derive(Debug, Default)]
pub(crate) struct Baseline {
    /// The last sample: when it came, and its load.
    last: Option<(Duration, f64)>,
    /// The guest has woken, and no sample has come since.
    woken: bool,
    /// What the guest came with; nothing for one that has not slept.
    came_with: Option<CameWith>,
    /// The average of the CPU time that was used and waited for.
    work: Option<f64>,
    /// The share of that average that is about the time before it began.
    work_unknown: f64,
}

#[derive(Debug)]
struct CameWith {
    since: Duration,
    load: f64,
    pressure: f64,
    /// How often the kernel has looked since.
    looks: u32,
}

impl Baseline {
    /// The guest has woken: the next sample is what it came with.
    pub(crate) fn woke(&mut self) {
        self.woken = true;
    }

    /// Takes a sample that was read at `mono`, and says what of it counts.
    pub(crate) fn take(&mut self, sample: &Sample, mono: Duration) -> Counted {
        let load = sample.load1.unwrap_or_default();
        let pressure = sample.pressure.unwrap_or_default();
        let last = self.last.replace((mono, load));
        if std::mem::take(&mut self.woken) {
            self.came_with = Some(CameWith {
                since: mono,
                load,
                pressure,
                looks: 0,
            });
            self.work = sample.work.map(|_| 0.0);
            self.work_unknown = 1.0;
            return Counted {
                load: sample.load1.map(|_| 0.0),
                ..Counted::default()
            };
        }
        let Some((before, load_before)) = last else {
            // What was before the agent may well have been work.
            self.work = sample.load1;
            return Counted {
                load: sample.load1,
                cpu: sample.cpu,
                pressure: sample.pressure,
            };
        };
        let passed = mono.saturating_sub(before);
        let work = self.work(sample.work, passed.as_secs_f64());
        let looked = passed >= LOOK || load.to_bits() != load_before.to_bits();
        let above = self
            .came_with
            .as_mut()
            .map_or(Some(load), |came_with| came_with.above(load, mono, looked));
        let counted = match (above, work) {
            (Some(above), Some(work)) => Some(above.min(work)),
            (above, work) => above.or(work),
        };
        let pressure_then = self.came_with.as_ref().map_or(0.0, |came_with| {
            let passed = mono.saturating_sub(came_with.since).as_secs_f64();
            came_with.pressure * left((passed - PRESSURE_LATE_SECS).max(0.0) / PRESSURE_SECS)
        });
        Counted {
            load: sample.load1.and(counted),
            cpu: sample.cpu,
            pressure: sample.pressure.map(|now| (now - pressure_then).max(0.0)),
        }
    }

    /// The average of the CPU time with that of the last `passed` seconds.
    fn work(&mut self, since_last: Option<f64>, passed: f64) -> Option<f64> {
        let kept = left(passed / LOAD_SECS);
        let new = since_last?;
        let average = self.work.unwrap_or_default() * kept + new * (1.0 - kept);
        self.work = Some(average);
        self.work_unknown *= kept;
        // Less than what one look of the kernel's weighs is not taken for more.
        let weight = (1.0 - self.work_unknown).max(1.0 - KEPT);
        Some((average / weight).max(0.0))
    }
}

impl CameWith {
    /// The average load since the wake; nothing before the kernel has looked.
    fn above(&mut self, load: f64, mono: Duration, looked: bool) -> Option<f64> {
        let passed = mono.saturating_sub(self.since);
        // As many as there were for sure, or one more.
        let sure = passed.as_millis() / LOOK.as_millis();
        let sure = u32::try_from(sure).unwrap_or(u32::MAX);
        let looks = self.looks.saturating_add(looked.into());
        self.looks = looks.clamp(sure, sure.saturating_add(1));
        if self.looks == 0 {
            return None;
        }
        let old = KEPT.powi(i32::try_from(self.looks).unwrap_or(i32::MAX));
        let new = load - self.load * old - EXACT_TO * old;
        Some((new / (1.0 - old)).max(0.0))
    }
}

/// What is left of an average after so many times the time over which it goes: nearly e to the minus
/// `times`.
fn left(times: f64) -> f64 {
    1.0 / (1.0 + times + times * times / 2.0 + times * times * times / 6.0)
}
