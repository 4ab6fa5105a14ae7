//! `mvmctl vm sleep`

use super::{Context, why_unreachable};
use crate::fleet;
use crate::render::shown::Shown;
use crate::render::{data, steps};
use crate::report::{Failure, Outcome};
use crate::vm_name;
use mvm_protocol::drop_in::Secs;
use mvm_protocol::lifecycle::{SleepPrep, Token};
use mvm_registry::Unreachable;
use std::time::Duration;

/// Make a guest ready to be frozen, for an orchestrator that takes the snapshot itself
///
/// Runs the checkpoint commands, syncs the filesystems and drops the page cache. When it returns the
/// guest waits: freeze it, or let it run on with `mvmctl vm wake NAME --aborted`. It also runs on by
/// itself when the lease is over.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    vm: vm_name::One,

    /// Your name for this sleep; the agent makes one up if it is not given
    #[arg(long, value_parser = token)]
    token: Option<Token>,

    /// How long the guest may take to get ready, or is rolled back
    #[arg(long, value_name = "D", value_parser = secs, default_value = "60s")]
    deadline: Secs,

    /// How long it waits, of its own time, before it runs on by itself
    #[arg(long, value_name = "D", value_parser = secs, default_value = "10m")]
    lease: Secs,

    /// Fail, and let the guest run on, unless all of its work could be frozen
    #[arg(long)]
    require_freeze: bool,
}

/// Reads a token from the command line.
pub(crate) fn token(text: &str) -> Result<Token, String> {
    Token::new(text).ok_or_else(|| "a token has 1 to 256 bytes".to_owned())
}

/// Reads seconds as the protocol has them.
pub(crate) fn secs(text: &str) -> Result<Secs, String> {
    let duration: Duration = crate::args::duration(text)?;
    Secs::new(duration).ok_or_else(|| "over 0 and at most a day".to_owned())
}

impl Args {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
        let asked = SleepPrep {
            token: self.token,
            deadline_secs: self.deadline,
            lease_secs: self.lease,
            require_freeze: self.require_freeze,
        };
        let names = [self.vm.name];
        let answered = fleet::ask(context, &names, async |mut session| {
            session.sleep_prep(asked.clone()).await
        });
        let fleet = answered.await?;
        if let [answered] = fleet.answers.as_slice()
            && let (Some(vm), Ok(_)) = (&answered.vm, &answered.result)
            && let Some(Unreachable::MayBeCutOff { vmm }) =
                why_unreachable(vm, context.deadlines().connect).await
        {
            let name = &answered.name;
            context.ui.note(&format!(
                "{name}: {vmm} cuts a guest off that is paused and resumed without a snapshot: ask it for \
                 one in between, or have `mvmctl vm wake {name}` find the guest again"
            ));
        }
        data::fleet(context, &fleet, || {
            fleet.only().map_or_else(Shown::new, |(_, ready)| {
                let steps = steps::table(context, &ready.steps);
                let ready = format!("ready, token {}", ready.token.as_str());
                [steps, Shown::empty_line(), Shown::line(&ready)]
                    .into_iter()
                    .collect()
            })
        })?;
        fleet.finish(context, |_| false)
    }
}
