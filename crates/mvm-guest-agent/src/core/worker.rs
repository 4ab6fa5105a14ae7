//! Idle or busy, from the signals of one sample.

use super::signs::Marks;
use super::timeline::{Moment, Timeline};
use mvm_protocol::Lenient;
use mvm_protocol::status::{BusySignal, Worker as Told, WorkerState};

/// What was read of the machine at one moment. `None` where the kernel does not tell.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Sample {
    /// The 1-minute load average.
    pub(crate) load1: Option<f64>,
    /// Threads that run or could.
    pub(crate) runnable: Option<u32>,
    /// How many CPUs were used since the last sample, or would have been but for the host's other
    /// VMs or a disk; checks taken out.
    pub(crate) work: Option<f64>,
    /// The share of all CPUs' time used since the last sample, 0 to 1, checks taken out.
    pub(crate) cpu: Option<f64>,
    /// The share of the last 10 s in which something waited for a CPU, 0 to 1.
    pub(crate) pressure: Option<f64>,
    /// How many execs, puts and gets are open.
    pub(crate) sessions: usize,
    /// Whether a file in `busy.d` holds the guest busy.
    pub(crate) inhibited: bool,
    /// By which a restore can be told.
    pub(crate) marks: Marks,
}

/// What counts of one sample. `None` where nothing is known.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Counted {
    /// The average load of the guest's own work: over the last minute, or since the wake if that is
    /// shorter.
    pub(crate) load: Option<f64>,
    /// The share of all CPUs' time used since the last sample, 0 to 1.
    pub(crate) cpu: Option<f64>,
    /// The share of the last 10 s in which something waited for a CPU, 0 to 1.
    pub(crate) pressure: Option<f64>,
}

/// Which signals count, and from where.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct BusyPolicy {
    /// From which load average, and from which share of CPU or pressure, the guest is busy.
    pub(crate) threshold: f64,
    /// The signals that count.
    pub(crate) signals: Vec<BusySignal>,
}

/// Whether the guest has work.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Worker {
    since: Moment,
    last_busy: Option<Moment>,
    /// The guest is idle if there is none.
    because: Vec<BusySignal>,
    /// What it is not to be put to sleep for, although it makes it no busier.
    held_by: Vec<BusySignal>,
    load1: f64,
    counted: Option<f64>,
    runnable: u32,
}

impl Worker {
    /// The worker before the first sample.
    pub(crate) fn unsampled(at: Moment) -> Self {
        Self {
            since: at,
            last_busy: None,
            because: Vec::new(),
            held_by: Vec::new(),
            load1: 0.0,
            counted: None,
            runnable: 0,
        }
    }

    /// A clone of the guest has begun to run: it has never been anything but idle.
    pub(crate) fn forget(&mut self, at: Moment) {
        self.since = at;
        self.last_busy = None;
        self.because.clear();
        self.held_by.clear();
    }

    /// As `status` tells it.
    pub(crate) fn told(&self, timeline: &Timeline) -> Told {
        let state = if self.because.is_empty() {
            WorkerState::Idle
        } else {
            WorkerState::Busy
        };
        Told {
            state: state.into(),
            since: timeline.shown(self.since),
            last_busy_at: self.last_busy.map(|at| timeline.shown(at)),
            because: self.because.iter().copied().map(Lenient::Known).collect(),
            held_by: self.held_by.iter().copied().map(Lenient::Known).collect(),
            load1: self.load1,
            load1_counted: self.counted,
            runnable: self.runnable,
        }
    }
}

impl BusyPolicy {
    /// Takes a sample and what counts of it, and says whether the worker's state or reasons changed.
    /// A signal that cannot be read does not make a guest busy.
    pub(crate) fn apply(
        &self,
        worker: &mut Worker,
        sample: &Sample,
        counted: &Counted,
        at: Moment,
    ) -> bool {
        let reaches = |share: Option<f64>| share.is_some_and(|share| share >= self.threshold);
        let mut because = Vec::new();
        // Each once, in this order, however they are given.
        for (signal, is_so) in [
            (BusySignal::Loadavg, reaches(counted.load)),
            (BusySignal::Cpu, reaches(counted.cpu)),
            (BusySignal::Pressure, reaches(counted.pressure)),
            (BusySignal::Session, sample.sessions > 0),
            (BusySignal::Inhibit, sample.inhibited),
        ] {
            if is_so && self.signals.contains(&signal) {
                because.push(signal);
            }
        }
        worker.load1 = sample.load1.unwrap_or(worker.load1);
        worker.runnable = sample.runnable.unwrap_or(worker.runnable);
        // As many digits as the kernel shows.
        worker.counted = counted.load.map(|load| (load * 100.0).round() / 100.0);
        let mut held_by = Vec::new();
        for (signal, holds) in [
            (BusySignal::Session, sample.sessions > 0),
            (BusySignal::Inhibit, sample.inhibited),
        ] {
            if holds && !self.signals.contains(&signal) {
                held_by.push(signal);
            }
        }
        if !because.is_empty() || !held_by.is_empty() {
            worker.last_busy = Some(at);
        }
        if because.is_empty() != worker.because.is_empty() {
            worker.since = at;
        }
        let changed = worker.because != because || worker.held_by != held_by;
        worker.because = because;
        worker.held_by = held_by;
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::Now;
    use mvm_protocol::Timestamp;
    use std::time::Duration;

    fn moment(second: u64) -> Moment {
        Moment::after(Duration::from_secs(second))
    }

    /// All of a sample counts.
    fn all_of(sample: &Sample) -> Counted {
        Counted {
            load: sample.load1,
            cpu: sample.cpu,
            pressure: sample.pressure,
        }
    }

    fn told(worker: &Worker) -> Told {
        worker.told(&Timeline::new(Now {
            mono: Duration::ZERO,
            wall: Timestamp(1_000_000),
        }))
    }

    fn because(signals: &[BusySignal], sample: Sample) -> Vec<BusySignal> {
        let policy = BusyPolicy {
            threshold: 0.1,
            signals: signals.to_vec(),
        };
        let mut worker = Worker::unsampled(moment(0));
        policy.apply(&mut worker, &sample, &all_of(&sample), moment(1));
        assert_eq!(
            told(&worker).state == WorkerState::Busy,
            !worker.because.is_empty()
        );
        worker.because
    }

    const ALL: [BusySignal; 5] = [
        BusySignal::Inhibit,
        BusySignal::Session,
        BusySignal::Pressure,
        BusySignal::Cpu,
        BusySignal::Loadavg,
    ];

    #[test]
    fn each_signal_alone_makes_busy_at_its_threshold() {
        let none = Sample::default();
        assert_eq!(because(&ALL, none), []);
        for (sample, signal) in [
            (
                Sample {
                    load1: Some(0.1),
                    ..none
                },
                BusySignal::Loadavg,
            ),
            (
                Sample {
                    cpu: Some(0.1),
                    ..none
                },
                BusySignal::Cpu,
            ),
            (
                Sample {
                    pressure: Some(0.1),
                    ..none
                },
                BusySignal::Pressure,
            ),
            (
                Sample {
                    sessions: 1,
                    ..none
                },
                BusySignal::Session,
            ),
            (
                Sample {
                    inhibited: true,
                    ..none
                },
                BusySignal::Inhibit,
            ),
        ] {
            assert_eq!(because(&ALL, sample), [signal]);
            assert_eq!(because(&[signal], sample), [signal]);
            let others: Vec<_> = ALL.into_iter().filter(|other| *other != signal).collect();
            assert_eq!(
                because(&others, sample),
                [],
                "a signal that is switched off"
            );
        }
        let below = Sample {
            load1: Some(0.09),
            cpu: Some(0.09),
            pressure: Some(0.09),
            ..none
        };
        assert_eq!(because(&ALL, below), []);
    }

    #[test]
    fn reasons_come_in_the_order_of_the_protocol() {
        let sample = Sample {
            load1: Some(1.0),
            inhibited: true,
            cpu: Some(1.0),
            ..Sample::default()
        };
        let expected = [BusySignal::Loadavg, BusySignal::Cpu, BusySignal::Inhibit];
        assert_eq!(because(&ALL, sample), expected);
    }

    #[test]
    fn what_is_switched_off_as_a_signal_holds_a_guest_all_the_same() {
        let policy = BusyPolicy {
            threshold: 0.1,
            signals: vec![BusySignal::Loadavg, BusySignal::Inhibit],
        };
        let mut worker = Worker::unsampled(moment(0));
        let apply = |worker: &mut Worker, sessions, inhibited, second| {
            let sample = Sample {
                sessions,
                inhibited,
                ..Sample::default()
            };
            policy.apply(worker, &sample, &all_of(&sample), moment(second))
        };
        assert!(apply(&mut worker, 1, false, 5), "it is a change");
        assert_eq!(told(&worker).state, WorkerState::Idle);
        assert_eq!(told(&worker).held_by, [BusySignal::Session]);
        assert_eq!(worker.last_busy, Some(moment(5)));
        assert!(apply(&mut worker, 0, true, 6));
        assert_eq!(told(&worker).state, WorkerState::Busy);
        assert!(told(&worker).held_by.is_empty(), "it counts already");
        assert!(apply(&mut worker, 0, false, 9));
        assert_eq!(
            (told(&worker).held_by, worker.last_busy),
            (Vec::new(), Some(moment(6)))
        );
    }

    #[test]
    fn last_busy_is_kept_and_since_changes_with_the_state() {
        let policy = BusyPolicy {
            threshold: 0.1,
            signals: ALL.to_vec(),
        };
        let mut worker = Worker::unsampled(moment(0));
        let apply = |worker: &mut Worker, sample: &Sample, second| {
            policy.apply(worker, sample, &all_of(sample), moment(second))
        };
        let busy = Sample {
            inhibited: true,
            ..Sample::default()
        };
        let busier = Sample {
            sessions: 1,
            ..busy
        };
        assert!(apply(&mut worker, &busy, 5));
        assert!(!apply(&mut worker, &busy, 6));
        assert!(apply(&mut worker, &busier, 7), "another reason is a change");
        assert_eq!(
            (worker.since, worker.last_busy),
            (moment(5), Some(moment(7)))
        );
        assert!(apply(&mut worker, &Sample::default(), 9));
        assert_eq!(
            (worker.since, worker.last_busy),
            (moment(9), Some(moment(7)))
        );
    }
}
