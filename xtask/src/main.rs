//! The project's chores. `cargo xtask help` lists them.
//!
//! ```text
//! main      which chore
//! need      what a chore needs of the machine, and how it is installed: cargo tools, packages, kernel
//! build     the binaries that a chore runs: the static agent, mvmctl
//! test demo bench schema fuzz engines soak aarch64 dist release    one file a chore
//! sh        running commands, shown as a person would type them
//! ```

mod aarch64;
mod bench;
mod build;
mod demo;
mod dist;
mod engines;
mod fuzz;
mod need;
mod release;
mod schema;
// The one way in which seeds are written.
#[path = "../../crates/mvm-fuzz-targets/src/seeds.rs"]
mod seeds;
mod sh;
mod soak;
mod test;

use sh::{Failure, Result};
use std::process::ExitCode;

const USAGE: &str = "\
cargo xtask demo              boot a microVM, look at it, break its service, see it turn unhealthy
cargo xtask build             the static agent and mvmctl, in target/bin
cargo xtask test [RUNG…]      everything that CI runs, or some rungs of it:
                              fmt clippy deny doc unit cli packages guest nix python
cargo xtask schema            write the JSON Schema files in docs/schema (`test unit` checks them)
cargo xtask bench             measure, and print the figures for docs/performance.md;
                              --against REV: and those of another revision, and the ratios
cargo xtask fuzz [SECONDS] [TARGET…]  run each fuzz target, or these, that long
cargo xtask fuzz seeds [TARGET…]  of what fuzzing has found, keep as seeds what runs other code
cargo xtask engines [guests]  as root: Slurm runs VMs on two hosts, one of which is cut off; with
                              `guests` real ones
cargo xtask soak [--minutes N]  ask a real guest all there is, for 2 minutes or N, and print what of
                              memory, descriptors, processes and threads is more at the end
cargo xtask aarch64           build the static programs for aarch64, and run the unit tests, emulated
cargo xtask dist              Debian packages and tarballs of the static programs, what they are made
                              of, and checksums, in target/dist; --target TRIPLE: for aarch64
cargo xtask release-check     look for advisories about what we depend on, where their database is at hand

What a chore needs and the machine lacks is installed, and each install says what, why and how
long. Packages are asked of apt only as root; otherwise the command to run is printed.
";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("xtask: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    std::env::set_current_dir(build::root())
        .map_err(|error| Failure(format!("cannot enter {}: {error}", build::root().display())))?;
    match args.as_slice() {
        ["test", rungs @ ..] => test::run(rungs),
        ["demo"] => demo::run(),
        ["build"] => build::run(),
        ["schema"] => schema::run(),
        ["bench", args @ ..] => bench::run(args),
        ["engines"] => engines::run(false),
        ["engines", "guests"] => engines::run(true),
        ["soak", args @ ..] => soak::run(args),
        ["aarch64"] => aarch64::run(),
        ["dist", args @ ..] => dist::run(args),
        ["release-check"] => release::run(),
        ["fuzz", seconds @ ..] => fuzz::run(seconds),
        [] | ["help" | "--help" | "-h"] => {
            print!("{USAGE}");
            Ok(())
        }
        _ => Err(Failure(format!(
            "no chore is called `{}`. There are:\n{USAGE}",
            args.join(" ")
        ))),
    }
}
