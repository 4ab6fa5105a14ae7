//! `mvmctl vm check`

use super::Context;
use crate::fleet;
use crate::render::shown::Shown;
use crate::render::words::succeeded;
use crate::render::{data, inspect};
use crate::report::{Failure, Outcome};
use crate::vm_name;
use clap::ValueEnum;
use mvm_client::{Error, Session};
use mvm_protocol::ErrorCode;
use mvm_protocol::answer::Checked;
use mvm_protocol::request::{Check, CheckKind};
use mvm_protocol::status::{Health, Inspect};
use mvm_registry::nearest;

/// Run a health check or a probe now, and show what it found
///
/// It may take as long as the check's own timeout; mvmctl waits for a minute unless --timeout says
/// otherwise. The exit code is 1 if the check fails or leaves the integration unhealthy.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    vm: vm_name::One,

    /// The integration's or probe's name
    #[arg(value_name = "CHECK")]
    check: String,

    /// Which of the two it is, where an integration and a probe have one name
    #[arg(long, value_enum)]
    kind: Option<Kind>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    /// A service's health check
    Integration,
    /// A read-only probe
    Probe,
}

impl Args {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
        let names = [self.vm.name];
        let kind = self.kind.map(|kind| match kind {
            Kind::Integration => CheckKind::Integration,
            Kind::Probe => CheckKind::Probe,
        });
        let name = &self.check;
        let asked = fleet::ask(context, &names, async |session| match kind {
            Some(kind) => run(session, kind, name).await.map(Found::checked),
            None => find_and_run(session, name).await,
        });
        let fleet = asked.await?;
        let fleet = fleet.turn(|vm, _, found| match found {
            Found::Checked(checked) => Ok(*checked),
            Found::Both => Err(Failure::usage(format!(
                "`{name}` is both an integration and a probe"
            ))
            .of(vm)
            .hint("say which: --kind integration or --kind probe")),
            Found::Neither { nearest } => Err(Failure::not_found(format!(
                "`{name}` is neither an integration nor a probe of this guest"
            ))
            .of(vm)
            .hint(match nearest {
                Some(nearest) => format!("did you mean `{nearest}`?"),
                None => format!("mvmctl vm inspect {vm} shows those that there are"),
            })),
        });
        data::fleet(context, &fleet, || {
            let shown = |(_, checked)| inspect::checked(context, checked);
            fleet.only().map_or_else(Shown::new, shown)
        })?;
        fleet.finish(context, is_bad)
    }
}

/// What looking for a check without knowing its kind came to.
enum Found {
    Checked(Box<Checked>),
    Both,
    Neither { nearest: Option<String> },
}

impl Found {
    fn checked(checked: Checked) -> Self {
        Self::Checked(Box::new(checked))
    }
}

async fn run(mut session: Session, kind: CheckKind, name: &str) -> Result<Checked, Error> {
    let name = name.to_owned();
    session.check(Check { kind, name }).await
}

async fn find_and_run(mut session: Session, name: &str) -> Result<Found, Error> {
    let inspect = session.inspect().await?;
    let integration = inspect
        .status
        .integrations
        .iter()
        .any(|one| one.name == name);
    let probe = inspect.probes.iter().any(|one| one.name == name);
    match (integration, probe) {
        (true, true) => Ok(Found::Both),
        (true, false) => run(session, CheckKind::Integration, name)
            .await
            .map(Found::checked),
        (false, true) => run(session, CheckKind::Probe, name)
            .await
            .map(Found::checked),
        (false, false) if inspect.status.integrations_omitted + inspect.probes_omitted > 0 => {
            try_both(session, name).await
        }
        (false, false) => Ok(Found::Neither {
            nearest: nearest_check(name, &inspect),
        }),
    }
}

/// For a guest with more checks than an answer can list.
async fn try_both(mut session: Session, name: &str) -> Result<Found, Error> {
    for kind in [CheckKind::Integration, CheckKind::Probe] {
        let name = name.to_owned();
        match session.check(Check { kind, name }).await {
            Ok(checked) => return Ok(Found::checked(checked)),
            Err(Error::Refused(refusal)) if refusal.code == ErrorCode::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Found::Neither { nearest: None })
}

fn nearest_check(name: &str, inspect: &Inspect) -> Option<String> {
    let integrations = inspect
        .status
        .integrations
        .iter()
        .map(|one| one.name.as_str());
    let probes = inspect.probes.iter().map(|one| one.name.as_str());
    nearest(name, integrations.chain(probes)).map(str::to_owned)
}

fn is_bad(checked: &Checked) -> bool {
    let integration = checked.integration.as_ref().is_some_and(|one| {
        one.health == Health::Unhealthy
            || one
                .last_check
                .as_ref()
                .is_some_and(|check| !succeeded(check))
    });
    let probe = checked.probe.as_ref().is_some_and(|one| !one.ok);
    integration || probe
}
