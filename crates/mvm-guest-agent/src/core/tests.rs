//! Stories of the whole core, told with events and times.

mod after_a_freeze;
mod loading;
mod of_the_boot;
mod standing_still;

use super::ended::{End, Tail};
use super::lifecycle::Journal;
use super::sleeping::Work;
use super::*;
use mvm_protocol::drop_in;
use mvm_protocol::lifecycle::Wake;
use mvm_protocol::status::{BusySignal, Health, Status};

/// A core, the clock, and the runs that the core has begun.
pub(super) struct Story {
    pub(super) core: Core,
    now: Now,
    begun: Vec<(RunId, String)>,
    published: Vec<Change>,
    pub(super) answers: Vec<(WaiterId, Answer)>,
    loads: usize,
    samples: usize,
    killed: Vec<RunId>,
    pub(super) steps: Vec<Work>,
    pub(super) dev: Vec<Action>,
}

impl Story {
    pub(super) fn new(places: usize) -> Self {
        Self::of(Journal::default(), places)
    }

    /// One of an agent that finds that journal.
    pub(super) fn of(journal: Journal, places: usize) -> Self {
        let busy = BusyPolicy {
            threshold: 0.1,
            signals: vec![BusySignal::Loadavg, BusySignal::Session],
        };
        let sample_interval = Duration::from_secs(5);
        let settings = Settings {
            max_concurrent_checks: places,
            sample_interval,
            busy,
            seed: 7,
            since_boot: Duration::from_secs(1000),
        };
        let now = Now {
            mono: Duration::from_secs(1000),
            wall: Timestamp(0),
        };
        let (begun, published, answers, killed) = Default::default();
        let core = Core::new(settings, journal, now);
        let mut story = Self {
            core,
            now,
            begun,
            published,
            answers,
            loads: 0,
            samples: 0,
            killed,
            steps: Vec::new(),
            dev: Vec::new(),
        };
        story.event(Event::Tick);
        story
    }

    pub(super) fn event(&mut self, event: Event) {
        for action in self.core.handle(event, self.now) {
            match action {
                Action::Run(run, command) => self.begun.push((run, command.what)),
                Action::Kill(run) => self.killed.push(run),
                Action::Sample => self.samples += 1,
                Action::LoadDropIns => self.loads += 1,
                Action::Publish(change) => self.published.push(change),
                Action::Answer(waiter, answer) => self.answers.push((waiter, *answer)),
                Action::Step(step) => self.steps.push(step.work),
                Action::Keep(_) | Action::CancelStep | Action::Woke => {}
                action => self.dev.push(action),
            }
        }
    }

    pub(super) fn load(&mut self, integrations: &[(&str, &str)]) {
        let integrations = integrations
            .iter()
            .map(|(name, more)| {
                let text = format!("{{\"name\":\"{name}\",\"health_cmd\":\"x\"{more}}}");
                drop_in::read(text.as_bytes()).unwrap()
            })
            .collect();
        self.event(Event::DropInsLoaded(Ok(Loaded {
            integrations,
            ..Loaded::default()
        })));
    }

    /// Lets time pass, deadline by deadline.
    pub(super) fn pass(&mut self, time: Duration) {
        let until = self.now.mono + time;
        loop {
            let deadline = self.core.deadline().unwrap();
            assert!(
                deadline > self.now.mono,
                "a deadline that has passed would spin"
            );
            if deadline > until {
                break;
            }
            self.at(deadline);
            self.event(Event::Tick);
        }
        self.at(until);
    }

    fn at(&mut self, mono: Duration) {
        // Each clock is exact to its own digits: the one must not lag behind by what is cut off.
        let ahead = mono.as_millis() - self.now.mono.as_millis();
        let ahead = i64::try_from(ahead).unwrap();
        self.now = Now {
            mono,
            wall: Timestamp(self.now.wall.0 + ahead),
        };
    }

    fn end(&mut self, end: End) {
        let (run, _) = self.begun.remove(0);
        let (stdout, stderr) = (Tail::default(), Tail::default());
        let ended = Ended {
            duration: Duration::ZERO,
            end,
            stdout,
            stderr,
        };
        self.event(Event::RunEnded(run, ended));
    }

    fn begun(&self) -> Vec<&str> {
        self.begun.iter().map(|(_, what)| what.as_str()).collect()
    }

    fn health(&self) -> Health {
        self.status().health.known().unwrap()
    }

    pub(super) fn status(&self) -> Status {
        self.core.status(Duration::ZERO, self.now)
    }
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn at_its_start_the_core_reads_signals_and_drop_ins() {
    let mut story = Story::new(4);
    assert_eq!((story.loads, story.samples), (1, 1));
    // What there is to be checked is not known yet.
    assert_eq!(story.health(), Health::Starting);
    story.load(&[]);
    assert_eq!(story.health(), Health::Healthy);
}

#[test]
fn an_idle_core_wakes_for_its_samples_alone() {
    let mut story = Story::new(4);
    story.load(&[]);
    story.pass(secs(60));
    assert_eq!(story.samples, 1 + 12);
}

#[test]
fn checks_start_at_once_a_bounded_number_together() {
    let mut story = Story::new(2);
    story.load(&[("a", ""), ("b", ""), ("c", "")]);
    assert_eq!(story.begun(), ["integration a", "integration b"]);
    assert_eq!(story.health(), Health::Starting);
    story.end(End::Exited(0));
    assert_eq!(story.begun(), ["integration b", "integration c"]);
    story.end(End::Exited(1));
    story.end(End::Exited(0));
    assert_eq!(story.health(), Health::Unhealthy);
    story.pass(secs(29));
    assert_eq!(story.begun(), [""; 0]);
    // Within a second of its slot.
    story.pass(secs(2));
    assert_eq!(story.begun().len(), 2);
}

#[test]
fn a_clock_jump_of_a_year_causes_no_burst_and_no_verdict() {
    let mut story = Story::new(8);
    story.load(&[("a", ",\"health_interval_secs\":1")]);
    story.end(End::Exited(0));
    story.now.wall = Timestamp(-31_536_000_000);
    story.event(Event::Tick);
    assert_eq!((story.begun(), story.health()), (vec![], Health::Healthy));
    // Nor does one of the monotonic clock, which some VMMs let go on while the guest stands still:
    // one check, not a year's.
    story.now.mono += secs(31_536_000);
    story.event(Event::Tick);
    story.pass(secs(1));
    assert_eq!(story.begun(), ["integration a"]);
    story.end(End::Exited(0));
    assert_eq!((story.begun(), story.health()), (vec![], Health::Healthy));
}

#[test]
fn a_requested_check_reports_a_run_that_began_after_the_request() {
    let mut story = Story::new(4);
    story.load(&[("a", "")]);
    let asked = request::Check {
        kind: CheckKind::Integration,
        name: "a".into(),
    };
    story.event(Event::CheckAsked(WaiterId(1), asked.clone()));
    story.event(Event::CheckAsked(WaiterId(2), asked));
    assert_eq!(story.begun().len(), 1, "never two at once");
    story.end(End::Exited(1));
    assert!(
        story.answers.is_empty(),
        "that run began before anybody asked"
    );
    story.end(End::Exited(0));
    let healthy = |answer: &Answer| match answer {
        Answer::Checked(checked) => checked
            .integration
            .as_ref()
            .unwrap()
            .health
            .known()
            .unwrap(),
        other => panic!("{other:?}"),
    };
    let answers: Vec<_> = story
        .answers
        .iter()
        .map(|(id, it)| (id.0, healthy(it)))
        .collect();
    assert_eq!(answers, [(1, Health::Healthy), (2, Health::Healthy)]);
}

#[test]
fn a_burst_of_changes_is_one_load_once_it_is_quiet() {
    let mut story = Story::new(4);
    story.load(&[]);
    for _ in 0..10 {
        story.event(Event::DropInsChanged);
        story.pass(Duration::from_millis(100));
    }
    assert_eq!(story.loads, 1);
    story.pass(Duration::from_millis(200));
    assert_eq!(story.loads, 2);
}

#[test]
fn endless_changes_do_not_postpone_the_load_for_ever() {
    let mut story = Story::new(4);
    story.load(&[]);
    for _ in 0..60 {
        story.event(Event::DropInsChanged);
        story.pass(Duration::from_millis(100));
    }
    assert_eq!(story.loads, 2, "after five seconds");
}

#[test]
fn a_reload_asked_for_during_a_load_is_another_load() {
    let mut story = Story::new(4);
    story.event(Event::ReloadAsked(Some(WaiterId(1))));
    assert_eq!(story.loads, 1, "the first load is under way");
    story.load(&[("a", "")]);
    assert!(story.answers.is_empty(), "it began before the request");
    assert_eq!(story.loads, 2);
    story.load(&[("a", ""), ("b", "")]);
    let (waiter, Answer::Reloaded(reloaded)) = &story.answers[0] else {
        panic!()
    };
    assert_eq!((waiter.0, reloaded.integrations), (1, 2));
}

#[test]
fn a_reload_kills_the_runs_of_what_is_gone_and_keeps_the_rest() {
    let mut story = Story::new(4);
    story.load(&[("a", ""), ("b", "")]);
    let run_of_b = story.begun[1].0;
    story.load(&[("a", "")]);
    assert_eq!(story.killed, [run_of_b]);
    assert_eq!(story.begun().len(), 2, "a goes on and is not begun anew");
    story.end(End::Exited(0));
    assert_eq!(story.health(), Health::Healthy);
    story.end(End::Signaled(9));
    assert_eq!(story.health(), Health::Healthy, "the end of b is nobody's");
    let order: Vec<_> = story
        .status()
        .integrations
        .into_iter()
        .map(|it| it.name)
        .collect();
    assert_eq!(order, ["a"]);
}

#[test]
fn only_a_changed_outcome_sends_an_event() {
    let mut story = Story::new(4);
    story.load(&[("a", ",\"failure_threshold\":3")]);
    story.published.clear();
    for (end, news) in [
        (End::Exited(0), true),
        (End::Exited(0), false),
        (End::Exited(1), true),
        (End::Exited(1), false),
        (End::Exited(1), true),
        (End::Exited(1), false),
        (End::Signaled(9), true),
    ] {
        story.end(end.clone());
        assert_eq!(!story.published.is_empty(), news, "{end:?}");
        story.published.clear();
        story.pass(secs(31));
    }
}

/// A sleep of the guest, as a host asks for it.
fn sleep(story: &mut Story) {
    let asked = SleepPrep::default();
    story.event(Event::SleepAsked(WaiterId(1), asked, Token::made_up(1)));
    step_through(story);
    assert_eq!(story.status().lifecycle, Phase::Ready);
}

fn wake(story: &mut Story, wake: Wake) {
    let fingerprint = 7;
    let asked = Box::new(WakeAsked { wake, fingerprint });
    story.event(Event::WakeAsked(WaiterId(2), asked));
}

/// Ends all steps that are begun.
fn step_through(story: &mut Story) {
    while !std::mem::take(&mut story.steps).is_empty() {
        story.event(Event::StepDone(Done {
            outcome: mvm_protocol::lifecycle::Outcome::Ok,
            duration_ms: 0,
            detail: None,
        }));
    }
}

fn aborted() -> Wake {
    Wake {
        cause: mvm_protocol::lifecycle::WakeCause::Aborted,
        ..Wake::default()
    }
}

/// It says nothing of what is in the folders.
#[test]
fn drop_ins_that_cannot_be_read_for_now_stay_and_are_read_again() {
    let mut story = Story::new(4);
    story.load(&[("a", "")]);
    story.end(End::Exited(0));
    let loads = story.loads;
    story.event(Event::ReloadAsked(Some(WaiterId(1))));
    story.event(Event::DropInsLoaded(Err("no descriptors".to_owned())));
    assert!(matches!(&story.answers[..], [(WaiterId(1), Answer::Error(it))] if it.retryable));
    assert_eq!((story.loads, story.health()), (loads + 1, Health::Healthy));
    assert_eq!(story.status().integrations.len(), 1);
    story.pass(secs(1));
    assert_eq!(story.loads, loads + 2, "again after a second");
    story.load(&[]);
    assert_eq!(story.status().integrations.len(), 0);
}
