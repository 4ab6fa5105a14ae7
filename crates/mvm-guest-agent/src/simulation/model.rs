//! What the agent has to do, written down a second time and from the outside: what hosts see, and
//! what is done in the guest, one step after the other.
//!
//! The guest has three integrations, loaded in this order: `a`; `b`, which is not critical; and `c`,
//! which has a restore command alone.

mod back;

use super::machine::MachineStep;
use super::transition::{Expect, SleepAsked, Transition, WakeAsked};
use back::{Back, before_work};
use mvm_protocol::lifecycle::Outcome;
use mvm_protocol::status::Lifecycle;
use proptest::prelude::*;
use proptest_state_machine::ReferenceStateMachine;
use std::collections::{BTreeSet, VecDeque};

pub(super) const HOSTS: usize = 2;
pub(super) const RUNNING: Lifecycle = Lifecycle::Running;

/// A connection: the host's, and the how manieth of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Waiter(usize, u32);

#[derive(Debug, Clone)]
pub(super) struct Model {
    pub(super) phase: Lifecycle,
    pub(super) doing: Option<MachineStep>,
    pub(super) generation: u64,
    /// What hosts were answered in the last transition.
    pub(super) answers: Vec<(usize, Expect)>,
    /// Whether checks may have run in the last transition.
    pub(super) may_check: bool,
    todo: VecDeque<MachineStep>,
    frozen: bool,
    /// The last thaw failed.
    still_frozen: bool,
    /// Whether a restored guest has not got yet all that it needs before its work runs.
    restoring: bool,
    owed: BTreeSet<char>,
    /// Whose token holds the guest.
    held: Option<usize>,
    lease_ms: i64,
    deadline_ms: i64,
    lease_expired: bool,
    sleepers: Vec<Waiter>,
    /// On the way back; while preparing only if that is to be undone.
    back: Option<Back>,
    answered: Option<(WakeAsked, Expect)>,
    connections: [u32; HOSTS],
    /// Whether it has been `ready` since it ran.
    was_ready: bool,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            phase: RUNNING,
            doing: None,
            generation: 0,
            answers: Vec::new(),
            may_check: true,
            todo: VecDeque::new(),
            frozen: false,
            still_frozen: false,
            restoring: false,
            owed: BTreeSet::new(),
            held: None,
            lease_ms: 0,
            deadline_ms: 0,
            lease_expired: false,
            sleepers: Vec::new(),
            back: None,
            answered: None,
            connections: [0; HOSTS],
            was_ready: false,
        }
    }
}

impl ReferenceStateMachine for Model {
    type State = Self;
    type Transition = Transition;

    fn init_state() -> BoxedStrategy<Self> {
        Just(Self::default()).boxed()
    }

    fn transitions(state: &Self) -> BoxedStrategy<Transition> {
        let host = 0..HOSTS;
        let lease = prop::sample::select(vec![1500, 3500, 9500]);
        let deadline = prop::sample::select(vec![2500, 8500]);
        let asked = (lease, deadline).prop_map(|(lease_ms, deadline_ms)| SleepAsked {
            lease_ms,
            deadline_ms,
        });
        let token = prop::option::weighted(0.8, 0..HOSTS);
        let wake = (token, any::<bool>(), any::<bool>());
        let wake = wake.prop_map(|(token, restored, tells_time)| WakeAsked {
            token,
            restored,
            tells_time,
        });
        let sleep =
            (host.clone(), asked).prop_map(|(host, asked)| Transition::Sleep { host, asked });
        let wake = (host.clone(), wake).prop_map(|(host, asked)| Transition::Wake { host, asked });
        let outcome = prop_oneof![
            8 => Just(Outcome::Ok),
            1 => Just(Outcome::Failed),
            1 => Just(Outcome::TimedOut),
            1 => Just(Outcome::Skipped),
        ];
        // Most of the time the guest goes on with what it is doing, or a walk sees no end of it.
        let end = if state.doing.is_some() { 12 } else { 0 };
        prop_oneof![
            4 => sleep,
            4 => wake,
            1 => host.clone().prop_map(|host| Transition::Check { host }),
            2 => (host, any::<bool>())
                .prop_map(|(host, half_a_frame)| Transition::Lose { host, half_a_frame }),
            3 => (1_u8..4).prop_map(|secs| Transition::Pass { secs }),
            1 => Just(Transition::Jump),
            1 => Just(Transition::Crash),
            end => outcome.prop_map(Transition::End),
        ]
        .boxed()
    }

    fn preconditions(state: &Self, transition: &Transition) -> bool {
        match transition {
            // A connection's requests are answered in turn: a host that waits asks nothing.
            Transition::Sleep { host, .. }
            | Transition::Wake { host, .. }
            | Transition::Check { host } => !state.waits(*host),
            Transition::End(_) => state.doing.is_some(),
            _ => true,
        }
    }

    fn apply(mut state: Self, transition: &Transition) -> Self {
        state.answers.clear();
        let before = state.phase;
        match transition {
            Transition::Sleep { host, asked } => state.sleep(*host, *asked),
            Transition::Wake { host, asked } => state.wake(*host, asked),
            Transition::Check { host } => {
                let running = state.phase == RUNNING;
                let expect = if running {
                    Expect::Checked
                } else {
                    Expect::Busy
                };
                state.answers.push((*host, expect));
            }
            Transition::Lose { host, .. } => state.connections[*host] += 1,
            Transition::End(outcome) => state.end(*outcome),
            Transition::Pass { secs } => (0..*secs).for_each(|_| state.second()),
            // However far it jumps, it is one tick to the agent; and a wake may be about to come.
            Transition::Jump => {
                if state.phase == Lifecycle::Ready {
                    state.lease_ms = state.lease_ms.max(30_000);
                }
                state.second();
            }
            Transition::Crash => state.crash(),
        }
        state.may_check = before == RUNNING || state.phase == RUNNING;
        state
    }
}

impl Model {
    /// The debts, as the journal names them.
    pub(super) fn owed(&self) -> Vec<String> {
        self.owed.iter().map(char::to_string).collect()
    }

    /// Whether it was frozen, as far as anybody can know, and does not run yet: nothing that it found
    /// out before counts.
    pub(super) fn was_frozen(&self) -> bool {
        let restored = self.back.as_ref().is_some_and(|back| back.restored);
        restored || (self.was_ready && self.phase == Lifecycle::Waking)
    }

    fn waits(&self, host: usize) -> bool {
        let own = self.waiter(host);
        let back = self
            .back
            .iter()
            .flat_map(|back| back.wakers.iter().chain(&back.sleepers));
        self.sleepers
            .iter()
            .chain(back)
            .any(|waiter| *waiter == own)
    }

    fn waiter(&self, host: usize) -> Waiter {
        Waiter(host, self.connections[host])
    }

    fn answer(&mut self, waiter: Waiter, expect: Expect) {
        if waiter == self.waiter(waiter.0) {
            self.answers.push((waiter.0, expect));
        }
    }

    fn sleep(&mut self, host: usize, asked: SleepAsked) {
        let waiter = self.waiter(host);
        match self.phase {
            Lifecycle::Running => {
                self.phase = Lifecycle::Preparing;
                self.held = Some(host);
                (self.lease_ms, self.deadline_ms) = (asked.lease_ms, asked.deadline_ms);
                (self.lease_expired, self.answered) = (false, None);
                self.sleepers = vec![waiter];
                // The last to be loaded is the first to be saved; `c` has nothing to save.
                self.owed = BTreeSet::from(['c']);
                self.todo = VecDeque::from([
                    MachineStep::Checkpoint('b'),
                    MachineStep::Checkpoint('a'),
                    MachineStep::Sync,
                    MachineStep::Freeze,
                    MachineStep::Sync,
                    MachineStep::DropCaches,
                    MachineStep::CheckFrozen,
                ]);
                self.go_on();
            }
            Lifecycle::Preparing if self.held == Some(host) => match &mut self.back {
                Some(back) => back.sleepers.push(waiter),
                None => self.sleepers.push(waiter),
            },
            Lifecycle::Ready if self.held == Some(host) => self.answer(waiter, Expect::Ready),
            _ => self.answer(waiter, Expect::Busy),
        }
    }

    fn wake(&mut self, host: usize, asked: &WakeAsked) {
        let waiter = self.waiter(host);
        if self.phase != RUNNING
            && let (Some(held), Some(given)) = (self.held, asked.token)
            && held != given
        {
            return self.answer(waiter, Expect::WrongToken);
        }
        match self.phase {
            Lifecycle::Running => match self.answered {
                Some((known, expect)) if known == *asked && asked.token.is_some() => {
                    self.answer(waiter, expect);
                }
                _ if asked.restored
                    || (self.lease_expired && asked.tells_time)
                    || self.still_frozen =>
                {
                    let mut back = Back::default();
                    back.join(waiter, asked, false);
                    self.held = asked.token;
                    self.return_by(back);
                }
                _ => {
                    let lease_expired = std::mem::take(&mut self.lease_expired);
                    let expect = Expect::Awake {
                        was_ready: false,
                        lease_expired,
                        generation: self.generation,
                    };
                    self.answer(waiter, expect);
                }
            },
            Lifecycle::Ready => {
                let mut back = Back {
                    was_ready: true,
                    ..Back::default()
                };
                back.join(waiter, asked, self.frozen);
                self.return_by(back);
            }
            Lifecycle::Preparing if self.back.is_none() => {
                let mut back = Back::default();
                back.join(waiter, asked, self.frozen);
                self.undo(back);
            }
            Lifecycle::Preparing => {
                if let Some(back) = &mut self.back {
                    back.join(waiter, asked, self.frozen);
                }
            }
            Lifecycle::Waking => {
                if let Some(back) = &mut self.back {
                    let frozen = self.frozen && self.doing != Some(MachineStep::Thaw);
                    back.join(waiter, asked, frozen);
                    if back.first_of_all.contains(&MachineStep::Reseed) {
                        self.todo.retain(|step| !before_work(*step));
                    } else if self.todo.contains(&MachineStep::Clock) {
                        // It is set once, by what this host has told.
                        back.first_of_all.clear();
                    }
                    // What comes first of all comes before what is left.
                    while let Some(step) = back.first_of_all.pop_back() {
                        self.todo.push_front(step);
                    }
                }
            }
        }
    }

    /// A preparation is undone when what is under way has ended: a step that is no command can be
    /// left behind at once.
    fn undo(&mut self, back: Back) {
        self.back = Some(back);
        if !matches!(self.doing, Some(MachineStep::Checkpoint(_))) {
            self.doing = None;
            self.roll_back();
        }
    }

    fn roll_back(&mut self) {
        let mut back = self.back.take().unwrap_or_default();
        back.sleepers.append(&mut self.sleepers);
        self.return_by(back);
    }

    fn return_by(&mut self, mut back: Back) {
        self.phase = Lifecycle::Waking;
        self.todo = std::mem::take(&mut back.first_of_all);
        if self.frozen || self.still_frozen {
            self.todo.push_back(MachineStep::Thaw);
        }
        // In load order, which is the alphabet's.
        self.todo
            .extend(self.owed.iter().copied().map(MachineStep::Restore));
        self.back = Some(back);
        self.go_on();
    }

    fn end(&mut self, outcome: Outcome) {
        let is_command = matches!(
            self.doing,
            Some(MachineStep::Checkpoint(_) | MachineStep::Restore(_))
        );
        let failed = match outcome {
            Outcome::Failed | Outcome::TimedOut => true,
            // A command runs, or has failed.
            Outcome::Skipped => is_command,
            Outcome::Ok => false,
        };
        let Some(done) = self.doing.take() else {
            return;
        };
        match done {
            MachineStep::Restore(name) => {
                self.owed.remove(&name);
            }
            MachineStep::Freeze if outcome == Outcome::Skipped => {
                self.frozen = false;
                self.todo.retain(|step| *step != MachineStep::CheckFrozen);
            }
            MachineStep::Thaw => (self.frozen, self.still_frozen) = (false, failed),
            MachineStep::Generation => self.restoring = false,
            _ => {}
        }
        if self.phase == Lifecycle::Preparing {
            let required = !matches!(
                done,
                MachineStep::Checkpoint('b')
                    | MachineStep::Freeze
                    | MachineStep::DropCaches
                    | MachineStep::CheckFrozen
            );
            if self.back.is_some() || (failed && required) {
                return self.roll_back();
            }
        }
        self.go_on();
    }

    fn go_on(&mut self) {
        if let Some(next) = self.todo.pop_front() {
            match next {
                MachineStep::Checkpoint(name) => {
                    self.owed.insert(name);
                }
                MachineStep::Freeze => (self.frozen, self.still_frozen) = (true, false),
                MachineStep::Reseed if !self.restoring => {
                    self.generation += 1;
                    self.restoring = true;
                }
                _ => {}
            }
            self.doing = Some(next);
        } else if self.phase == Lifecycle::Preparing {
            self.phase = Lifecycle::Ready;
            self.was_ready = true;
            for waiter in std::mem::take(&mut self.sleepers) {
                self.answer(waiter, Expect::Ready);
            }
        } else {
            let back = self.back.take().unwrap_or_default();
            (self.phase, self.held) = (RUNNING, None);
            self.was_ready = false;
            let expect = Expect::Awake {
                was_ready: back.was_ready,
                lease_expired: self.lease_expired,
                generation: self.generation,
            };
            // Somebody was told, for all that the agent knows.
            self.lease_expired &= back.wakers.is_empty();
            self.answered = back.first.map(|first| (first, expect));
            for waiter in back.sleepers {
                self.answer(waiter, Expect::Failed);
            }
            for waiter in back.wakers {
                self.answer(waiter, expect);
            }
        }
    }

    fn second(&mut self) {
        match self.phase {
            Lifecycle::Preparing if self.back.is_none() => {
                self.lease_ms -= 1000;
                self.deadline_ms -= 1000;
                if self.lease_ms <= 0 || self.deadline_ms <= 0 {
                    self.lease_expired |= self.lease_ms <= 0;
                    self.undo(Back::default());
                }
            }
            Lifecycle::Ready => {
                self.lease_ms -= 1000;
                if self.lease_ms <= 0 {
                    self.lease_expired = true;
                    self.held = None;
                    self.return_by(Back::default());
                }
            }
            _ => {}
        }
    }

    fn crash(&mut self) {
        for connection in &mut self.connections {
            *connection += 1;
        }
        let slept = self.phase != RUNNING;
        self.still_frozen = false;
        (self.doing, self.back, self.answered) = (None, None, None);
        self.sleepers.clear();
        self.held = None;
        if slept {
            let mut back = Back {
                restarted: true,
                ..Back::default()
            };
            if self.restoring {
                back.restore(self.frozen);
            }
            self.return_by(back);
        }
    }
}
