//! `mvmctl vm cp`

mod beside;
mod download;
mod operand;
mod pack;
mod upload;

use super::Context;
use super::dev::{failure, session};
use crate::report::{Failure, Outcome};
use crate::vm_name::complete_operand;
use clap_complete::engine::ArgValueCompleter;
use download::Target;
use mvm_protocol::ErrorCode;
use mvm_protocol::dev::exec::Path as GuestPath;
use mvm_protocol::dev::files::{Archive, Get};
use operand::Operand;
use std::path::Path;
use tracing::Instrument as _;
use upload::Source;

/// Copy a file or a folder into a guest or out of it (dev builds of the agent)
///
/// One of the two is in a guest: NAME:/PATH. The other is a path here, or `-` for standard input or
/// output; a folder goes to standard output as a tar stream. If the destination is a folder that is
/// there, the copy goes into it. The copy is there whole or not at all: a file replaces one that is
/// there, a folder replaces and merges with nothing. Permission bits are kept, setuid, setgid and
/// sticky bits only into a guest; of what is in a folder the time of its last change is kept too, in
/// seconds, and none before 1970. Owners are not kept.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What is copied
    #[arg(value_name = "SRC", add = ArgValueCompleter::new(complete_operand))]
    from: String,

    /// Where it goes
    #[arg(value_name = "DST", add = ArgValueCompleter::new(complete_operand))]
    to: String,
}

impl Args {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
        // What was begun is removed before we end.
        let mut asked = context.termination_requests();
        tokio::select! {
            result = self.copy(context) => result.map(|()| Outcome::Done),
            number = asked.next() => Err(Failure::signalled(number, "and nothing was copied")),
        }
    }

    async fn copy(&self, context: &Context) -> Result<(), Failure> {
        let (from, to) = (operand::read(&self.from)?, operand::read(&self.to)?);
        match (from, to) {
            (Operand::Guest { vm, path }, Operand::Here(to)) => {
                let name = Path::new(path.as_str()).file_name();
                let to = Target::at(&to, name)?;
                out(context, &vm, path, to).await
            }
            (Operand::Guest { vm, path }, Operand::Stream) => {
                if context.ui.is_terminal() {
                    return Err(Failure::usage("a file's bytes are nothing for a terminal")
                        .hint(format!("mvmctl vm exec {vm} -- cat {}", path.as_str())));
                }
                context.ui.give_stdout_away();
                out(context, &vm, path, Target::Stdout).await
            }
            (Operand::Here(from), Operand::Guest { vm, path }) => {
                into(
                    context,
                    Source::open(from, context.timeout).await?,
                    &vm,
                    path,
                )
                .await
            }
            (Operand::Stream, Operand::Guest { vm, path }) => {
                into(context, Source::stdin()?, &vm, path).await
            }
            (
                Operand::Guest { vm, path },
                Operand::Guest {
                    vm: other,
                    path: to,
                },
            ) => Err(
                Failure::usage("one of the two has to be here").hint(format!(
                    "mvmctl vm cp {vm}:{} - | mvmctl vm cp - {other}:{}",
                    path.as_str(),
                    to.as_str()
                )),
            ),
            _ => Err(Failure::usage("neither of the two is in a guest")
                .hint("what is in a guest is written NAME:/PATH")),
        }
    }
}

async fn into(context: &Context, from: Source, vm: &str, path: GuestPath) -> Result<(), Failure> {
    let span = tracing::info_span!("vm", name = vm);
    async {
        let mut session = session(context, vm, &context.deadlines()).await?;
        from.copy(context, &mut session, vm, path).await
    }
    .instrument(span)
    .await
}

async fn out(context: &Context, vm: &str, path: GuestPath, to: Target) -> Result<(), Failure> {
    let span = tracing::info_span!("vm", name = vm);
    async {
        let mut session = session(context, vm, &context.deadlines()).await?;
        let shown = path.as_str().to_owned();
        let asked = Get {
            path,
            archive: Some(Archive::Tar),
        };
        let begun = session.get(asked).await;
        let download = begun.map_err(|error| missing(failure(vm, &error), vm, &shown))?;
        to.copy(context, vm, &shown, download).await
    }
    .instrument(span)
    .await
}

/// What to do about a place in the guest that is not there.
fn missing(failure: Failure, vm: &str, path: &str) -> Failure {
    if failure.hint.is_some() || failure.code != ErrorCode::NotFound.as_str() {
        return failure;
    }
    let folder = Path::new(path).parent().unwrap_or(Path::new("/"));
    let folder = folder.display();
    failure.hint(format!(
        "`mvmctl vm exec {vm} -- ls -la {folder}` shows what is there, `… mkdir -p {folder}` makes a folder"
    ))
}
