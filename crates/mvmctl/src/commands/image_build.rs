//! `mvmctl image build`

use super::Context;
use crate::args::Format;
use crate::render::data::document;
use crate::render::shown::Shown;
use crate::report::{Failure, Outcome};
use mvm_vmm::build::{Build, BuildError, Built, Service};
use mvm_vmm::image::Agent;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Build a bootable guest from a static agent, busybox and a kernel
///
/// The guest is an initrd with busybox's init, which keeps the agent and the services running. The
/// same input gives the same bytes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The image folder to make; one that is there is replaced
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// The agent, statically linked [default: mvm-guest-agent beside mvmctl, or in PATH]
    #[arg(long, value_name = "PATH")]
    agent: Option<PathBuf>,

    /// Take the agent's dev build, which serves commands, files, jobs and ports
    /// [default agent: mvm-guest-agent-dev beside mvmctl, or in PATH]
    #[arg(long)]
    dev: bool,

    /// The kernel image [default: the newest in /boot, else what `cargo xtask` has unpacked]
    #[arg(long, value_name = "PATH")]
    kernel: Option<PathBuf>,

    /// The kernel's modules [default: the lib/modules/VERSION that belongs to the kernel]
    #[arg(long, value_name = "DIR", requires = "kernel")]
    modules: Option<PathBuf>,

    /// Load another kernel module, and what it depends on; may be repeated
    #[arg(long = "module", value_name = "NAME")]
    more_modules: Vec<String>,

    /// Busybox, statically linked [default: busybox in PATH]
    #[arg(long, value_name = "PATH")]
    busybox: Option<PathBuf>,

    /// A folder with agent.json, integrations.d and probes.d, for the guest's /etc/mvm
    #[arg(long, value_name = "DIR")]
    etc: Option<PathBuf>,

    /// A program that init keeps running, its output on the console; may be repeated
    #[arg(long = "service", value_name = "NAME=COMMAND", value_parser = Service::parse)]
    services: Vec<Service>,

    /// A file or folder of this machine, and its absolute path in the guest; may be repeated
    #[arg(long, value_name = "FILE:DEST", value_parser = addition)]
    add: Vec<(PathBuf, String)>,

    /// Let a restored guest take its network from its payload, before its services run
    ///
    /// Adds the integration `network`, what it runs, and the driver of virtio network cards.
    /// `vm restore --payload FILE` hands over interface, addresses, gateways and name servers.
    #[arg(long)]
    with_network_payload: bool,

    /// The guest's host name
    #[arg(long, value_name = "NAME", value_parser = hostname, default_value = "mvm")]
    hostname: String,
}

/// What came of it, as data.
#[derive(Debug, Serialize)]
struct Report<'a> {
    image: &'a Path,
    kernel: &'a Path,
    initrd_bytes: u64,
    agent: &'a Agent,
    modules: &'a [String],
}

impl<'a> Report<'a> {
    fn of(built: &'a Built) -> Self {
        Self {
            image: &built.folder,
            kernel: &built.kernel,
            initrd_bytes: built.initrd_bytes,
            agent: &built.manifest.agent,
            modules: &built.modules,
        }
    }
}

/// Reads `FILE:DEST`. The last colon divides: a file's name may have one.
fn addition(text: &str) -> Result<(PathBuf, String), String> {
    match text.rsplit_once(':') {
        Some((file, dest)) if !file.is_empty() && dest.starts_with('/') => {
            Ok((file.into(), dest.to_owned()))
        }
        _ => Err("FILE:DEST is asked for, DEST being an absolute path in the guest".into()),
    }
}

fn hostname(text: &str) -> Result<String, String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    if (1..=64).contains(&text.len()) && text.bytes().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err("a host name has 1 to 64 letters, digits, '-' and '.'".into())
    }
}

impl Args {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Failure> {
        let progress = context.ui.progress("building the image");
        let plan = Build {
            out: self.out,
            agent: self.agent,
            dev: self.dev,
            kernel: self.kernel,
            modules: self.modules,
            more_modules: self.more_modules,
            busybox: self.busybox,
            etc: self.etc,
            services: self.services,
            add: self.add,
            network_payload: self.with_network_payload,
            hostname: self.hostname,
        };
        let built = match tokio::task::spawn_blocking(move || mvm_vmm::build::build(&plan)).await {
            Ok(built) => built.map_err(|error| failure(context, &error))?,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        };
        drop(progress);
        let agent = &built.manifest.agent;
        context.ui.note(&format!(
            "{}: {} and an initrd of {} KiB with agent {} ({}) and {} modules",
            built.folder.display(),
            built.kernel.display(),
            built.initrd_bytes / 1024,
            agent.version,
            agent.profile,
            built.modules.len()
        ));
        match context.format {
            Format::Json | Format::Yaml => document(context, &Report::of(&built))?,
            Format::Name => {
                let folder = built.folder.display().to_string();
                context.ui.print(&Shown::line(&folder))?;
            }
            Format::Table | Format::Wide => {}
        }
        Ok(Outcome::Done)
    }
}

fn failure(context: &Context, error: &BuildError) -> Failure {
    let text = error.to_string();
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default();
    let failure = Failure::failed(first.trim_end_matches(':'));
    // The agent's findings, a line each.
    for line in lines {
        context.ui.note(line);
    }
    failure.hint(error.hint())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn additions() {
        let added = addition("/a:b/c.html:/www/index.html").unwrap();
        assert_eq!(added, ("/a:b/c.html".into(), "/www/index.html".to_owned()));
        for bad in ["", "/a", "/a:", "/a:b", ":/b"] {
            assert!(addition(bad).is_err(), "{bad}");
        }
    }
}
