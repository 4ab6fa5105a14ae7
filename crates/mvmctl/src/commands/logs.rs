//! `mvmctl vm logs NAME`

use super::Context;
use super::machine::{Wanted, failure, home, name};
use crate::render::console::ConsoleText;
use crate::report::{Failure, Outcome};
use crate::ui::Ui;
use crate::vm_name::complete;
use clap_complete::engine::ArgValueCompleter;
use mvm_registry::{VmState, Watch};
use mvm_vmm::Error;
use mvm_vmm::console::Follow;
use mvm_vmm::machine::{console, last_console};
use std::fs::File;
use std::io::{self, Read as _};
use std::time::Duration;

/// How often a log is looked at that is followed.
const TICK: Duration = Duration::from_millis(100);

/// How much is read at once, in bytes.
const PIECE: usize = 64 * 1024;

/// Print what a guest wrote to its console
///
/// On a terminal nothing of it is obeyed: escape sequences are shown. Elsewhere it comes byte for
/// byte.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The VM
    #[arg(add = ArgValueCompleter::new(complete))]
    name: String,

    /// Go on as more is written, until the VM stops
    #[arg(short, long)]
    follow: bool,

    /// What it wrote the time before, until the VM was started again
    #[arg(long, conflicts_with = "follow")]
    previous: bool,
}

impl Args {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
        let vm = name(&self.name)?;
        let home = home(context)?;
        let failed = |error: Error| failure(context, &self.name, Wanted::Logs, &error);
        if self.previous {
            let last = last_console(&home, &vm).map_err(failed)?;
            let mut log = Log::new(last, &context.ui);
            log.print_new(context)?;
            log.print_rest(context)?;
            return Ok(Outcome::Done);
        }
        let mut log = Log::new(console(&home, &vm).map_err(failed)?, &context.ui);
        let folder = home.vm(&vm);
        // Where it cannot be had, each look is one at the VM too.
        let mut watch = self.follow.then(|| Watch::of(&home, [vm.clone()]).ok());
        loop {
            // Seen before the log is read: what is written before the end is not missed.
            let goes_on = match &watch {
                None => false,
                Some(Some(watch)) => watch.state(&vm).is_some_and(may_write),
                Some(None) => folder.vm().is_some_and(|vm| may_write(&vm.state)),
            };
            log.print_new(context)?;
            if !goes_on || context.ui.is_closed() {
                log.print_rest(context)?;
                return Ok(Outcome::Done);
            }
            let tick = tokio::time::sleep(TICK);
            match watch.as_mut().and_then(Option::as_mut) {
                None => tick.await,
                Some(watch) => tokio::select! {
                    () = tick => {}
                    change = watch.next() => drop(change?),
                },
            }
        }
    }
}

/// Whether the console of such a VM may be written to.
fn may_write(state: &VmState) -> bool {
    matches!(
        state,
        VmState::Running | VmState::Starting | VmState::Paused(_) | VmState::StartBrokenOff
    )
}

/// What a log is read from.
trait Source {
    /// Some of what there is; 0 if there is no more for now.
    fn some(&mut self, buffer: &mut [u8]) -> io::Result<usize>;
}

impl Source for Follow {
    fn some(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.read(buffer)
    }
}

impl Source for File {
    fn some(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.read(buffer)
    }
}

/// A log that is printed as it grows.
#[derive(Debug)]
struct Log<S> {
    source: S,
    text: ConsoleText,
}

impl<S: Source> Log<S> {
    fn new(source: S, ui: &Ui) -> Self {
        Self {
            source,
            text: ConsoleText::for_stdout(ui),
        }
    }

    fn print_new(&mut self, context: &Context) -> Result<(), Failure> {
        let mut piece = vec![0; PIECE];
        loop {
            let count = self.source.some(&mut piece)?;
            let Some(bytes) = piece.get(..count).filter(|bytes| !bytes.is_empty()) else {
                return Ok(());
            };
            self.text.print(&context.ui, bytes)?;
        }
    }

    fn print_rest(&mut self, context: &Context) -> Result<(), Failure> {
        self.text.print_rest(&context.ui)
    }
}
