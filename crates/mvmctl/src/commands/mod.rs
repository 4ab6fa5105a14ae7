//! The commands, one file each.
//!
//! # Adding one
//!
//! 1. Write `commands/<verb>.rs` with
//!    - `pub(crate) struct Args` deriving `Debug` and [`clap::Args`]; its doc comment is the
//!      command's help;
//!    - `impl Args { pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> }`.
//! 2. Add it to the two lists below: the `mod` line, and the line `Verb(verb::Args)` in the group
//!    it belongs to.
//!
//! # Conventions
//!
//! - A command writes data through [`Ui::print`](crate::ui::Ui::print) (stdout), talk through
//!   [`Ui::note`](crate::ui::Ui::note) (stderr), and holds a
//!   [`Ui::progress`](crate::ui::Ui::progress) over whatever may take more than a second. Nothing
//!   else writes to either, but [`stdio`](crate::stdio) the bytes of commands and files. No
//!   `println!`: it panics on a closed pipe.
//! - What is printed is [`Shown`](crate::render::shown::Shown): text in it has been cleaned, whether
//!   it comes from a guest, a file name or a command line. Notes and failures do that by themselves.
//! - A command knows neither exit codes nor colours. It returns an [`Outcome`], or a [`Failure`]
//!   that says what was tried, why it failed and what to do next.
//! - A blocking job (files apart) runs in `tokio::task::spawn_blocking`: the runtime has one thread.

pub(crate) mod attach;
pub(crate) mod check;
pub(crate) mod completion;
pub(crate) mod conformance;
pub(crate) mod connect;
pub(crate) mod cp;
pub(crate) mod dev;
pub(crate) mod doctor;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod fleet;
pub(crate) mod forward;
pub(crate) mod image_build;
pub(crate) mod inspect;
pub(crate) mod jobs;
pub(crate) mod kill;
mod liveness;
pub(crate) mod logs;
pub(crate) mod ls;
pub(crate) mod machine;
pub(crate) mod man;
mod mend;
pub(crate) mod pause;
pub(crate) mod payload;
pub(crate) mod pin;
pub(crate) mod ping;
pub(crate) mod restore;
pub(crate) mod resume;
pub(crate) mod rm;
pub(crate) mod run;
pub(crate) mod running;
pub(crate) mod sleep;
pub(crate) mod snapshot;
pub(crate) mod start;
pub(crate) mod status;
pub(crate) mod stop;
mod timings;
pub(crate) mod top;
pub(crate) mod touch;
mod unwoken;
pub(crate) mod wait;
pub(crate) mod wake;
mod waking;

use crate::args::{Format, Global};
use crate::report::{Failure, Outcome};
use crate::termination::{Termination, TerminationRequests};
use crate::ui::Ui;
use mvm_client::{Awaited, Deadlines, Dialer, Error, Session};
use mvm_registry::{Error as RegistryError, Inventory, Unreachable};
use mvm_vmm::Vmms;
use mvm_vmm::console::ConsoleKeeper;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Declares a group of commands: the clap enum, and the call of the one that was given.
macro_rules! group {
    ($(#[$meta:meta])* $name:ident { $($(#[$about:meta])* $variant:ident($args:ty)),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, clap::Subcommand)]
        pub(crate) enum $name {
            $($(#[$about])* $variant($args)),*
        }

        impl $name {
            /// Runs the command that was given.
            pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
                match self {
                    $(Self::$variant(args) => args.run(context).await),*
                }
            }
        }
    };
}

group! {
    /// `mvmctl …`
    Command {
        /// The VMs: see them, start and stop them
        #[command(subcommand)]
        Vm(Vm),
        /// All VMs as one: what scales them, and what acts on them
        #[command(subcommand)]
        Fleet(Fleet),
        /// Bootable guests
        #[command(subcommand)]
        Image(Image),
        Doctor(doctor::Args),
        Conformance(conformance::Args),
        Completion(completion::Args),
        Man(man::Args),
    }
}

group! {
    /// `mvmctl vm …`
    Vm {
        Ls(ls::Args),
        Ping(ping::Args),
        Status(status::Args),
        Inspect(inspect::Args),
        Check(check::Args),
        Wait(wait::Args),
        Events(events::Args),
        Top(top::Args),
        Exec(exec::Args),
        Cp(cp::Args),
        Connect(connect::Args),
        Forward(forward::Args),
        Jobs(jobs::Args),
        Attach(attach::Args),
        Kill(kill::Args),
        Snapshot(snapshot::Args),
        Restore(restore::Args),
        Start(start::Args),
        Run(run::Args),
        Stop(stop::Args),
        Pause(pause::Args),
        Resume(resume::Args),
        Rm(rm::Args),
        Touch(touch::Args),
        Pin(pin::Pin),
        Unpin(pin::Unpin),
        Logs(logs::Args),
        Sleep(sleep::Args),
        Wake(wake::Args),
    }
}

group! {
    /// `mvmctl fleet …`
    Fleet {
        Serve(fleet::serve::Args),
        Plan(fleet::plan::Args),
        Status(fleet::status::Args),
    }
}

group! {
    /// `mvmctl image …`
    Image {
        Build(image_build::Args),
    }
}

/// What every command is given.
#[derive(Debug)]
pub(crate) struct Context {
    /// The way out: stdout, stderr, progress.
    pub(crate) ui: Ui,
    /// How data is to be written.
    pub(crate) format: Format,
    /// `--timeout`, if it was given.
    pub(crate) timeout: Option<Duration>,
    /// How many VMs may be asked at once: no more than a semaphore can count.
    pub(crate) parallel: usize,
    /// Who dials: what it has begun is finished, whatever ends this program.
    pub(crate) dialer: Dialer,
    /// That this program keeps the consoles of the VMs that it starts.
    pub(crate) console_keeper: ConsoleKeeper,
    termination: Termination,
    config: Option<PathBuf>,
}

impl Context {
    /// From the options that every command takes.
    pub(crate) fn new(
        ui: Ui,
        global: Global,
        dialer: Dialer,
        termination: Termination,
        console_keeper: ConsoleKeeper,
    ) -> Self {
        Self {
            ui,
            format: global.format(),
            timeout: global.timeout,
            parallel: global.parallel.get().min(Semaphore::MAX_PERMITS),
            dialer,
            termination,
            console_keeper,
            config: crate::args::config(global.config),
        }
    }

    /// The VMs of this host, read anew. Before one is dialled, it is to be asked for by
    /// [`Inventory::now`], or [`Inventory::asked`].
    pub(crate) fn inventory(&self) -> Result<Inventory, Failure> {
        let inventory = Inventory::from_env(self.config.as_deref())?;
        Ok(inventory.with_vmms(Arc::new(Vmms)))
    }

    /// A conversation with a VM's agent.
    pub(crate) async fn connect(
        &self,
        vm: &mvm_client::Vm,
        deadlines: &Deadlines,
    ) -> Result<Session, Error> {
        match self.dialer.connect(vm.endpoint()?, deadlines).await {
            Err(error) if is_not_reached(&error) => {
                let why = why_unreachable(vm, deadlines.connect).await;
                Err(why.map_or(error, |why| RegistryError::Unreachable(why).into()))
            }
            connected => connected,
        }
    }

    /// From now on signals that ask this program to end are for the command.
    pub(crate) fn termination_requests(&self) -> TerminationRequests {
        self.termination.requests()
    }

    /// The same, and HUP asks the command to read its settings anew.
    pub(crate) fn termination_requests_and_reloads(&self) -> TerminationRequests {
        self.termination.requests_and_reloads()
    }

    /// How long to wait for agents.
    pub(crate) fn deadlines(&self) -> Deadlines {
        self.timeout.map_or_else(Deadlines::default, Deadlines::all)
    }
}

/// Whether the VM was dialled, and its guest not reached.
fn is_not_reached(error: &Error) -> bool {
    matches!(
        error,
        Error::NobodyListening { .. }
            | Error::TimedOut {
                awaited: Awaited::Connection | Awaited::Handshake,
                ..
            }
    )
}

/// Why a guest is not reached, or may not be, where its VMM has to do with it.
async fn why_unreachable(vm: &mvm_client::Vm, at_most: Duration) -> Option<Unreachable> {
    let record = vm.record()?.clone();
    let folder = vm.folder()?.clone();
    let asking = move || mvm_vmm::driver::unreachable(&record, &folder, at_most);
    tokio::task::spawn_blocking(asking).await.ok().flatten()
}
