//! The machine of the simulation: a clock that a script can make jump, and steps that end when it
//! says.

use crate::core::ended::{End, Ended, Tail};
use crate::core::lifecycle::{Done, Journal};
use crate::core::registry::{Command, Loaded};
use crate::core::sleeping::Work;
use crate::core::worker::Sample;
use crate::core::{Now, RunId};
use crate::machine::interface::Machine;
use crate::machine::journal::Files;
use mvm_protocol::Timestamp;
use mvm_protocol::lifecycle::Outcome;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep};

/// What the agent does in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MachineStep {
    Checkpoint(char),
    Sync,
    Freeze,
    DropCaches,
    CheckFrozen,
    Reseed,
    Clock,
    Identity,
    Payload,
    Generation,
    Thaw,
    Restore(char),
}

/// What the script and the machine share. It outlives an agent.
#[derive(Debug)]
pub(super) struct Script {
    began: Instant,
    /// What a jump has added to the monotonic clock.
    ahead: Cell<Duration>,
    jumped: Notify,
    /// What it has added to the wall clock.
    wall_off_ms: Cell<i64>,
    doing: RefCell<Option<(MachineStep, oneshot::Sender<Outcome>)>>,
    /// When each check was run.
    pub(super) checks: RefCell<Vec<Instant>>,
    /// Checkpoints that were started less restores that have ended, by an observer's own count.
    pub(super) debts: RefCell<BTreeMap<char, i32>>,
    pub(super) loaded: Loaded,
}

impl Script {
    pub(super) fn new(loaded: Loaded) -> Self {
        Self {
            began: Instant::now(),
            ahead: Cell::default(),
            jumped: Notify::new(),
            wall_off_ms: Cell::default(),
            doing: RefCell::default(),
            checks: RefCell::default(),
            debts: RefCell::default(),
            loaded,
        }
    }

    pub(super) fn doing(&self) -> Option<MachineStep> {
        self.doing.borrow().as_ref().map(|(step, _)| *step)
    }

    /// Ends what is under way.
    pub(super) fn end(&self, outcome: Outcome) {
        let (step, end) = self.doing.take().expect("something is under way");
        if let MachineStep::Restore(name) = step {
            *self.debts.borrow_mut().entry(name).or_default() -= 1;
        }
        end.send(outcome).expect("it is waited for");
    }

    /// The monotonic clock goes an hour ahead, the other one a year back.
    pub(super) fn jump(&self) {
        self.ahead.set(self.ahead.get() + Duration::from_hours(1));
        self.wall_off_ms
            .set(self.wall_off_ms.get() - 365 * 86_400_000);
        self.jumped.notify_waiters();
    }

    fn now(&self) -> Now {
        let mono = self.began.elapsed() + self.ahead.get();
        let wall = i64::try_from(mono.as_millis()).unwrap() + self.wall_off_ms.get();
        Now {
            mono,
            wall: Timestamp(1_795_000_000_000 + wall),
        }
    }

    async fn perform(self: &Rc<Self>, step: MachineStep) -> Outcome {
        if let MachineStep::Checkpoint(name) = step {
            *self.debts.borrow_mut().entry(name).or_default() += 1;
        }
        let (end, ended) = oneshot::channel();
        let before = self.doing.borrow_mut().replace((step, end));
        assert!(before.is_none(), "{step:?} along with {before:?}");
        let left = AbandonedStep(Rc::clone(self));
        let outcome = ended.await.expect("the script ends it");
        std::mem::forget(left);
        outcome
    }
}

/// Clears the step when nothing waits for it any more: it was abandoned, or the agent was killed.
struct AbandonedStep(Rc<Script>);

impl Drop for AbandonedStep {
    fn drop(&mut self) {
        self.0.doing.take();
    }
}

pub(super) struct SimulatedMachine {
    pub(super) script: Rc<Script>,
    pub(super) files: Files,
    pub(super) deadline: Cell<Option<Duration>>,
}

impl Machine for SimulatedMachine {
    fn now(&self) -> Now {
        self.script.now()
    }

    fn set_deadline(&self, deadline: Option<Duration>) -> io::Result<()> {
        self.deadline.set(deadline);
        Ok(())
    }

    async fn deadline_passed(&self) -> io::Result<()> {
        let Some(deadline) = self.deadline.get() else {
            return std::future::pending().await;
        };
        loop {
            let left = deadline.saturating_sub(self.now().mono);
            tokio::select! {
                () = sleep(left) => return Ok(()),
                // The kernel's timer goes with its clock, the runtime's does not.
                () = self.script.jumped.notified() => {}
            }
        }
    }

    /// Commands do not heed that they are to end: the script decides when they do.
    async fn run(&self, _: RunId, command: Command, cancel: oneshot::Receiver<()>) -> Ended {
        let step = match command.what.rsplit_once(' ') {
            Some(("checkpoint of", name)) => Some(MachineStep::Checkpoint(initial(name))),
            Some(("restore of", name)) => Some(MachineStep::Restore(initial(name))),
            _ => None,
        };
        let outcome = if let Some(step) = step {
            self.script.perform(step).await
        } else {
            self.script.checks.borrow_mut().push(Instant::now());
            Outcome::Ok
        };
        drop(cancel);
        let end = match outcome {
            Outcome::Ok => End::Exited(0),
            Outcome::TimedOut => End::TimedOut {
                exit_code: None,
                signal: Some(9),
            },
            _ => End::Exited(1),
        };
        Ended {
            duration: Duration::ZERO,
            end,
            stdout: Tail::default(),
            stderr: Tail::default(),
        }
    }

    async fn run_step(&self, work: Work, _: Duration) -> Done {
        let step = match work {
            Work::Sync(_) => MachineStep::Sync,
            Work::DropCaches(_) => MachineStep::DropCaches,
            Work::Freeze { .. } => MachineStep::Freeze,
            Work::CheckFrozen { .. } => MachineStep::CheckFrozen,
            Work::Thaw => MachineStep::Thaw,
            Work::Payload(_) => MachineStep::Payload,
            Work::Generation(_) => MachineStep::Generation,
            Work::Reseed(_) => MachineStep::Reseed,
            Work::Clock(_) => MachineStep::Clock,
            Work::Identity { .. } => MachineStep::Identity,
            Work::Command(..) => panic!("a command is run"),
        };
        Done {
            outcome: self.script.perform(step).await,
            duration_ms: 0,
            detail: None,
        }
    }

    async fn load_drop_ins(&self) -> io::Result<Loaded> {
        Ok(self.script.loaded.clone())
    }

    fn sample(&self) -> Sample {
        Sample::default()
    }

    fn keep(&self, journal: &Journal) -> io::Result<()> {
        self.files.keep(journal)
    }
}

fn initial(name: &str) -> char {
    name.chars().next().expect("a name")
}
