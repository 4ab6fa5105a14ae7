//! `mvmctl doctor`

use super::Context;
use super::machine::home;
use crate::args::Format;
use crate::render::data::document;
use crate::render::text::clean;
use crate::report::{Failure, Outcome};
use mvm_vmm::Patience;
use mvm_vmm::doctor::{self, Finding, Level};
use serde_json::json;

/// Find out what is in the way of starting VMs here, and how to mend it
///
/// Looks at KVM, the VMMs and their versions, what images are made of, and what is left of VMs that
/// ended by themselves. Exits with 1 if no VM can be started.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

impl Args {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
        let home = home(context)?;
        let progress = context.ui.progress("trying KVM");
        let at_most = context.timeout.unwrap_or(doctor::TRIAL);
        let examined = tokio::task::spawn_blocking(move || {
            doctor::examine(&home, Patience::new(at_most, None))
        });
        let findings = match examined.await {
            Ok(findings) => findings,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        };
        drop(progress);
        let able = doctor::can_start_vms(&findings);
        match context.format {
            Format::Json | Format::Yaml => {
                let report = json!({"can_start_vms": able, "findings": findings});
                document(context, &report)?;
            }
            Format::Name => context
                .ui
                .print(&list(&findings, |finding| finding.subject.clone()))?,
            Format::Table | Format::Wide => context.ui.print(&list(&findings, line))?,
        }
        Ok(if able { Outcome::Done } else { Outcome::Bad })
    }
}

fn list(findings: &[Finding], show: impl Fn(&Finding) -> String) -> String {
    let lines = findings.iter().map(|finding| show(finding) + "\n");
    lines.collect::<Vec<_>>().concat()
}

fn line(finding: &Finding) -> String {
    let mark = match finding.level {
        Level::Ok => "ok     ",
        Level::Warning => "warning",
        Level::Problem => "problem",
    };
    let first = format!("{mark}  {}: {}", finding.subject, clean(&finding.message));
    match &finding.fix {
        Some(fix) => format!("{first}\n         to mend it: {}", clean(fix)),
        None => first,
    }
}
