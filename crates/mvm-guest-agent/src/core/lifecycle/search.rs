//! An exhaustive search: every promise in every state that anything can lead to.
//!
//! Three integrations, two hosts, requests that are lost and repeated, steps that fail and hang,
//! deadline and lease, and an agent that is killed at any point.

use super::tests::{AT, ended, participants, prep, waking};
use super::*;
use mvm_protocol::lifecycle::WakeCause;
use std::collections::{HashMap, HashSet};

/// What the search knows beside the machine: what a perfect observer has seen.
#[derive(Clone, PartialEq, Eq, Hash)]
struct SearchState {
    it: Lifecycle,
    /// The journal as it is on disk: all that survives a crash.
    disk: Journal,
    doing: Option<Task>,
    /// Checkpoints started and not yet restored, by an observer's own count.
    debts: Vec<String>,
    /// Whether a required step of the present preparation has failed.
    spoilt: bool,
    /// Whether a wake was taken since the guest was last running.
    woken: bool,
    /// What such a wake was promised, and has not begun yet.
    due: Vec<Task>,
    unanswered: Vec<u64>,
    now: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Move {
    Sleep(Option<&'static str>),
    Wake(Option<&'static str>, WakeCause),
    /// An aborted wake of a host that tells the time.
    WakeAndTell(&'static str),
    End(Outcome),
    Tick,
    Crash,
}

const MOVES: [Move; 15] = [
    Move::Sleep(Some("A")),
    Move::Sleep(Some("B")),
    Move::Sleep(None),
    Move::Wake(None, WakeCause::Restored),
    Move::Wake(None, WakeCause::Aborted),
    Move::Wake(Some("A"), WakeCause::Restored),
    Move::Wake(Some("A"), WakeCause::Aborted),
    Move::Wake(Some("B"), WakeCause::Restored),
    Move::WakeAndTell("A"),
    Move::WakeAndTell("B"),
    Move::End(Outcome::Ok),
    Move::End(Outcome::Failed),
    Move::End(Outcome::TimedOut),
    Move::Tick,
    Move::Crash,
];

impl SearchState {
    fn new() -> Self {
        let now = Duration::ZERO;
        let mut state = Self {
            it: Lifecycle::new(Journal::default(), now),
            disk: Journal::default(),
            doing: None,
            debts: Vec::new(),
            spoilt: false,
            woken: false,
            due: Vec::new(),
            unanswered: Vec::new(),
            now,
        };
        let acts = state.it.start(&participants());
        state.take(acts);
        state
    }

    /// The state after a move, or nothing if the move is impossible here.
    fn after(&self, what: Move) -> Option<Self> {
        let mut state = self.clone();
        let acts = match what {
            Move::Sleep(name) => {
                let waiter = state.ask()?;
                let made_up = Token::new("made up").unwrap();
                let asked = prep(name, 2, 3);
                state
                    .it
                    .sleep_prep(waiter, &asked, made_up, participants(), state.now)
            }
            Move::Wake(name, cause) => {
                let waiter = state.ask()?;
                state.wake(waiter, &waking(name, cause))
            }
            Move::WakeAndTell(name) => {
                let waiter = state.ask()?;
                let mut asked = waking(Some(name), WakeCause::Aborted);
                asked.wake.wall_clock = Some(AT);
                asked.fingerprint += 4;
                state.wake(waiter, &asked)
            }
            Move::End(outcome) => {
                let task = state.doing.take()?;
                if let Task::Restore(name) = &task {
                    let at = state.debts.iter().position(|debt| debt == name);
                    state
                        .debts
                        .remove(at.expect("a restore that nobody is owed"));
                }
                let required = match &task {
                    Task::Checkpoint(name) => name == "a",
                    Task::DropCaches => false,
                    _ => true,
                };
                state.spoilt |= required && matches!(outcome, Outcome::Failed | Outcome::TimedOut);
                state.it.done(&ended(outcome), AT)
            }
            Move::Tick => {
                state.it.deadline()?;
                // Time itself is no part of the state, or the search would have no end.
                state.now = TICK;
                state.it.last_tick = Duration::ZERO;
                state.it.tick(TICK)
            }
            Move::Crash => {
                // What was under way is killed, its hosts see their connections end, and init
                // starts another agent.
                state.doing = None;
                state.unanswered.clear();
                (state.woken, state.due) = (false, Vec::new());
                state.it = Lifecycle::new(state.disk.clone(), Duration::ZERO);
                state.it.start(&participants())
            }
        };
        state.now = Duration::ZERO;
        state.it.last_tick = Duration::ZERO;
        state.take(acts);
        state.woken &= state.it.phase() != Phase::Running;
        state.check(what);
        state.forget();
        Some(state)
    }

    /// A guest from a snapshot gets a seed, a clock and a generation, once however often it is woken;
    /// one that runs on gets a clock if its first host tells the time.
    fn wake(&mut self, waiter: WaiterId, asked: &WakeAsked) -> Vec<Act> {
        let restoring = matches!(&self.it.state, State::Waking(waking) if waking.restored)
            || matches!(&self.it.state, State::Preparing(Preparing { undo: Some(undo), .. }) if undo.restored);
        let acts = self.it.wake(waiter, asked);
        let at_once = |act: &Act| matches!(act, Act::WrongToken(_) | Act::Awake(..));
        if acts.iter().any(at_once) {
            return acts;
        }
        match asked.wake.cause {
            _ if restoring => {}
            WakeCause::Restored => self.due = vec![Task::Reseed, Task::Clock, Task::Identity],
            WakeCause::Aborted if !self.woken && asked.wake.wall_clock.is_some() => {
                self.due = vec![Task::Clock];
            }
            WakeCause::Aborted => {}
        }
        self.woken = true;
        acts
    }

    /// Drops what grows without end and decides nothing: reports and counters.
    fn forget(&mut self) {
        match &mut self.it.state {
            State::Preparing(Preparing { steps, undo, .. }) => {
                steps.clear();
                if let Some(waking) = undo {
                    waking.steps.clear();
                }
            }
            State::Ready { steps, .. } | State::Waking(Waking { steps, .. }) => steps.clear(),
            State::Running => {}
        }
        if let Some((_, awake)) = &mut self.it.answered {
            (awake.steps, awake.generation) = (Vec::new(), 0);
        }
        for journal in [&mut self.it.journal, &mut self.disk] {
            journal.generation = 0;
        }
    }

    /// At most two hosts wait at once.
    fn ask(&mut self) -> Option<WaiterId> {
        if self.unanswered.len() >= 2 {
            return None;
        }
        let id = (0..2).find(|id| !self.unanswered.contains(id))?;
        self.unanswered.push(id);
        Some(WaiterId(id))
    }

    fn answered(&mut self, waiter: WaiterId) {
        let at = self.unanswered.iter().position(|id| *id == waiter.0);
        self.unanswered
            .remove(at.expect("an answer that nobody waits for"));
    }

    fn take(&mut self, acts: Vec<Act>) {
        for act in acts {
            match act {
                Act::Do { task, journal, .. } => {
                    assert!(self.doing.is_none(), "two tasks at once");
                    assert_ne!(self.it.phase(), Phase::Running, "work while running");
                    if task == Task::Drain {
                        assert_eq!(self.debts, [""; 0], "a sleep begins with debts");
                        self.spoilt = false;
                    }
                    self.disk = journal;
                    self.due.retain(|due| *due != task);
                    if let Task::Restore(name) = &task {
                        assert_eq!(self.due, [], "`{name}` is restored before its time");
                    }
                    if let Task::Checkpoint(name) = &task {
                        self.debts.push(name.clone());
                        assert!(
                            self.disk.owed.contains(name),
                            "a debt that a crash would forget"
                        );
                    }
                    self.doing = Some(task);
                }
                Act::Keep(journal) => self.disk = journal,
                Act::Ready(waiter, _) => {
                    assert_eq!(self.it.phase(), Phase::Ready);
                    assert!(!self.spoilt, "ready although a required step failed");
                    self.answered(waiter);
                }
                Act::Awake(waiter, _) | Act::Failed(waiter, ..) => {
                    assert_eq!(self.it.phase(), Phase::Running);
                    self.answered(waiter);
                }
                Act::Busy(waiter, _) | Act::WrongToken(waiter) => self.answered(waiter),
                Act::Cancel | Act::Hold | Act::Release | Act::Enter(_) => {}
            }
        }
        // A restore without a checkpoint is owed from when its turn came.
        for name in &self.it.journal().owed {
            if name == "c" && !self.debts.contains(name) {
                self.debts.push(name.clone());
            }
        }
    }

    fn check(&self, what: Move) {
        let mut owed = self.it.journal().owed.clone();
        let mut debts = self.debts.clone();
        owed.sort();
        debts.sort();
        assert_eq!(owed, debts, "after {what:?}");
        match self.it.phase() {
            Phase::Running => {
                assert_eq!(self.debts, [""; 0], "running with debts after {what:?}");
                assert_eq!(
                    self.unanswered, [0_u64; 0],
                    "a host was forgotten after {what:?}"
                );
                assert_eq!(self.doing, None);
                assert_eq!(self.due, [], "a wake was not kept after {what:?}");
                assert!(!self.disk.asleep && self.disk.owed.is_empty());
            }
            Phase::Ready => {
                assert_eq!(self.doing, None, "work while ready after {what:?}");
                assert_eq!(self.disk, *self.it.journal(), "a crash would forget");
                assert!(self.disk.asleep);
            }
            Phase::Preparing | Phase::Waking => {
                assert!(self.doing.is_some(), "stuck after {what:?}");
            }
        }
    }
}

#[test]
fn every_interleaving_keeps_every_promise() {
    let start = SearchState::new();
    let mut seen: HashSet<SearchState> = HashSet::from([start.clone()]);
    let mut frontier = VecDeque::from([start]);
    let mut phases: HashMap<String, usize> = HashMap::new();
    while let Some(state) = frontier.pop_front() {
        *phases.entry(format!("{:?}", state.it.phase())).or_default() += 1;
        for what in MOVES {
            // A snapshot that is taken here and restored later is this very state, explored once
            // for each that comes of it.
            if let Some(next) = state.after(what)
                && seen.insert(next.clone())
            {
                frontier.push_back(next);
            }
        }
        // From anywhere the guest is back within its lease, though no host ever speaks again.
        let mut alone = state.clone();
        let mut steps = 0;
        while alone.it.phase() != Phase::Running {
            let outcome = Move::End(Outcome::TimedOut);
            alone = alone
                .after(outcome)
                .or_else(|| alone.after(Move::Tick))
                .unwrap();
            steps += 1;
            assert!(steps < 30, "the guest does not come back");
        }
    }
    println!("{} states: {phases:?}", seen.len());
    assert_eq!(phases.len(), 4, "{phases:?}");
    assert!(seen.len() > 1000, "{}", seen.len());
}
