//! `mvmctl vm cp` of a large file over a Unix socket, against two `socat` that carry the same file over
//! a socket of the same kind. Both files lie in memory, so that no disk is measured, and what is
//! written is not there before.

use crate::Result;
use crate::agent::Agent;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Each round measures all, so that a machine that slows down slows all down.
const ROUNDS: usize = 5;

const BYTES: usize = 1 << 29;

/// Megabytes a second, of the best round each: the rest is what else the machine did.
pub(crate) struct Figures {
    /// Into the agent's machine.
    pub(crate) into: f64,
    /// Out of it.
    pub(crate) out: f64,
    pub(crate) socat: f64,
}

pub(crate) fn measure(program: &Path, mvmctl: &Path) -> Result<Figures> {
    let mut agent = Agent::start(program, &[])?;
    // It listens from then on.
    drop(agent.connect()?);
    let dir = TempDir::new_in("/dev/shm")?;
    let source = dir.path().join("source");
    // Something that is not zero: that would become a hole.
    let piece: Vec<u8> = (0..=u8::MAX).cycle().take(1 << 20).collect();
    let mut file = File::create(&source)?;
    for _ in 0..BYTES / piece.len() {
        file.write_all(&piece)?;
    }
    let guest = format!("unix:{}", agent.socket().display());
    let there = |path: &Path| format!("{guest}:{}", path.display());
    let copied = dir.path().join("copied");
    let source_text = source.display().to_string();
    let mut figures = Figures {
        into: 0.0,
        out: 0.0,
        socat: 0.0,
    };
    for _ in 0..ROUNDS {
        let into = copy(mvmctl, &source_text, &there(&copied))?;
        figures.into = figures.into.max(speed(&copied, into)?);
        let out = copy(mvmctl, &there(&source), &copied.display().to_string())?;
        figures.out = figures.out.max(speed(&copied, out)?);
        let bare = bare(&source, &copied, &dir.path().join("socket"))?;
        figures.socat = figures.socat.max(speed(&copied, bare)?);
    }
    Ok(figures)
}

fn copy(mvmctl: &Path, from: &str, to: &str) -> Result<Duration> {
    let start = Instant::now();
    let status = Command::new(mvmctl)
        .args(["vm", "cp", from, to])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    if !status.success() {
        return Err(format!("mvmctl vm cp {from} {to}: {status}").into());
    }
    Ok(start.elapsed())
}

fn bare(from: &Path, to: &Path, socket: &Path) -> Result<Duration> {
    let run = |addresses: [String; 2]| {
        let command = Command::new("socat").arg("-u").args(addresses).spawn();
        command.map_err(|error| format!("cannot run socat (apt-get install socat): {error}"))
    };
    let listen = format!("UNIX-LISTEN:{},unlink-early", socket.display());
    let mut receiver = run([listen, format!("CREATE:{}", to.display())])?;
    // Tries until it listens, which is not measured.
    let until = Instant::now() + Duration::from_secs(10);
    while !socket.exists() {
        if Instant::now() > until {
            return Err("socat does not listen".into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let start = Instant::now();
    let mut sender = run([
        format!("FILE:{}", from.display()),
        format!("UNIX-CONNECT:{}", socket.display()),
    ])?;
    let ended = [sender.wait()?, receiver.wait()?];
    let took = start.elapsed();
    if let Some(status) = ended.iter().find(|status| !status.success()) {
        return Err(format!("socat: {status}").into());
    }
    std::fs::remove_file(socket).or_else(|error| {
        // It may have done so itself.
        (error.kind() == std::io::ErrorKind::NotFound)
            .then_some(())
            .ok_or(error)
    })?;
    Ok(took)
}

/// The speed, once the copy is seen to be whole; then it is removed.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn speed(copied: &Path, took: Duration) -> Result<f64> {
    let length = std::fs::metadata(copied)?.len();
    std::fs::remove_file(copied)?;
    if length != BYTES as u64 {
        return Err(format!("{length} bytes came of {BYTES}").into());
    }
    Ok(BYTES as f64 / 1e6 / took.as_secs_f64())
}
