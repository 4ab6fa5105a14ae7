//! An exhaustive search: every promise in every state that anything can lead to.
//!
//! Three integrations, two hosts, requests that are lost and repeated, steps that fail and hang,
//! deadline and lease, and an agent that is killed at any point.

mod explore;

use super::tests::{AT, ended, participants, prep, waking};
use super::*;
use crate::core::WaiterId;
use mvm_protocol::lifecycle::{Token, WakeCause};
use mvm_protocol::status::RestoreSign;

/// What the search knows beside the machine: what a perfect observer has seen.
#[derive(Clone, PartialEq, Eq, Hash)]
struct SearchState {
    it: Lifecycle,
    /// The journal as it is on disk: all that survives a crash.
    disk: Journal,
    doing: Option<Task>,
    /// Checkpoints started and not yet restored, by an observer's own count.
    debts: Vec<String>,
    /// Whether the work is frozen: what is done to it, by an observer's own eyes.
    frozen: bool,
    /// Whether the agent said that it could not freeze it.
    unfrozen: bool,
    /// The last thaw failed.
    stuck: bool,
    /// Whether a critical personalize command of the present wake has failed while it is frozen.
    unpersonalized: bool,
    /// Whether the wake under way has failed, since the guest is not personalized.
    failed: bool,
    /// Whether a required step of the present preparation has failed.
    spoilt: bool,
    /// Whether a wake was taken since the guest was last running.
    woken: bool,
    /// What such a wake was promised, and has not begun yet.
    due: Vec<Task>,
    /// Whether a restore was noticed that no host has announced, and nobody has been told of.
    untold: bool,
    /// Whether one was noticed since the guest was last running.
    noticed: bool,
    /// Whether a restore has got its generation, which is not written yet.
    counted: bool,
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
    /// A sign says that the guest was restored.
    Notice,
    Crash,
}

const MOVES: [Move; 17] = [
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
    Move::End(Outcome::Skipped),
    Move::Tick,
    Move::Notice,
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
            frozen: false,
            unfrozen: false,
            stuck: false,
            unpersonalized: false,
            failed: false,
            spoilt: false,
            woken: false,
            due: Vec::new(),
            untold: false,
            noticed: false,
            counted: false,
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
                // A guest that cannot be frozen; of other steps it is one more way to end well.
                if outcome == Outcome::Skipped && task != Task::Freeze {
                    return None;
                }
                state.end(&task, outcome);
                if let Task::Restore(name) = &task {
                    let at = state.debts.iter().position(|debt| debt == name);
                    state
                        .debts
                        .remove(at.expect("a restore that nobody is owed"));
                }
                let required = match &task {
                    Task::Checkpoint(name) => name == "a",
                    Task::DropCaches | Task::Freeze | Task::CheckFrozen => false,
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
            Move::Notice => {
                // Two in one wake, and two before anybody is told, are as good as one; and that a
                // second host waits changes nothing.
                let is_waking = state.it.phase() == Phase::Waking;
                if state.untold || (is_waking && state.noticed) || state.unanswered.len() > 1 {
                    return None;
                }
                (state.untold, state.noticed) = (true, true);
                for task in unannounced() {
                    if !state.due.contains(&task) {
                        state.due.push(task);
                    }
                }
                state.it.noticed(RestoreSign::Cid)
            }
            Move::Crash => {
                // What was under way is killed, its hosts see their connections end, and init
                // starts another agent.
                state.doing = None;
                state.unanswered.clear();
                (state.woken, state.due) = (false, Vec::new());
                (state.unpersonalized, state.failed) = (false, false);
                // A wake that was taken and not begun is forgotten with its host.
                state.untold |= state.disk.noticed.is_some();
                // One that was killed right after a thaw thaws again, which does nothing.
                state.frozen = state.disk.frozen;
                // What could not be thawed an agent that starts thaws before all else.
                state.stuck = false;
                match state.disk.restoring {
                    Some(restoring) if !restoring.unannounced => {
                        state.due = before_work(state.frozen);
                    }
                    Some(_) => state.due = unannounced(),
                    None if state.untold => state.due = unannounced(),
                    None => {}
                }
                state.it = Lifecycle::new(state.disk.clone(), Duration::ZERO);
                state.it.start(&participants())
            }
        };
        state.now = Duration::ZERO;
        state.it.last_tick = Duration::ZERO;
        state.take(acts);
        let is_running = state.it.phase() == Phase::Running;
        state.woken &= !is_running;
        state.failed &= !is_running;
        state.noticed &= !is_running;
        state.check(what);
        state.forget();
        Some(state)
    }

    /// A guest from a snapshot gets a seed, a clock and a generation, once however often it is woken;
    /// one that runs on gets a clock if its first host tells the time.
    fn wake(&mut self, waiter: WaiterId, asked: &WakeAsked) -> Vec<Act> {
        let restoring = matches!(&self.it.state, State::Waking(waking)
                if waking.restored && waking.cause != Cause::Restart)
            || matches!(&self.it.state, State::Preparing(Preparing { undo: Some(undo), .. }) if undo.restored);
        let held = matches!(self.it.state, State::Held(_));
        let acts = self.it.wake(waiter, asked, &participants());
        let at_once = |act: &Act| matches!(act, Act::WrongToken(_) | Act::Awake(..));
        if acts.iter().any(at_once) {
            return acts;
        }
        self.untold &= asked.wake.cause == WakeCause::Aborted && !held;
        match asked.wake.cause {
            _ if restoring => {}
            _ if held => self.expect_restore(),
            WakeCause::Restored => self.expect_restore(),
            WakeCause::Aborted if !self.woken && asked.wake.wall_clock.is_some() => {
                if !self.due.contains(&Task::Clock) {
                    self.due.insert(0, Task::Clock);
                }
            }
            WakeCause::Aborted => {}
        }
        self.woken = true;
        acts
    }

    fn expect_restore(&mut self) {
        let frozen = self.it.journal.frozen && self.doing != Some(Task::Thaw);
        // What a new journal begins at once is no more to come.
        self.due = before_work(frozen);
        (self.unpersonalized, self.failed) = (false, false);
    }

    /// What an observer sees of the work when a task has ended.
    fn end(&mut self, task: &Task, outcome: Outcome) {
        match task {
            Task::Freeze if outcome == Outcome::Skipped => {
                (self.frozen, self.unfrozen) = (false, true);
            }
            Task::Thaw => {
                self.frozen = false;
                self.stuck = matches!(outcome, Outcome::Failed | Outcome::TimedOut);
            }
            Task::Generation => self.counted = false,
            Task::Payload => self.fail(outcome),
            Task::Personalize(name) if name == "a" => self.fail(outcome),
            _ => {}
        }
    }

    /// What a critical integration needs to be personalized has ended.
    fn fail(&mut self, outcome: Outcome) {
        self.failed |= outcome != Outcome::Ok;
        self.unpersonalized |= self.frozen && outcome != Outcome::Ok;
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
            State::Waking(Waking { steps, failure, .. }) => {
                steps.clear();
                // Which it was, and how, is but told.
                *failure = failure.take().map(|_| String::new());
            }
            State::Ready { steps, .. } => steps.clear(),
            State::Running | State::Held(_) => {}
        }
        if let Some((_, awake)) = &mut self.it.answered {
            (awake.steps, awake.generation) = (Vec::new(), 0);
        }
        for journal in [&mut self.it.journal, &mut self.disk] {
            (journal.generation, journal.unannounced) = (0, 0);
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
        let mut told = false;
        for act in acts {
            match act {
                Act::Do { task, journal, .. } => {
                    assert!(self.doing.is_none(), "two tasks at once");
                    self.count(&task, told, &journal);
                    assert_ne!(self.it.phase(), Phase::Running, "work while running");
                    if task == Task::Drain {
                        assert_eq!(self.debts, [""; 0], "a sleep begins with debts");
                        self.spoilt = false;
                    }
                    self.disk = journal;
                    self.due.retain(|due| *due != task);
                    match &task {
                        Task::Drain => self.unfrozen = false,
                        Task::Freeze => {
                            assert!(self.disk.frozen, "frozen, and a crash would forget");
                            (self.frozen, self.stuck) = (true, false);
                        }
                        Task::Thaw => {
                            assert!(self.frozen || self.stuck, "thawed twice, or for nothing");
                            assert!(!self.unpersonalized, "thawed with its twin's identity");
                            assert_eq!(self.due, [], "thawed before its time");
                        }
                        Task::Restore(name) => {
                            assert!(!self.frozen, "`{name}` is restored while frozen");
                        }
                        _ => {}
                    }
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
                Act::Awake(waiter, _) => {
                    assert_eq!(self.it.phase(), Phase::Running);
                    assert!(!self.failed, "awake as its twin");
                    self.answered(waiter);
                }
                Act::Failed(waiter, ..) => {
                    assert_eq!(self.it.phase(), Phase::Running);
                    self.answered(waiter);
                }
                Act::NotPersonalized(waiter, ..) => {
                    assert_eq!(self.it.phase(), Phase::Running);
                    assert!(
                        self.failed && !self.unpersonalized,
                        "failed without a reason"
                    );
                    self.answered(waiter);
                }
                Act::Held(waiter, ..) => {
                    assert!(self.unpersonalized, "held without a reason");
                    self.answered(waiter);
                }
                Act::Busy(waiter, _) | Act::WrongToken(waiter) => self.answered(waiter),
                Act::Unannounced(_) => {
                    assert!(self.untold, "told twice, or announced");
                    (self.untold, told) = (false, true);
                }
                Act::Cancel | Act::Hold | Act::Release | Act::Enter(_) | Act::Amiss(_) => {}
            }
        }
        // A restore without a checkpoint is owed from when its turn came.
        for name in &self.it.journal().owed {
            if name == "c" && !self.debts.contains(name) {
                self.debts.push(name.clone());
            }
        }
    }

    /// Each restore is one generation, however often what it takes is begun anew; and each of which
    /// nobody was told by a host is one more of those. Both were 0 before this move.
    fn count(&mut self, task: &Task, told: bool, journal: &Journal) {
        let is_new = *task == Task::Reseed && (told || !self.counted);
        let grown = (journal.generation, journal.unannounced);
        let should = (u64::from(is_new), u64::from(told));
        assert_eq!(grown, should, "generations and notices by {task:?}");
        self.counted |= is_new;
    }

    fn check(&self, what: Move) {
        let mut owed = self.it.journal().owed.clone();
        let mut debts = self.debts.clone();
        owed.sort();
        debts.sort();
        assert_eq!(owed, debts, "after {what:?}");
        assert!(
            !self.frozen || (self.disk.frozen && self.it.journal().frozen),
            "frozen, and nobody knows after {what:?}"
        );
        if let State::Held(_) = self.it.state {
            assert!(self.frozen && self.unpersonalized, "after {what:?}");
            assert_eq!((&self.doing, self.unanswered.len()), (&None, 0));
            assert_eq!(self.disk, *self.it.journal(), "a crash would forget");
            return;
        }
        match self.it.phase() {
            Phase::Running => {
                assert_eq!(self.debts, [""; 0], "running with debts after {what:?}");
                assert_eq!(
                    self.unanswered, [0_u64; 0],
                    "a host was forgotten after {what:?}"
                );
                assert_eq!(self.doing, None);
                assert_eq!(self.due, [], "a wake was not kept after {what:?}");
                assert!(!self.untold, "a restore was forgotten after {what:?}");
                assert!(self.disk.noticed.is_none(), "a notice is kept");
                assert!(!self.frozen, "running, and its work is not, after {what:?}");
                assert!(!self.disk.frozen && self.disk.restoring.is_none());
                assert!(!self.disk.asleep && self.disk.owed.is_empty());
            }
            Phase::Ready => {
                assert_eq!(self.doing, None, "work while ready after {what:?}");
                assert_eq!(self.disk, *self.it.journal(), "a crash would forget");
                assert!(self.disk.asleep);
                assert!(self.frozen != self.unfrozen, "ready and not frozen");
            }
            Phase::Preparing | Phase::Waking => {
                assert!(self.doing.is_some(), "stuck after {what:?}");
            }
        }
    }
}

/// What a restored guest needs before its work runs.
fn before_work(frozen: bool) -> Vec<Task> {
    let personalize = |name: &str| Task::Personalize(name.to_owned());
    let look = frozen.then_some(Task::CheckFrozen).into_iter();
    look.chain([
        Task::Reseed,
        Task::Clock,
        Task::Identity,
        Task::Payload,
        personalize("a"),
        personalize("b"),
        Task::Generation,
    ])
    .collect()
}

/// What a guest needs before its work runs if nobody has said that it was restored.
fn unannounced() -> Vec<Task> {
    vec![Task::Reseed, Task::Clock, Task::Generation]
}
