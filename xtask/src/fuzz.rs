//! `cargo xtask fuzz`: each fuzz target for a while. What it finds lands in fuzz/artifacts.

use crate::need::{self, Scratch};
use crate::seeds;
use crate::sh::{Cmd, Failure, Result, Tried, say};
use std::fs;
use std::path::{Path, PathBuf};

const TARGETS: [&str; 14] = [
    "requests",
    "answers",
    "handshake",
    "drop_ins",
    "session",
    "verbs",
    "unpack",
    "policy",
    "records",
    "manifests",
    "agent_session",
    "agent_unpack",
    "drop_in_folder",
    "journal",
];

/// The longest seed that is kept, in bytes: what is longer says little more, and is read by nobody.
const LONGEST_SEED: usize = 1024;

/// What is to be done with the targets.
#[derive(Clone, Copy)]
enum Job {
    /// Run each for so many seconds.
    Run(u32),
    /// Write each one's seeds anew.
    Seeds,
}

pub(crate) fn run(args: &[&str]) -> Result<()> {
    let (job, names) = match args {
        ["seeds", names @ ..] => (Job::Seeds, names),
        [seconds, names @ ..] if seconds.starts_with(|digit: char| digit.is_ascii_digit()) => {
            let seconds = seconds.parse();
            let seconds = seconds.tried(format!("read `{}` as seconds", args.join(" ")))?;
            (Job::Run(seconds), names)
        }
        names => (Job::Run(60), names),
    };
    let targets: Vec<&str> = TARGETS
        .into_iter()
        .filter(|target| names.is_empty() || names.contains(target))
        .collect();
    if let Some(unknown) = names.iter().find(|name| !TARGETS.contains(name)) {
        let known = TARGETS.join(", ");
        return Err(Failure(format!("no target is called `{unknown}`: {known}")));
    }
    // In memory where there is such a place: some targets write files with each input.
    let memory = Path::new("/dev/shm");
    let temporary = if memory.is_dir() {
        memory.to_owned()
    } else {
        std::env::temp_dir()
    };
    let scratch = Scratch::of_process(&temporary, "mvm-fuzz")?;
    for target in targets {
        let corpus = unpack_seeds(target)?;
        match job {
            Job::Run(seconds) => {
                say(format!("Fuzzing {target} for {seconds} s."));
                fuzzer(target, &scratch)?
                    .arg(&corpus)
                    .args(["--", "-rss_limit_mb=1024", "-timeout=5"])
                    // The agent logs what it makes of a journal.
                    .args((target == "journal").then_some("-close_fd_mask=2"))
                    .arg(format!("-max_total_time={seconds}"))
                    .run()?;
            }
            Job::Seeds => pack_seeds(target, &corpus, &scratch)?,
        }
    }
    if let Job::Run(_) = job {
        say("Nothing was found.");
    }
    Ok(())
}

/// cargo-fuzz, about to run a target.
fn fuzzer(target: &str, scratch: &Scratch) -> Result<Cmd> {
    Ok(Cmd::new(need::FUZZ.installed()?)
        .args(["run", target])
        .env("TMPDIR", scratch.path())
        // Sanitizers are options of a nightly compiler. The one that is pinned has them too, and is
        // the one whose output users run.
        .env("RUSTC_BOOTSTRAP", "1"))
}

fn seeds_of(target: &str) -> PathBuf {
    Path::new("fuzz/seeds").join(format!("{target}.txt"))
}

/// Puts a target's seeds to what was found before.
fn unpack_seeds(target: &str) -> Result<PathBuf> {
    let corpus = Path::new("fuzz/corpus").join(target);
    fs::create_dir_all(&corpus).tried(format!("create {}", corpus.display()))?;
    let path = seeds_of(target);
    let text = fs::read_to_string(&path).tried(format!("read {}", path.display()))?;
    for (number, line) in (1..).zip(text.lines()) {
        let Some(seed) = seeds::read(line) else {
            return Err(Failure(format!("{}:{number}: no seed", path.display())));
        };
        let file = corpus.join(format!("seed-{number}"));
        fs::write(&file, seed).tried(format!("write {}", file.display()))?;
    }
    Ok(corpus)
}

/// Keeps those that run code which no other does.
fn pack_seeds(target: &str, corpus: &Path, scratch: &Scratch) -> Result<()> {
    let kept = scratch.path().join(target);
    fs::create_dir(&kept).tried(format!("create {}", kept.display()))?;
    fuzzer(target, scratch)?
        .arg(&kept)
        .arg(corpus)
        .args(["--", "-merge=1", "-use_counters=0"])
        .run()?;
    let mut lines = Vec::new();
    let read = || format!("read {}", kept.display());
    for entry in fs::read_dir(&kept).tried(read())? {
        let path = entry.tried(read())?.path();
        let seed = fs::read(&path).tried(format!("read {}", path.display()))?;
        if seed.len() <= LONGEST_SEED {
            lines.push(seeds::write(&seed));
        }
    }
    lines.sort_by(|one, other| (one.len(), one).cmp(&(other.len(), other)));
    let path = seeds_of(target);
    fs::write(&path, lines.concat()).tried(format!("write {}", path.display()))?;
    say(format!("{}: {} seeds", path.display(), lines.len()));
    Ok(())
}
