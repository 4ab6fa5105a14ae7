//! The machine as the driver sees it: clocks, commands, steps, and what has to outlive the agent.
//!
//! [`LocalMachine`](super::local::LocalMachine) is the real one; the tests have another, whose clock
//! and commands follow a script. The driver is generic over this trait, so that the agent pays
//! nothing for the second one.

use crate::core::ended::Ended;
use crate::core::lifecycle::{Done, Journal};
use crate::core::registry::{Command, Loaded};
use crate::core::sleeping::Work;
use crate::core::worker::Sample;
use crate::core::{Now, RunId};
use std::io;
use std::time::Duration;
use tokio::sync::oneshot;

/// What the driver needs of the machine. Whatever takes time is awaited and ends by itself.
pub(crate) trait Machine: 'static {
    /// Both clocks now.
    fn now(&self) -> Now;

    /// Sets the one deadline, in place of the one before; `None` for never.
    fn set_deadline(&self, deadline: Option<Duration>) -> io::Result<()>;

    /// Waits until the deadline has passed.
    async fn deadline_passed(&self) -> io::Result<()>;

    /// Runs a command to its end. `cancel` ends it early.
    async fn run(&self, run: RunId, command: Command, cancel: oneshot::Receiver<()>) -> Ended;

    /// Takes a step of sleeping or waking that is not a command.
    async fn run_step(&self, work: Work, limit: Duration) -> Done;

    /// Reads the drop-in folders. An error says nothing of what is in them.
    async fn load_drop_ins(&self) -> io::Result<Loaded>;

    /// Reads the signals that tell idle from busy.
    fn sample(&self) -> Sample;

    /// Keeps what has to survive the agent.
    fn keep(&self, journal: &Journal) -> io::Result<()>;
}
