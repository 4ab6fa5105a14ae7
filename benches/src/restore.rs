//! Snapshots and restores of a guest under QEMU by the commands of two revisions, in turn.

use crate::Result;
use crate::start::median;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;
use tempfile::TempDir;

const ROUNDS: usize = 10;

/// Medians in milliseconds, of the whole command.
pub(crate) struct Figures {
    pub(crate) snapshot_ms: f64,
    pub(crate) restore_ms: f64,
}

/// One revision's command, with a home of its own.
struct Revision<'a> {
    mvmctl: &'a Path,
    home: TempDir,
    snapshots: Vec<f64>,
    restores: Vec<f64>,
}

pub(crate) fn measure(commands: [&Path; 2], image: &Path) -> Result<[Figures; 2]> {
    let [first, second] = commands;
    let mut revisions = [
        Revision::begin(first, image)?,
        Revision::begin(second, image)?,
    ];
    for round in 0..ROUNDS {
        for revision in &mut revisions {
            revision.round(round)?;
        }
    }
    let [first, second] = revisions;
    Ok([first.figures()?, second.figures()?])
}

impl<'a> Revision<'a> {
    fn begin(mvmctl: &'a Path, image: &Path) -> Result<Self> {
        let revision = Self {
            mvmctl,
            home: TempDir::new()?,
            snapshots: Vec::new(),
            restores: Vec::new(),
        };
        let image = image.display().to_string();
        revision.run(&[
            "start",
            "web",
            "--image",
            &image,
            "--backend",
            "qemu",
            "--memory",
            "256",
        ])?;
        Ok(revision)
    }

    /// Suspends the VM and has it continue.
    fn round(&mut self, number: usize) -> Result<()> {
        let folder = self
            .home
            .path()
            .join(number.to_string())
            .display()
            .to_string();
        let took = self.run(&["snapshot", "web", "--to", &folder, "--stop"])?;
        self.snapshots.push(took);
        let took = self.run(&["restore", &folder, "--name", "web"])?;
        self.restores.push(took);
        Ok(())
    }

    /// How long `mvmctl vm …` takes.
    fn run(&self, arguments: &[&str]) -> Result<f64> {
        let begun = Instant::now();
        let output = Command::new(self.mvmctl)
            .arg("vm")
            .args(arguments)
            .env("MVM_HOME", self.home.path())
            .stdin(Stdio::null())
            .output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!("mvmctl vm {arguments:?}: {}: {said}", output.status).into());
        }
        Ok(begun.elapsed().as_secs_f64() * 1e3)
    }

    fn figures(mut self) -> Result<Figures> {
        Ok(Figures {
            snapshot_ms: median(std::mem::take(&mut self.snapshots))?,
            restore_ms: median(std::mem::take(&mut self.restores))?,
        })
    }
}

impl Drop for Revision<'_> {
    fn drop(&mut self) {
        // It may never have been started.
        let _ = self.run(&["rm", "--force", "web"]);
    }
}
