//! `mvmctl` shows microVMs through the agent in each of them, and starts and stops them.
//!
//! Arguments become a [`Context`](commands::Context) and a command; the command gives an outcome
//! or a failure; [`report`] alone turns that into words on stderr and an exit code.

mod args;
mod asked_to_end;
mod backoff;
mod clock;
mod commands;
mod conversation;
mod fleet;
mod raw_terminal;
mod render;
mod report;
mod stdio;
mod transfer;
mod ui;
mod vm_name;

use clap::Parser as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    // Ends the process if it is a shell that asks for completions.
    clap_complete::CompleteEnv::with_factory(args::command).complete();
    let cli = args::Cli::parse();
    let ui = ui::Ui::new(cli.global.color, cli.global.verbose);
    if cli.global.verbose {
        conversation::show();
    }
    let context = commands::Context::new(ui, cli.global);
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return report::finish(&context, Err(error.into())),
    };
    let outcome = runtime.block_on(cli.command.run(&context));
    report::finish(&context, outcome)
}
