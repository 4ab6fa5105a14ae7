//! `mvmctl vm logs NAME`

use super::Context;
use super::machine::{Wanted, failure, home, name};
use crate::render::shown::Shown;
use crate::report::{Failure, Outcome};
use crate::vm_name::complete;
use clap_complete::engine::ArgValueCompleter;
use mvm_registry::{Pause, VmState, Watch};
use std::fs::File;
use std::io::Read as _;
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
}

impl Args {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
        let vm = name(&self.name)?;
        let home = home(context)?;
        let file = mvm_vmm::machine::console(&home, &vm)
            .map_err(|error| failure(context, &self.name, Wanted::Logs, &error))?;
        let mut log = Log::new(file);
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
        VmState::Running
            | VmState::Starting
            | VmState::Paused(Pause::Snapshot | Pause::BrokenSnapshot | Pause::Other)
            | VmState::StartBrokenOff
    )
}

/// A log that is printed as it grows.
#[derive(Debug)]
struct Log {
    file: File,
    /// The beginning of a line: on a terminal only whole ones are printed.
    partial: Vec<u8>,
}

impl Log {
    fn new(file: File) -> Self {
        Self {
            file,
            partial: Vec::new(),
        }
    }

    fn print_new(&mut self, context: &Context) -> Result<(), Failure> {
        let mut piece = vec![0; PIECE];
        loop {
            let count = self.file.read(&mut piece)?;
            let Some(bytes) = piece.get(..count).filter(|bytes| !bytes.is_empty()) else {
                return Ok(());
            };
            if let Some(raw) = context.ui.not_a_terminal() {
                raw.print(bytes)?;
                continue;
            }
            self.partial.extend_from_slice(bytes);
            // A line without an end does not fill memory.
            let end = match self.partial.iter().rposition(|byte| *byte == b'\n') {
                Some(end) => end + 1,
                None if self.partial.len() > PIECE => self.partial.len(),
                None => continue,
            };
            let lines: Vec<u8> = self.partial.drain(..end).collect();
            context.ui.print(&shown(&lines))?;
        }
    }

    fn print_rest(&mut self, context: &Context) -> Result<(), Failure> {
        let rest = std::mem::take(&mut self.partial);
        if rest.is_empty() {
            Ok(())
        } else {
            context.ui.print(&shown(&rest))
        }
    }
}

/// Lines without anything that a terminal would obey.
fn shown(lines: &[u8]) -> Shown {
    let text = String::from_utf8_lossy(lines);
    let lines: Vec<_> = text
        .lines()
        .map(|line| line.trim_end_matches('\r'))
        .collect();
    Shown::lines(&lines.join("\n"), "    ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_gets_lines_and_no_commands() {
        assert_eq!(shown(b"a\r\n\tb\x1b[2J\n").as_str(), "a\n    b\\u{1b}[2J\n");
        assert_eq!(shown(b"end").as_str(), "end\n");
        assert_eq!(shown(b"\xff\n").as_str(), "\u{fffd}\n");
    }
}
