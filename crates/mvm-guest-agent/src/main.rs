//! `mvm-guest-agent`: answers a microVM's host about health, load and probes.

#![cfg_attr(
    not(feature = "dev"),
    allow(
        dead_code,
        reason = "core, machine, serve and ports have what `dev` alone calls; dev builds lint all of it"
    )
)]

mod check_config;
mod config;
mod core;
#[cfg(feature = "dev")]
mod dev;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
#[cfg(all(feature = "dev", any(test, fuzzing)))]
pub use dev::fuzz as dev_fuzz;
mod machine;
mod payload;
mod ports;
mod run;
mod serve;
#[cfg(test)]
mod simulation;

use config::Invocation;
use machine::console::say;
use mvm_protocol::object::in_one_line;
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    machine::inherited::close_on_exec();
    machine::inherited::heed_signals();
    #[cfg(feature = "dev")]
    match dev::files::asked(lexopt::Parser::from_env()) {
        Ok(None) => {}
        Ok(Some(body)) => return dev::files::serve(&body),
        Err(message) => {
            say!("{message}");
            return ExitCode::from(2);
        }
    }
    let invocation = match config::read(lexopt::Parser::from_env()) {
        Ok(invocation) => invocation,
        Err(message) => {
            say!("{message}");
            return ExitCode::from(2);
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            say!("cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match invocation {
        Invocation::Help => print(config::USAGE),
        Invocation::Version => print(&format!(
            "mvm-guest-agent {} ({})\n",
            serve::facts::VERSION,
            run::profile()
        )),
        Invocation::CheckConfig(dir) => {
            let report = runtime.block_on(check_config::check(&dir));
            for problem in &report.problems {
                print(&format!("{}\n", in_one_line(problem)));
            }
            if !report.problems.is_empty() {
                return ExitCode::FAILURE;
            }
            let (integrations, probes) = (report.integrations, report.probes);
            print(&format!(
                "{integrations} integrations and {probes} probes, no problem\n"
            ))
        }
        Invocation::Payload(pointer) => match payload::value(&payload::path(), &pointer) {
            Ok(Some(text)) => print(&text),
            // Nothing is said: scripts ask for what may be missing.
            Ok(None) => ExitCode::FAILURE,
            Err(message) => {
                say!("{message}");
                ExitCode::from(2)
            }
        },
        Invocation::Run(config) => {
            let local = tokio::task::LocalSet::new();
            match local.block_on(&runtime, run::run(*config)) {
                Ok(()) => ExitCode::SUCCESS,
                Err(message) => {
                    say!("{message}");
                    ExitCode::FAILURE
                }
            }
        }
    }
}

/// Writes to standard output; a reader that went away is no fault.
fn print(text: &str) -> ExitCode {
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}
