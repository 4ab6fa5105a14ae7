//! The options that every command takes, and how values are written.

use crate::commands::Command;
use clap::{Args, CommandFactory as _, Parser, ValueEnum};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

/// Shows microVMs through the agent in each of them, and starts and stops them.
///
/// A VM is named by its folder in $MVM_HOME/vms, or by an address: unix:PATH (a VMM's hybrid vsock
/// socket, or the agent's own) or vsock:CID.
#[derive(Debug, Parser)]
#[command(name = "mvmctl", version, after_long_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
  0    done, healthy
  1    the agent answered, and the answer is bad (unhealthy, refused, failed)
  2    usage
  3    no such VM, or not reachable
  4    several VMs: some failed

Environment:
  MVM_HOME    where VMs are kept (default: /var/lib/mvm for root, else $XDG_DATA_HOME/mvm)
  MVM_CONFIG  mvmctl.toml (default: $XDG_CONFIG_HOME/mvm/mvmctl.toml, then /etc/mvm/mvmctl.toml)
  NO_COLOR    no colour, whatever the terminal can do";

/// Options that stand before or after any command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// How data is written to standard output
    #[arg(
        short,
        long,
        value_enum,
        value_name = "FORMAT",
        default_value_t,
        global = true
    )]
    pub(crate) output: Format,

    /// The same as --output json
    #[arg(long, conflicts_with = "output", global = true)]
    pub(crate) json: bool,

    /// When to use colour
    #[arg(long, value_enum, value_name = "WHEN", default_value_t, global = true)]
    pub(crate) color: Color,

    /// Show the conversation with the agents on standard error
    #[arg(short, long, global = true)]
    pub(crate) verbose: bool,

    /// How long to wait, for example 500ms, 2s, 1m: for a connection (else 2s) and for an answer
    /// (else 10s); with `wait`, how long altogether; with `exec`, how long the command may run
    #[arg(long, value_name = "DURATION", value_parser = duration, global = true)]
    pub(crate) timeout: Option<Duration>,

    /// How many VMs are asked at once
    #[arg(long, value_name = "N", default_value = "256", global = true)]
    pub(crate) parallel: NonZeroUsize,

    /// Settings in place of the usual mvmctl.toml
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) config: Option<PathBuf>,
}

impl Global {
    /// The output format, `--json` taken into account.
    pub(crate) fn format(&self) -> Format {
        if self.json { Format::Json } else { self.output }
    }
}

/// The settings' file, if one is named: by `$MVM_CONFIG` if not by the command line. Empty, that says
/// nothing.
pub(crate) fn config(given: Option<PathBuf>) -> Option<PathBuf> {
    let named = || std::env::var_os("MVM_CONFIG").filter(|file| !file.is_empty());
    given.or_else(|| named().map(PathBuf::from))
}

/// How data is written to standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Format {
    /// For people
    #[default]
    Table,
    /// A table with more columns
    Wide,
    /// JSON, one document (streams: one object a line)
    Json,
    /// YAML, the same shapes as JSON
    Yaml,
    /// Names alone, one a line
    Name,
}

/// When to use colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Color {
    /// If standard output is a terminal and NO_COLOR is not set
    #[default]
    Auto,
    /// Even into a pipe
    Always,
    /// Not at all
    Never,
}

/// The whole command tree, for completion and manual pages.
pub(crate) fn command() -> clap::Command {
    Cli::command()
}

/// The longest duration that can be asked for: a year. Beyond some centuries clocks overflow.
const LONGEST: Duration = Duration::from_secs(366 * 86_400);

/// Reads a duration as it is written on the command line: `500ms`, `2s`, `1m`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let unsigned = text
        .parse::<jiff::SignedDuration>()
        .ok()
        .and_then(|signed| Duration::try_from(signed).ok());
    match unsigned {
        Some(duration) if !duration.is_zero() && duration <= LONGEST => Ok(duration),
        _ => {
            Err("a duration over zero is asked for, such as 500ms, 2s or 1m; a year at most".into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_tree_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn durations() {
        let good = |text: &str, ms: u64| {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        };
        good("500ms", 500);
        good("2s", 2000);
        good("1.5s", 1500);
        good("1m", 60_000);
        good("1h30m", 5_400_000);
        good("8784h", 31_622_400_000);
        for bad in [
            "",
            "5",
            "0s",
            "-1s",
            "s",
            "2 fortnights",
            "1y",
            "99999999999999999999s",
            "2562047788015215h",
            "8785h",
        ] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
