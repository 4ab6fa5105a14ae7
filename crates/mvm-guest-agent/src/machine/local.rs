//! The machine that the agent runs on, behind the [`Machine`] trait.

use super::clock::{self, Timer};
use super::drop_in_dir;
use super::end_mark::EndMark;
use super::hypervisor_clock::HypervisorClock;
use super::interface::Machine;
use super::journal::Files;
use super::marks::MarkReader;
use super::process::Launcher;
use super::regular_file::Trust;
use super::samples::Sampler;
use super::steps::{self, StepContext};
use super::workload::FreezePolicy;
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

/// The machine that the agent runs on.
#[derive(Debug)]
pub(crate) struct LocalMachine {
    pub(crate) timer: Timer,
    pub(crate) launcher: Rc<Launcher>,
    pub(crate) sampler: RefCell<Sampler>,
    pub(crate) files: Files,
    /// What has ended and is not in the journal yet.
    pub(crate) end_mark: EndMark,
    /// The folders of integrations and probes.
    pub(crate) folders: (PathBuf, PathBuf),
    /// Whether the guest may be changed: synced, its clock set, its identity renewed.
    pub(crate) effects: bool,
    /// What of its work is frozen.
    pub(crate) freeze: FreezePolicy,
    /// Who was in no cgroup that can be frozen.
    pub(crate) outside: RefCell<Vec<u32>>,
    /// What tells the host's time.
    pub(crate) hypervisor_clock: HypervisorClock,
    /// What tells that the guest was restored.
    pub(crate) marks: MarkReader,
}

impl Machine for LocalMachine {
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
        let pays = command.pays.clone();
        let ended = self.launcher.run(run, command, cancel).await;
        if let Some(integration) = pays {
            self.end_mark.has_ended(&integration);
        }
        ended
    }

    async fn run_step(&self, work: Work, limit: Duration) -> Done {
        let context = StepContext {
            launcher: &self.launcher,
            files: &self.files,
            effects: self.effects,
            freeze: &self.freeze,
            outside: &self.outside,
            hypervisor_clock: &self.hypervisor_clock,
        };
        steps::run(work, limit, context).await
    }

    async fn load_drop_ins(&self) -> io::Result<Loaded> {
        let (integrations, probes) = self.folders.clone();
        drop_in_dir::load(integrations, probes, Trust::Owner).await
    }

    fn sample(&self) -> Sample {
        let mut sampler = self.sampler.borrow_mut();
        let mut sample = sampler.sample(self.launcher.cpu(), clock::now().mono);
        sample.marks = self.marks.read();
        sample
    }

    fn keep(&self, journal: &Journal) -> io::Result<()> {
        self.end_mark.keep(&self.files, journal)
    }
}
