//! Idle or busy in a simulation of the kernel's load average, over days and over a wake.

use super::ended::{End, Ended, Tail};
use super::lifecycle::{Done, Journal};
use super::sleeping::Work;
use super::worker::Sample;
use super::*;
use mvm_protocol::drop_in;
use mvm_protocol::lifecycle::{Outcome, Wake};
use mvm_protocol::status::{BusySignal, Worker, WorkerState};
use proptest::prelude::*;

/// The kernel's 1-minute load average (kernel/sched/loadavg.c), as `/proc/loadavg` shows it.
struct Kernel {
    /// In 2048ths.
    average: u64,
    next: Duration,
}

/// 5 s and one tick, at 250 ticks a second.
const PERIOD: Duration = Duration::from_millis(5004);

impl Kernel {
    const ONE: u64 = 2048;

    /// Takes the samples that are due by then.
    fn pass(&mut self, until: Duration, active: u64) {
        while self.next <= until {
            let active = active * Self::ONE;
            let up = if active >= self.average {
                Self::ONE - 1
            } else {
                0
            };
            self.average = (self.average * 1884 + active * (Self::ONE - 1884) + up) / Self::ONE;
            self.next += PERIOD;
        }
    }

    fn shown(&self) -> f64 {
        ((self.average + Self::ONE / 200) * 100 / Self::ONE) as f64 / 100.0
    }
}

/// CPU time as `/proc/stat` counts it: whoever runs when a tick comes has run for all of it.
const TICK: Duration = Duration::from_millis(4);

fn ticks(from: Duration, to: Duration) -> Duration {
    let at = |time: Duration| u32::try_from(time.as_millis() / TICK.as_millis()).unwrap();
    TICK * (at(to) - at(from))
}

/// A guest: its core, its kernel, and what runs in it.
struct Guest {
    core: Core,
    kernel: Kernel,
    now: Duration,
    /// What each check takes, all of it on a CPU.
    check: Duration,
    /// The checks that run: since when, and the CPU time that they have had.
    runs: Vec<(RunId, Duration, Duration)>,
    /// Programs that do nothing but compute.
    programs: u64,
    cpus: u64,
    /// CPU time of the guest as its kernel has counted it, and of the agent's own checks.
    counted: Duration,
    own: Duration,
    /// What of these the last sample has read, and when.
    read: (Duration, Duration, Duration),
    /// How often it was sampled, and busy then.
    samples: usize,
    busy: usize,
    /// The highest load average that was read.
    highest: f64,
}

impl Guest {
    /// With as many integrations as that, each checked every five seconds.
    fn new(integrations: usize, check: Duration, phase: Duration) -> Self {
        let settings = Settings {
            max_concurrent_checks: 32,
            sample_interval: Duration::from_secs(5),
            busy: BusyPolicy {
                threshold: 0.1,
                signals: vec![BusySignal::Loadavg],
            },
            seed: 7,
            since_boot: Duration::ZERO,
        };
        let now = Duration::from_secs(1000);
        let clocks = clocks(now);
        let mut guest = Self {
            core: Core::new(settings, Journal::default(), clocks),
            kernel: Kernel {
                average: 0,
                next: now + phase,
            },
            now,
            check,
            runs: Vec::new(),
            programs: 0,
            cpus: 1,
            counted: Duration::ZERO,
            own: Duration::ZERO,
            read: (now, Duration::ZERO, Duration::ZERO),
            samples: 0,
            busy: 0,
            highest: 0.0,
        };
        guest.event(Event::Tick);
        let integrations = (0..integrations)
            .map(|n| {
                let checkpoint = if n == 0 {
                    r#","checkpoint_cmd":"x""#
                } else {
                    ""
                };
                let text = format!(
                    r#"{{"name":"i{n}","health_cmd":"x","health_interval_secs":5{checkpoint}}}"#
                );
                drop_in::read(text.as_bytes()).unwrap()
            })
            .collect();
        guest.event(Event::DropInsLoaded(Ok(Loaded {
            integrations,
            ..Loaded::default()
        })));
        guest
    }

    fn event(&mut self, event: Event) {
        for action in self.core.handle(event, clocks(self.now)) {
            match action {
                Action::Run(run, _) => self.runs.push((run, self.now, Duration::ZERO)),
                Action::Sample => {
                    let sample = self.sample();
                    self.event(Event::Sampled(sample));
                    self.samples += 1;
                    self.busy += usize::from(self.is_busy());
                }
                Action::Step(step) => {
                    if let Work::Command(..) = step.work {
                        continue;
                    }
                    self.step_done();
                }
                _ => {}
            }
        }
    }

    /// What the system does takes no time here; a checkpoint command ends when the test says so.
    fn step_done(&mut self) {
        self.event(Event::StepDone(Done {
            outcome: Outcome::Ok,
            duration_ms: 0,
            detail: None,
        }));
    }

    fn sample(&mut self) -> Sample {
        let (then, counted, own) =
            std::mem::replace(&mut self.read, (self.now, self.counted, self.own));
        let secs = self.now.abs_diff(then).as_secs_f64();
        let used =
            self.counted.abs_diff(counted).as_secs_f64() - self.own.abs_diff(own).as_secs_f64();
        let load1 = self.kernel.shown();
        self.highest = self.highest.max(load1);
        Sample {
            load1: Some(load1),
            work: (secs > 0.0).then(|| used / secs),
            ..Sample::default()
        }
    }

    fn worker(&self) -> Worker {
        self.core.status(Duration::ZERO, clocks(self.now)).worker
    }

    fn is_busy(&self) -> bool {
        self.worker().state == WorkerState::Busy
    }

    /// Goes to sleep with a checkpoint command that computes for that long.
    fn sleep(&mut self, checkpoint: Duration) {
        let asked = SleepPrep::default();
        let token = Token::made_up(1);
        self.event(Event::SleepAsked(WaiterId(1), asked, token));
        // Those that are running end first.
        self.pass(self.check);
        self.programs += 1;
        self.pass(checkpoint);
        self.programs -= 1;
        self.step_done();
        assert_eq!(self.core.lifecycle.phase(), Phase::Ready);
    }

    fn wake(&mut self, clone: bool) {
        let wake = Wake {
            clone,
            ..Wake::default()
        };
        let fingerprint = 1;
        let asked = Box::new(WakeAsked { wake, fingerprint });
        self.event(Event::WakeAsked(WaiterId(2), asked));
        assert_eq!(self.core.lifecycle.phase(), Phase::Running);
    }

    /// Lets time pass until so many samples more were read.
    fn pass_samples(&mut self, samples: usize) {
        let until = self.samples + samples;
        while self.samples < until {
            self.pass(Duration::from_millis(100));
        }
    }

    fn go_to(&mut self, to: Duration) {
        let running = self.runs.len() as u64 + self.programs;
        self.kernel.pass(to, running);
        let share = self.cpus.min(running) as f64 / running.max(1) as f64;
        self.counted += ticks(self.now, to).mul_f64(share * running as f64);
        for (_, _, had) in &mut self.runs {
            *had += to.abs_diff(self.now).mul_f64(share);
        }
        self.now = to;
    }

    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            let ends = self
                .runs
                .iter()
                .map(|(_, began, _)| *began + self.check)
                .min();
            let next = self.core.deadline().into_iter().chain(ends).min().unwrap();
            if next > until {
                break;
            }
            self.go_to(next);
            if ends == Some(next) {
                let (run, _, had) = self.runs.remove(0);
                self.own += had;
                let (stdout, stderr) = (Tail::default(), Tail::default());
                let duration = self.check;
                let ended = Ended {
                    duration,
                    end: End::Exited(0),
                    stdout,
                    stderr,
                };
                self.event(Event::RunEnded(run, ended));
            } else {
                self.event(Event::Tick);
            }
        }
        self.go_to(until);
    }
}

fn clocks(mono: Duration) -> Now {
    let wall = Timestamp(i64::try_from(mono.as_millis()).unwrap());
    Now { mono, wall }
}

const WEEK: Duration = Duration::from_hours(24 * 7);
const CHECK: Duration = Duration::from_millis(33);

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

#[test]
fn an_idle_guest_is_never_busy_by_its_own_checks() {
    let mut guest = Guest::new(1, CHECK, Duration::from_millis(2500));
    guest.pass(WEEK);
    assert!(guest.samples > 100_000);
    assert!(guest.highest >= 0.1, "no check was met at all");
    assert_eq!(guest.busy, 0, "of {} samples", guest.samples);
}

/// Without what the agent knows of its own checks: the load average that the kernel shows.
#[test]
fn no_check_marches_in_step_with_the_kernels_looks() {
    let mut guest = Guest::new(1, CHECK, Duration::from_millis(2500));
    guest.pass(WEEK);
    // From start to start of each check to the dot it is 0.48.
    assert!(guest.highest < 0.4, "{}", guest.highest);
}

#[test]
fn work_is_seen_beside_checks() {
    let mut guest = Guest::new(10, CHECK, Duration::from_millis(2500));
    guest.pass(secs(600));
    assert_eq!(guest.busy, 0);
    guest.programs = 1;
    guest.pass(secs(20));
    let worker = guest.worker();
    assert!(guest.is_busy(), "{worker:?}");
    guest.programs = 0;
    guest.pass(secs(240));
    let worker = guest.worker();
    assert!(!guest.is_busy(), "{worker:?}");
}

#[test]
fn a_checkpoint_makes_no_clone_busy_and_its_golden_guest_neither() {
    for clone in [false, true] {
        let mut guest = Guest::new(1, CHECK, secs(1));
        guest.pass(secs(100));
        let idle = guest.worker();
        guest.sleep(secs(10));
        assert!(guest.kernel.shown() > 0.1, "{}", guest.kernel.shown());
        guest.wake(clone);
        guest.pass(secs(300));
        assert_eq!(guest.busy, 0);
        let worker = guest.worker();
        assert_eq!(worker.last_busy_at, None);
        if !clone {
            assert_eq!(worker.since, idle.since, "it was idle all along");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(300)
    })]

    #[test]
    fn a_clone_is_as_busy_as_it_is_itself(
        load in 102_u64..16384, cpus in 1_u64..=16, phase in 0_u64..5004,
        checks in 0_usize..10, check in 5_u64..100, works in any::<bool>(),
    ) {
        let mut guest = Guest::new(checks.max(1), Duration::from_millis(check), Duration::ZERO);
        guest.cpus = cpus;
        guest.pass(secs(20));
        guest.sleep(secs(10));
        guest.kernel = Kernel {
            // 0.05 to 8
            average: load,
            next: guest.now + Duration::from_millis(phase),
        };
        let before = guest.samples;
        guest.wake(true);
        prop_assert!(guest.samples > before && !guest.is_busy(), "its first sample");
        let busy = guest.busy;
        if works {
            guest.programs = 1;
            guest.pass_samples(1);
            prop_assert!(guest.is_busy(), "its next sample: {:?}", guest.worker());
            guest.pass_samples(12);
            prop_assert_eq!(guest.busy, busy + 13, "{:?}", guest.worker());
        } else {
            guest.pass_samples(60);
            prop_assert_eq!(guest.busy, busy, "{:?}", guest.worker());
        }
    }
}
