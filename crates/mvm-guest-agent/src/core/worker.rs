//! Idle or busy, from the signals of one sample.

use mvm_protocol::Lenient;
use mvm_protocol::Timestamp;
use mvm_protocol::status::{BusySignal, Worker, WorkerState};

/// What was read of the machine at one moment. `None` where the kernel does not tell.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Sample {
    /// The 1-minute load average.
    pub(crate) load1: Option<f64>,
    /// Threads that run or could.
    pub(crate) runnable: Option<u32>,
    /// The share of all CPUs' time used since the last sample, 0 to 1, checks taken out.
    pub(crate) cpu: Option<f64>,
    /// The share of the last 10 s in which something waited for a CPU, 0 to 1.
    pub(crate) pressure: Option<f64>,
    /// How many execs, puts and gets are open.
    pub(crate) sessions: usize,
    /// Whether a file in `busy.d` holds the guest busy.
    pub(crate) inhibited: bool,
}

/// Which signals count, and from where.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct BusyPolicy {
    /// From which load average, and from which share of CPU or pressure, the guest is busy.
    pub(crate) threshold: f64,
    /// The signals that count.
    pub(crate) signals: Vec<BusySignal>,
}

impl BusyPolicy {
    /// The worker before the first sample.
    pub(crate) fn unsampled(at: Timestamp) -> Worker {
        Worker {
            state: WorkerState::Idle.into(),
            since: at,
            last_busy_at: None,
            because: Vec::new(),
            load1: 0.0,
            runnable: 0,
        }
    }

    /// Takes a sample, and says whether the worker's state or reasons changed. A signal that
    /// cannot be read does not make a guest busy.
    pub(crate) fn apply(&self, worker: &mut Worker, sample: &Sample, at: Timestamp) -> bool {
        let reaches = |share: Option<f64>| share.is_some_and(|share| share >= self.threshold);
        let mut because: Vec<BusySignal> = self
            .signals
            .iter()
            .copied()
            .filter(|signal| match signal {
                BusySignal::Loadavg => reaches(sample.load1),
                BusySignal::Cpu => reaches(sample.cpu),
                BusySignal::Pressure => reaches(sample.pressure),
                BusySignal::Session => sample.sessions > 0,
                BusySignal::Inhibit => sample.inhibited,
            })
            .collect();
        because.sort_unstable();
        because.dedup();
        worker.load1 = sample.load1.unwrap_or(worker.load1);
        worker.runnable = sample.runnable.unwrap_or(worker.runnable);
        let state = if because.is_empty() {
            WorkerState::Idle
        } else {
            WorkerState::Busy
        };
        if state == WorkerState::Busy {
            worker.last_busy_at = Some(at);
        }
        let changed = worker.state != state || worker.because != because;
        if worker.state != state {
            worker.state = state.into();
            worker.since = at;
        }
        worker.because = because.into_iter().map(Lenient::Known).collect();
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn because(signals: &[BusySignal], sample: Sample) -> Vec<BusySignal> {
        let policy = BusyPolicy {
            threshold: 0.1,
            signals: signals.to_vec(),
        };
        let mut worker = BusyPolicy::unsampled(Timestamp(0));
        policy.apply(&mut worker, &sample, Timestamp(1));
        assert_eq!(
            worker.state == WorkerState::Busy,
            !worker.because.is_empty()
        );
        let because = worker.because.into_iter();
        because.filter_map(Lenient::known).collect()
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
    fn last_busy_is_kept_and_since_changes_with_the_state() {
        let policy = BusyPolicy {
            threshold: 0.1,
            signals: ALL.to_vec(),
        };
        let mut worker = BusyPolicy::unsampled(Timestamp(0));
        let busy = Sample {
            inhibited: true,
            ..Sample::default()
        };
        let busier = Sample {
            sessions: 1,
            ..busy
        };
        assert!(policy.apply(&mut worker, &busy, Timestamp(5)));
        assert!(!policy.apply(&mut worker, &busy, Timestamp(6)));
        assert!(
            policy.apply(&mut worker, &busier, Timestamp(7)),
            "another reason is a change"
        );
        assert_eq!(
            (worker.since, worker.last_busy_at),
            (Timestamp(5), Some(Timestamp(7)))
        );
        assert!(policy.apply(&mut worker, &Sample::default(), Timestamp(9)));
        assert_eq!(
            (worker.since, worker.last_busy_at),
            (Timestamp(9), Some(Timestamp(7)))
        );
    }
}
