//! `mvmctl fleet serve`

mod clones;
mod demand;
mod hand;
mod http;
pub(super) mod inputs;
pub(super) mod owner;
pub(super) mod policy_file;
mod process;
#[cfg(test)]
mod tests;

use super::super::Context;
use crate::confine;
use crate::feed::{clock, folders};
use crate::fleet::allow_descriptors;
use crate::report::{Failure, Outcome};
use http::door::Server;
use http::listen::Listen;
pub(super) use http::listen::SOCKET;
use inputs::Inputs;
use mvm_registry::Error as RegistryError;
use owner::Owner;
use policy_file::PolicyFile;
use signal_hook::consts::SIGHUP;
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::timeout;

/// Serve the signals that scale the fleet, and do what its policy says
///
/// It watches all VMs of $MVM_HOME, and those that mvmctl.toml adds, and answers over HTTP: /metrics
/// for Prometheus, /sd for its discovery, /v1/fleet and /v1/pools/NAME with one number each for KEDA
/// and scripts, /healthz and /readyz. Until every VM has answered or failed once the numbers are
/// answered with 503. With --policy it pauses, puts to sleep, wakes, makes and removes VMs as the
/// policy says. HUP has the policy, the token and the certificate read again; TERM ends it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    listen: Listen,

    /// Who sleeps, who wakes, who is made: fleet.toml
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,

    /// Only the fleet's series, and none of each VM: for hosts of thousands
    #[arg(long)]
    no_per_vm: bool,
}

/// How long answers and actions that are under way may take when it is to end.
const END_WITHIN: Duration = Duration::from_secs(10);

impl Args {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
        let mut asked = context.termination_requests_and_reloads();
        let inventory = context.inventory()?;
        let home = inventory.home().clone();
        let _lock = home.lock_fleet().map_err(|error| refused(&error))?;
        allow_descriptors();
        let policy_file = self.policy.map(PolicyFile::at);
        let policy = policy_file.as_ref().map(PolicyFile::read).transpose()?;
        let listeners = self.listen.open(&home)?;
        if policy.is_none() {
            confine::to_reading()
                .map_err(|error| Failure::failed(format!("cannot confine itself: {error}")))?;
        }
        let (inputs, received) = Inputs::new();
        let settings = owner::Settings {
            per_vm: !self.no_per_vm,
            inventory,
            dialer: context.dialer.clone(),
            deadlines: context.deadlines(),
            parallel: context.parallel,
            clock: clock::now,
        };
        let (hand, mut hands) = hand::hand(context, home.clone(), inputs.clone());
        let mut half_done = Vec::new();
        if let Some(policy) = &policy {
            hands.listen(policy)?;
            half_done = hand::half_done(&home, policy);
        }
        let acts = policy.is_some();
        let mut owner = Owner::new(settings, policy.unwrap_or_default(), inputs.clone());
        if acts {
            owner.set_hand(hand, half_done);
        }
        for address in listeners.addresses() {
            context.ui.note(&format!("serving on {address}"));
        }
        let server = Server::start(listeners, &inputs);
        let _folders = folders::watch(owner.inventory().clone(), inputs.clone());
        let ended = {
            let owning = owner.run(received, &context.ui);
            tokio::pin!(owning);
            loop {
                let number = tokio::select! {
                    ended = &mut owning => break ended,
                    never = hands.run() => match never {},
                    number = asked.next() => number,
                };
                if number != SIGHUP {
                    break Ok(());
                }
                if let Err(failure) = server.reload() {
                    crate::report::tell(context, &failure);
                }
                let read = policy_file.as_ref().map(PolicyFile::read).transpose();
                let taken = read.and_then(|policy| {
                    policy
                        .as_ref()
                        .map(|policy| hands.listen(policy))
                        .transpose()?;
                    Ok(policy)
                });
                match taken {
                    Ok(Some(policy)) => {
                        inputs.policy(policy);
                        context.ui.note("the policy was read again");
                    }
                    Ok(None) => {}
                    Err(failure) => {
                        crate::report::tell(context, &failure);
                        context
                            .ui
                            .note("the policy that was in force before stays so");
                    }
                }
            }
        };
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        let _ = timeout(END_WITHIN, async {
            server.end().await;
        })
        .await;
        hands.end().await;
        ended.map(|()| Outcome::Done)
    }
}

fn refused(error: &RegistryError) -> Failure {
    match error {
        RegistryError::Locked { by } => {
            let by = by.map_or(String::new(), |pid| format!(", process {pid}"));
            Failure::failed(format!("another program serves this fleet already{by}")).hint(
                "one is enough: ask it with `mvmctl fleet status`, or end it first; \
                 another fleet has another $MVM_HOME",
            )
        }
        error => Failure {
            vm: None,
            ..Failure::registry("NAME", error)
        },
    }
}
