//! An engine for many hosts runs VMs for real: Slurm of Debian, two hosts as network namespaces, the
//! scripts of `packaging/slurm`, the rules of `packaging/prometheus` in a real Prometheus. `cargo xtask
//! engines` runs it, as root; docs/testing.md says what it takes.
//!
//! ```text
//! story      what is shown
//! cluster    all programs that take part
//! net        hosts as namespaces
//! seen       which VM runs where, looked at all the time
//! record     who ran when, by what the VMs have written down
//! picture    the first story as a picture
//! conf       what the programs are configured by
//! ```

mod cluster;
mod conf;
mod net;
mod picture;
mod record;
mod seen;
mod story;

use cluster::{Cluster, Programs, is_there};
use conf::Engine;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

type Story = fn(&Cluster) -> Result<(), String>;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("engines: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    for program in ["ip", "nsenter", "unshare", "curl", "jq"] {
        if !is_there(program) {
            return Err(format!(
                "`{program}` is not on PATH: install it, and try again"
            ));
        }
    }
    let programs = Programs::given()?;
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))
            .map_err(|error| format!("cannot catch signals: {error}"))?;
    }
    let stories: [(&str, Engine, Story); 2] = [
        ("Slurm by the recipe", Engine::Recipe, story::recipe),
        ("Slurm by its defaults", Engine::Defaults, story::defaults),
    ];
    for (name, engine, story) in stories {
        eprintln!("\n{name}");
        let cluster = Cluster::start(&programs, engine, &interrupted)?;
        story(&cluster).map_err(|error| format!("{name}: {error}\n{}", cluster.logs()))?;
    }
    Ok(())
}
