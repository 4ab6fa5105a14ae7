//! `mvmctl` shows microVMs through the agent in each of them, and starts and stops them.
//!
//! Arguments become a [`Context`](commands::Context) and a command; the command gives an outcome
//! or a failure; [`report`] alone turns that into words on stderr and an exit code.

mod args;
mod backoff;
mod clock;
mod commands;
mod completion;
mod confine;
mod conversation;
mod feed;
mod fleet;
mod handshakes;
mod raw_terminal;
mod render;
mod report;
mod stdio;
mod termination;
mod transfer;
mod ui;
mod vm_name;
mod vm_state;

use clap::Parser as _;
use handshakes::{AtTheEnd, FinishHandshakes};
use std::io::{ErrorKind, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use termination::Termination;

/// Prints what the command line asks for, or what is wrong with it.
#[expect(
    clippy::disallowed_methods,
    reason = "it flushes what clap has printed"
)]
fn usage(told: &clap::Error) -> ExitCode {
    match told.print().and_then(|()| std::io::stdout().flush()) {
        Err(error) if !told.use_stderr() && error.kind() != ErrorKind::BrokenPipe => {
            let ui = ui::Ui::new(args::Color::Auto, false);
            let failure = ui::unwritten(&error);
            ui.error(&failure.message);
            ui.hint(&failure.hint.unwrap_or_default());
            ExitCode::FAILURE
        }
        _ => u8::try_from(told.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from),
    }
}

fn main() -> ExitCode {
    let console_keeper = mvm_vmm::console::run_if_called();
    if handshakes::is_helper() {
        handshakes::finish();
        return ExitCode::SUCCESS;
    }
    // Ends the process if it is a shell that asks for completions.
    clap_complete::CompleteEnv::with_factory(args::command)
        .shells(completion::SHELLS)
        .complete();
    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        Err(told) => return usage(&told),
    };
    let ui = ui::Ui::new(cli.global.color, cli.global.verbose);
    if cli.global.verbose {
        conversation::show();
    }
    let dialer = mvm_client::Dialer::new();
    let handshakes = Arc::new(FinishHandshakes::of(dialer.clone()));
    // Dropped after the runtime, whatever happens below.
    let _at_the_end = AtTheEnd(Arc::clone(&handshakes));
    let termination = match Termination::watch(Arc::clone(&handshakes)) {
        Ok(termination) => termination,
        Err(error) => {
            ui.error(&format!("cannot wait for signals: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let context = commands::Context::new(ui, cli.global, dialer, termination, console_keeper);
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return report::finish(&context, Err(error.into())),
    };
    let outcome = runtime.block_on(cli.command.run(&context));
    let code = report::finish(&context, outcome);
    runtime.block_on(handshakes.wait());
    code
}
