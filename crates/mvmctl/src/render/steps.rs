//! What `sleep-prep` and `wake` report, a line a step.

use super::shown::Shown;
use super::shown::table::{Style, Table, cell};
use super::words;
use crate::commands::Context;
use mvm_protocol::Lenient;
use mvm_protocol::lifecycle::{Outcome, Step};

/// The steps, in the order in which they were taken.
pub(crate) fn table(context: &Context, steps: &[Step]) -> Shown {
    let headers = ["STEP", "INTEGRATION", "OUTCOME", "TOOK", "OUTPUT"];
    let mut table = Table::new(context.ui.looks(), &headers);
    for step in steps {
        let tone = match step.outcome {
            Lenient::Known(Outcome::Ok) => Style::Good,
            Lenient::Known(Outcome::Failed | Outcome::TimedOut) => Style::Bad,
            Lenient::Known(Outcome::Skipped) => Style::Dim,
            Lenient::Other(_) => Style::Warn,
        };
        table.row(vec![
            cell(Style::Plain, &words::wire(&step.step)),
            cell(
                Style::Plain,
                step.integration.as_deref().unwrap_or_default(),
            ),
            cell(tone, &words::wire(&step.outcome)),
            cell(Style::Plain, &format!("{}ms", step.duration_ms)),
            cell(Style::Plain, step.detail.as_deref().unwrap_or_default()),
        ]);
    }
    table.finish()
}
