//! `mvmctl conformance`

use super::Context;
use crate::args::Format;
use crate::render::data::document;
use crate::render::shown::Shown;
use crate::report::{Failure, Outcome};
use mvm_conformance::{Counts, Entry, Level, Options, Report, Verdict};
use mvm_registry::{Endpoint, Error};
use serde_json::json;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Hold an implementation of the agent against the protocol
///
/// For those who write an agent of their own. Sends the agent behind a socket the conformance vectors
/// of the protocol, good requests and bad ones, tries what takes several connections or time, and says
/// what of it the protocol requires, what it recommends, and what the agent has that is unknown here.
///
/// NOT FOR A GUEST IN SERVICE. What is tried without further options changes nothing in a guest whose
/// agent conforms, but for rereading its drop-ins and running one of its checks; an agent that does
/// not conform may do anything with it. With --disposable the guest is put to sleep and woken over and
/// over, which freezes its work, and with --dev commands run and files are written in it. So the
/// socket of a VM that this host knows is refused without --disposable.
///
/// Exits with 1 if anything that is required failed. What was not tried has not failed: the report
/// says what, and why.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The Unix socket: the agent's own (`--listen unix:PATH`), or the hybrid vsock of its VMM
    #[arg(long, value_name = "PATH", required_unless_present = "list")]
    socket: Option<PathBuf>,

    /// The guest is there for this alone: try sleep-prep and wake as well
    #[arg(long)]
    disposable: bool,

    /// Try the requests of dev builds as well: runs commands, and writes to /tmp, in the guest
    #[arg(long, requires = "disposable")]
    dev: bool,

    /// The socket is the agent's own and no VMM's: try handshakes that are none as well, which can
    /// break the vsock of a VMM
    #[arg(long)]
    own_socket: bool,

    /// Try these checks alone
    #[arg(long, value_name = "CHECK", value_delimiter = ',')]
    only: Vec<String>,

    /// Dial nobody, and list what there is to be tried
    #[arg(long, conflicts_with_all = ["socket", "disposable", "dev", "own_socket", "only"])]
    list: bool,
}

impl Args {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
        let Some(socket) = self.socket else {
            return list(context);
        };
        let is_stranger = self.disposable || is_stranger(context, &socket)?;
        if !is_stranger {
            let message = format!("{} is the socket of a VM of this host", socket.display());
            let hint = "point it at a guest that is there for this, or say --disposable";
            return Err(Failure::usage(message).hint(hint));
        }
        let known = mvm_conformance::list();
        let is_unknown = |name: &&String| !known.iter().any(|(known, ..)| known == *name);
        if let Some(unknown) = self.only.iter().find(is_unknown) {
            let message = format!("no check is called `{unknown}`");
            return Err(Failure::usage(message).hint("--list names them"));
        }
        let options = Options {
            disposable: self.disposable,
            dev: self.dev,
            own_socket: self.own_socket,
            only: self.only,
        };
        let endpoint = Endpoint::unix(&socket);
        let progress = context.ui.progress("trying the agent");
        let deadlines = context.deadlines();
        let report = mvm_conformance::run(&context.dialer, &endpoint, &deadlines, &options);
        let report = report.await;
        drop(progress);
        let address = endpoint.to_string();
        let report = report.map_err(|error| Failure::about(&address, &error))?;
        show(context, &report)?;
        Ok(match report.verdict {
            Verdict::Fails => Outcome::Bad,
            Verdict::Conforms | Verdict::Incomplete => Outcome::Done,
        })
    }
}

/// Whether no VM of this host has that socket, under whichever path.
fn is_stranger(context: &Context, socket: &Path) -> Result<bool, Failure> {
    let Some(asked) = file(socket) else {
        // Dialling it says what is wrong with it.
        return Ok(true);
    };
    let vms = match context.inventory()?.list() {
        Ok(listing) => listing.vms,
        Err(Error::Io { .. }) => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    let mut sockets = vms.iter().filter_map(|vm| vm.address().path());
    Ok(!sockets.any(|path| file(path) == Some(asked)))
}

/// Which file that is, whatever links lead to it.
fn file(path: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

fn list(context: &Context) -> Result<Outcome, Failure> {
    let all = mvm_conformance::list();
    match context.format {
        Format::Json | Format::Yaml => {
            let all = all
                .iter()
                .map(|(name, level, about)| json!({"name": name, "level": level, "about": about}));
            document(context, &all.collect::<Vec<_>>())?;
        }
        Format::Name => {
            let names = all.iter().map(|(name, ..)| Shown::line(name));
            context.ui.print(&names.collect())?;
        }
        Format::Table | Format::Wide => {
            let line = |(name, level, about): &(String, Level, String)| {
                Shown::line(&format!("{:11}  {name}: {about}", word(*level)))
            };
            context.ui.print(&all.iter().map(line).collect())?;
        }
    }
    Ok(Outcome::Done)
}

fn word(level: Level) -> &'static str {
    match level {
        Level::Required => "required",
        Level::Recommended => "recommended",
    }
}

fn show(context: &Context, report: &Report) -> Result<(), Failure> {
    match context.format {
        Format::Json | Format::Yaml => document(context, report)?,
        Format::Name => {
            let failed = report.failed().map(Shown::line);
            context.ui.print(&failed.collect())?;
        }
        Format::Table | Format::Wide => {
            let all = context.format == Format::Wide;
            context.ui.print(&text(report, all))?;
        }
    }
    Ok(())
}

/// What is amiss, then the numbers; with all of them where that is asked for.
fn text(report: &Report, all: bool) -> Shown {
    use mvm_conformance::Outcome::{DoesNotApply, Failed, NotRun, Passed};
    let mut shown = Shown::new();
    let mut not_run: Vec<(&str, usize)> = Vec::new();
    for check in &report.checks {
        match &check.outcome {
            Passed if all => shown.push(&line("passed", check, "")),
            DoesNotApply { why } if all => shown.push(&line("no use", check, why)),
            Passed | DoesNotApply { .. } => {}
            Failed { why } => shown.push(&line("FAILED", check, why)),
            NotRun { why } if all => shown.push(&line("not run", check, why)),
            NotRun { why } => match not_run.iter_mut().find(|(known, _)| known == why) {
                Some((_, count)) => *count += 1,
                None => not_run.push((why, 1)),
            },
        }
    }
    for (why, count) in not_run {
        shown.push(&Shown::line(&format!("not run  {count}: {why}")));
    }
    for what in &report.unknown {
        shown.push(&Shown::line(&format!("unknown  {what}")));
    }
    shown.push(&Shown::line(&counts("required", report.required)));
    shown.push(&Shown::line(&counts("recommended", report.recommended)));
    let verdict = match report.verdict {
        Verdict::Conforms => "The agent conforms.",
        Verdict::Incomplete => "Nothing that is required failed, and not all of it was tried.",
        Verdict::Fails => "The agent does not conform.",
    };
    shown.push(&Shown::line(verdict));
    shown
}

fn line(mark: &str, check: &Entry, why: &str) -> Shown {
    let level = word(check.level);
    let mut shown = Shown::line(&format!(
        "{mark:7}  {level}  {}: {}",
        check.name, check.about
    ));
    if !why.is_empty() {
        shown.push(&Shown::line(&format!("         {why}")));
    }
    shown
}

fn counts(level: &str, counts: Counts) -> String {
    let Counts {
        passed,
        failed,
        not_run,
        does_not_apply: _,
    } = counts;
    format!("{level}: {passed} passed, {failed} failed, {not_run} not run")
}
