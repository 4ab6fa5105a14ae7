//! A machine on which whatever is begun has succeeded at once, and no time passes.

use super::after;
use crate::core::ended::{End, Ended, Tail};
use crate::core::lifecycle::{Done, Journal};
use crate::core::registry::{Command, Loaded};
use crate::core::sleeping::Work;
use crate::core::worker::Sample;
use crate::core::{Now, RunId};
use crate::machine::interface::Machine;
use mvm_protocol::lifecycle::Outcome;
use std::io;
use std::time::Duration;
use tokio::sync::oneshot;

pub(super) struct FastMachine {
    pub(super) loaded: Loaded,
}

impl Machine for FastMachine {
    fn now(&self) -> Now {
        after(0)
    }

    fn set_deadline(&self, _: Option<Duration>) -> io::Result<()> {
        Ok(())
    }

    async fn deadline_passed(&self) -> io::Result<()> {
        std::future::pending().await
    }

    async fn run(&self, _: RunId, _: Command, _: oneshot::Receiver<()>) -> Ended {
        Ended {
            duration: Duration::ZERO,
            end: End::Exited(0),
            stdout: Tail::default(),
            stderr: Tail::default(),
        }
    }

    async fn run_step(&self, _: Work, _: Duration) -> Done {
        Done {
            outcome: Outcome::Ok,
            duration_ms: 0,
            detail: None,
        }
    }

    async fn load_drop_ins(&self) -> io::Result<Loaded> {
        Ok(self.loaded.clone())
    }

    fn sample(&self) -> Sample {
        Sample::default()
    }

    fn keep(&self, _: &Journal) -> io::Result<()> {
        Ok(())
    }
}
