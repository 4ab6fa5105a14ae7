//! `cargo xtask fuzz`: each fuzz target for a while. What it finds lands in fuzz/artifacts.

use crate::need;
use crate::sh::{Cmd, Failure, Result, Tried, say};
use std::fs;
use std::path::Path;

const TARGETS: [&str; 4] = ["requests", "answers", "drop_ins", "handshake"];

pub(crate) fn run(args: &[&str]) -> Result<()> {
    let seconds: u32 = match args {
        [] => 60,
        [seconds] => seconds
            .parse()
            .tried(format!("read `{seconds}` as seconds"))?,
        _ => return Err(Failure("`fuzz` takes one number, of seconds".into())),
    };
    let fuzz = need::FUZZ.installed()?;
    for target in TARGETS {
        say(format!("Fuzzing {target} for {seconds} s."));
        let corpus = Path::new("fuzz/corpus").join(target);
        fs::create_dir_all(&corpus).tried(format!("create {}", corpus.display()))?;
        Cmd::new(&fuzz)
            .args(["run", target])
            .arg(&corpus)
            // Sanitizers are options of a nightly compiler. The one that is pinned has them too,
            // and is the one whose output users run.
            .env("RUSTC_BOOTSTRAP", "1")
            .args(["--", "-rss_limit_mb=1024", "-timeout=5"])
            .arg(format!("-max_total_time={seconds}"))
            .run()?;
    }
    say("Nothing was found.");
    Ok(())
}
