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
//!   else writes to either. No `println!`: it panics on a closed pipe.
//! - Text that comes from a guest, a file name or a command line goes through
//!   [`text::clean`](crate::render::text::clean) before it is printed; cells of
//!   [`render::table`](crate::render::table), notes and failures do that by themselves.
//! - A command knows neither exit codes nor colours. It returns an [`Outcome`], or a [`Failure`]
//!   that says what was tried, why it failed and what to do next.
//! - A blocking job (files apart) runs in `tokio::task::spawn_blocking`: the runtime has one thread.

pub(crate) mod completion;
pub(crate) mod man;

use crate::args::{Format, Global};
use crate::report::{Failure, Outcome};
use crate::ui::Ui;
use std::time::Duration;

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
        /// Bootable guests
        #[command(subcommand)]
        Image(Image),
        Completion(completion::Args),
        Man(man::Args),
    }
}

group! {
    /// `mvmctl vm …`
    Vm {
    }
}

group! {
    /// `mvmctl image …`
    Image {
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
}

impl Context {
    /// From the options that every command takes.
    pub(crate) fn new(ui: Ui, global: &Global) -> Self {
        Self {
            ui,
            format: global.format(),
            timeout: global.timeout,
        }
    }
}
