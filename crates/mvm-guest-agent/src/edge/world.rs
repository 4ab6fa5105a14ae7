//! The world as the driver meets it: the clock, what takes time, and what has to be remembered.
//!
//! One type in the agent, [`Machine`], and one more in the tests, whose clock and commands a script
//! moves. The driver is generic over it, so that the agent pays nothing for the second.

use super::clock::{self, Timer};
use super::drop_in_dir::{self, Trust};
use super::journal::Files;
use super::process::Launcher;
use super::samples::Sampler;
use super::steps::{self, StepEdge};
use crate::core::ended::Ended;
use crate::core::lifecycle::{Done, Journal};
use crate::core::registry::{Command, Loaded};
use crate::core::sleeping::Work;
use crate::core::worker::Sample;
use crate::core::{Now, RunId};
use std::cell::RefCell;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::oneshot;

/// What the driver needs of the world. What takes time is awaited, and ends by itself.
pub(crate) trait World: 'static {
    /// Both clocks now.
    fn now(&self) -> Now;

    /// Sets the one deadline, in place of the one before; `None` for never.
    fn set_deadline(&self, deadline: Option<Duration>) -> io::Result<()>;

    /// Waits until the deadline has passed.
    async fn deadline_passed(&self) -> io::Result<()>;

    /// Runs a command to its end. `cancel` ends it early.
    async fn run(&self, run: RunId, command: Command, cancel: oneshot::Receiver<()>) -> Ended;

    /// Takes a step of sleeping or waking that is no command.
    async fn take(&self, work: Work, limit: Duration) -> Done;

    /// Reads the drop-in folders.
    async fn load_drop_ins(&self) -> Loaded;

    /// Reads the signals that tell idle from busy.
    fn sample(&self) -> Sample;

    /// Keeps what has to survive the agent.
    fn keep(&self, journal: &Journal) -> io::Result<()>;

    /// What starts the commands of hosts, if there can be any.
    #[cfg(feature = "dev")]
    fn launcher(&self) -> Option<Rc<Launcher>>;
}

/// The machine that the agent runs on.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) timer: Timer,
    pub(crate) launcher: Rc<Launcher>,
    pub(crate) sampler: RefCell<Sampler>,
    pub(crate) files: Files,
    /// The folders of integrations and probes.
    pub(crate) folders: (PathBuf, PathBuf),
    /// Whether the guest may be changed: synced, its clock set, its identity renewed.
    pub(crate) effects: bool,
}

impl World for Machine {
    fn now(&self) -> Now {
        clock::now()
    }

    fn set_deadline(&self, deadline: Option<Duration>) -> io::Result<()> {
        self.timer.set(deadline)
    }

    async fn deadline_passed(&self) -> io::Result<()> {
        self.timer.passed().await
    }

    async fn run(&self, run: RunId, command: Command, cancel: oneshot::Receiver<()>) -> Ended {
        self.launcher.run(run, command, cancel).await
    }

    async fn take(&self, work: Work, limit: Duration) -> Done {
        let edge = StepEdge {
            launcher: &self.launcher,
            files: &self.files,
            effects: self.effects,
        };
        steps::take(work, limit, edge).await
    }

    async fn load_drop_ins(&self) -> Loaded {
        let (integrations, probes) = self.folders.clone();
        drop_in_dir::load(integrations, probes, Trust::Owner).await
    }

    fn sample(&self) -> Sample {
        let mut sampler = self.sampler.borrow_mut();
        sampler.sample(self.launcher.cpu(), clock::now().mono)
    }

    fn keep(&self, journal: &Journal) -> io::Result<()> {
        self.files.keep(journal)
    }

    #[cfg(feature = "dev")]
    fn launcher(&self) -> Option<Rc<Launcher>> {
        Some(Rc::clone(&self.launcher))
    }
}
