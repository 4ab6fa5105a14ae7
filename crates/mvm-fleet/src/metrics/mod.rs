//! The fleet as metrics: Prometheus text and OpenMetrics, made of the view at each scrape.
//!
//! docs/metrics.md has all names. What holds for all of them: no sample has a timestamp, since a series
//! with its own never goes stale; none is NaN; what a guest sends is cleaned, cut and bounded in number;
//! a VM that cannot be reached has `mvm_agent_up 0` and nothing else, so that no old figure of it is
//! taken for a new one; `mvm_fleet_vms` has every state of every pool, zeros included, so that an empty
//! answer to a query is a lost exporter and not an empty fleet.

mod fleet;
mod process;
#[cfg(test)]
mod tests;
mod text;
mod vm;

use crate::{ActionLog, Facts, Now, Policy, View};
pub use process::Process;
pub use text::Format;
use text::{Family, Writer};

/// What is told of.
#[derive(Debug, Clone, Copy)]
pub struct Exposition<'a> {
    /// The fleet. [`View::tick`] is to be called before.
    pub view: &'a View,
    /// The pools that are told even if there is no VM in them, and their bounds.
    pub policy: &'a Policy,
    /// Whose waiting connections are told.
    pub facts: &'a Facts,
    /// What was done.
    pub log: &'a ActionLog,
    /// The time.
    pub now: &'a Now,
    /// The program that tells, if its own figures are to be told.
    pub process: Option<&'a Process>,
    /// Whether each VM has its series. What a host of thousands sends upward has not.
    pub per_vm: bool,
}

impl Exposition<'_> {
    /// All of it, in pieces that belong behind each other. There are some twenty megabytes of it on a host
    /// of ten thousand VMs, which are not copied together for that.
    pub fn render(&self, format: Format) -> Vec<String> {
        let mut head = Writer::new(format);
        fleet::write(self, &mut head);
        let mut pieces = vec![head.into_text()];
        if self.per_vm {
            pieces.extend(vm::write(self, format));
        }
        let mut tail = Writer::new(format);
        if let Some(process) = self.process {
            process.write(&mut tail);
        }
        tail.end();
        pieces.push(tail.into_text());
        pieces
    }
}

/// Every family, in the order in which they are written.
fn families() -> impl Iterator<Item = &'static Family> {
    fleet::families()
        .chain(vm::families())
        .chain(process::families())
}

/// The rows of the table of docs/metrics.md: name, type, labels, what it says.
pub fn documentation() -> String {
    let mut table = String::from("| name | type | says |\n| --- | --- | --- |\n");
    for family in families() {
        let kind = match family.kind {
            text::Kind::Gauge => "gauge",
            text::Kind::Counter => "counter",
            text::Kind::Info => "info",
        };
        table.push_str("| `");
        table.push_str(family.name);
        table.push_str(family.suffix());
        table.push_str("` | ");
        table.push_str(kind);
        table.push_str(" | ");
        table.push_str(family.help);
        table.push_str(" |\n");
    }
    table
}
