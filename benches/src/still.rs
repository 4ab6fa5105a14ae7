//! How long the guest's work stands still around a snapshot, by the guest's own clock, which stands
//! still itself while the VM is paused: told by a service that writes that clock each millisecond.

use crate::Result;
use crate::start::median;
use mvm_guest_tests::{DRAWN, Draw, Parts, build_drawer, remote};
use serde_json::json;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;
use tokio::runtime::Runtime;

const ROUNDS: usize = 10;

/// Milliseconds: the median, and the longest.
pub(crate) struct Figures {
    /// From the freeze to the pause, and from the resume to the thaw, of a VM that runs on.
    pub(crate) source_ms: (f64, f64),
    /// From the freeze to the pause, and from the restore to the thaw, of a clone.
    pub(crate) clone_ms: (f64, f64),
}

pub(crate) fn measure(parts: &Parts, mvmctl: &Path) -> Result<Figures> {
    let folder = TempDir::new()?;
    build_drawer(parts, folder.path(), &json!({}), Vec::new());
    let host = Host {
        mvmctl,
        home: folder.path().join("home"),
        runtime: tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?,
    };
    let at = |name: &str| folder.path().join(name).display().to_string();
    let start = ["vm", "start", "golden", "--image", &at("image")];
    host.run(&[&start[..], &["--backend", "qemu", "--memory", "128"]].concat())?;
    let (mut source, mut clone) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let before = host.drawn("golden").len();
        let place = at(&format!("snapshot-{round}"));
        host.run(&["vm", "snapshot", "golden", "--to", &place])?;
        let drawn = host.drawn("golden");
        let since = gaps(drawn.get(before..).unwrap_or_default());
        source.push(since.fold(0.0, f64::max));
        let restore = ["vm", "restore", &place, "--name", "clone", "--clone"];
        host.run(&restore)?;
        let drawn = host.drawn("clone");
        let first = drawn.iter().position(|draw| draw.generation > 0);
        let first = first.ok_or("it has not drawn since")?;
        let around = drawn.get(first.saturating_sub(1)..=first);
        clone.push(gaps(around.unwrap_or_default()).sum());
        host.run(&["vm", "rm", "--force", "clone"])?;
    }
    let figures = |all: Vec<f64>| {
        let most = all.iter().copied().fold(0.0, f64::max);
        median(all).map(|it| (it, most))
    };
    Ok(Figures {
        source_ms: figures(source)?,
        clone_ms: figures(clone)?,
    })
}

/// The milliseconds from each to the next.
fn gaps(drawn: &[Draw]) -> impl Iterator<Item = f64> {
    drawn.windows(2).map(|pair| match pair {
        [one, next] => (next.monotonic - one.monotonic) as f64,
        _ => 0.0,
    })
}

/// `mvmctl` with a home of its own. Its VMs end with it.
struct Host<'a> {
    mvmctl: &'a Path,
    home: std::path::PathBuf,
    runtime: Runtime,
}

impl Host<'_> {
    fn run(&self, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new(self.mvmctl);
        let output = command
            .args(arguments)
            .env("MVM_HOME", &self.home)
            .output()?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!("mvmctl {}: {said}", arguments.join(" ")).into())
    }

    /// All that a guest has drawn, some of it since it was asked.
    fn drawn(&self, vm: &str) -> Vec<Draw> {
        let socket = self.home.join("vms").join(vm).join("v.sock");
        let script = format!("usleep 300000; cat {DRAWN}");
        let text = self.runtime.block_on(remote::run(&socket, &script));
        let lines = text.lines().filter(|line| !line.starts_with("payload"));
        lines.map(Draw::of).collect()
    }
}

impl Drop for Host<'_> {
    fn drop(&mut self) {
        for vm in ["clone", "golden"] {
            // The clone is mostly gone by now.
            let _ = self.run(&["vm", "rm", "--force", vm]);
        }
    }
}
