//! `mvmctl completion SHELL`

use super::Context;
use crate::completion::SHELLS;
use crate::render::shown::Shown;
use crate::report::{Failure, Outcome};

/// Print a completion script: commands, options, and the names of VMs
///
/// The script asks mvmctl itself at each press of TAB. Names of VMs come from the folder: no VM is
/// dialled. For bash: mvmctl completion bash > /usr/share/bash-completion/completions/mvmctl
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The shell to write the script for
    #[arg(value_parser = shells())]
    shell: String,
}

fn shells() -> clap::builder::PossibleValuesParser {
    SHELLS.names().collect::<Vec<_>>().into()
}

impl Args {
    #[expect(clippy::unused_async, reason = "all commands have one signature")]
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
        let shell = SHELLS.completer(&self.shell).ok_or_else(|| {
            // The argument's parser lets no other names through.
            Failure::usage(format!("no completions for the shell {}", self.shell))
        })?;
        let mut script = Vec::new();
        // By name, not by path: the script is installed once, the program may move.
        shell.write_registration("COMPLETE", "mvmctl", "mvmctl", "mvmctl", &mut script)?;
        context
            .ui
            .print(&Shown::lines(&String::from_utf8_lossy(&script), "\t"))?;
        Ok(Outcome::Done)
    }
}
