//! Snapshots and restores by the commands of two revisions, in turn: of a guest under QEMU, and of
//! guests of two sizes under a stand-in for Firecracker.
//!
//! The stand-in writes a memory file as the real one does, all of the guest's memory, zeros too, and
//! answers in place of a guest: what is measured is what `mvmctl` does around a VMM and with its files.

use crate::start::median;
use crate::{Result, row};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;
use tempfile::TempDir;

/// So many snapshots and restores of QEMU's.
const ROUNDS: usize = 10;

/// And of the stand-in's, whose files are large.
const LARGE_ROUNDS: usize = 5;

/// How many clones are restored at once, how often, and how many one after the other before and after each
/// time: a machine that others use as well is not equally fast all the time.
const AT_ONCE: usize = 20;
const AT_ONCE_ROUNDS: usize = 5;
const ALONE: usize = 5;

/// The size of the guests in MiB, and how much of it is in use.
const LARGE: u32 = 4096;
const SMALL: u32 = 256;
const USED: u32 = 200;

/// Medians in milliseconds, of the whole command.
struct Figures {
    snapshot_ms: f64,
    restore_ms: f64,
    /// What the last snapshot takes on the disk.
    disk_mib: f64,
    /// Of clones, if that was measured.
    clones: Option<Clones>,
}

/// Clones of one snapshot, medians.
#[derive(Clone, Copy)]
struct Clones {
    /// One alone, in milliseconds.
    one_ms: f64,
    /// Until all of [`AT_ONCE`] are awake.
    at_once_ms: f64,
    /// The latter to the former, which is measured right before and after it.
    ratio: f64,
}

/// One revision's command, with a home of its own, and a VM `web`.
struct Revision<'a> {
    mvmctl: &'a Path,
    variables: &'a [(&'static str, PathBuf)],
    home: TempDir,
    snapshots: Vec<f64>,
    restores: Vec<f64>,
    disk_mib: f64,
}

/// The commands of two revisions, each with snapshots that it has taken itself.
pub(crate) fn report(mvmctl: &Path, other: &Path, image: Option<&Path>) -> Result<()> {
    println!("| what | this | other | figure | goal |");
    println!("| --- | --- | --- | --- | --- |");
    let pair = |what: &str, [this, other]: [f64; 2], unit: &str, goal: &str| {
        row(
            what,
            &format!("{this:.0} {unit}"),
            &format!("{other:.0} {unit}"),
            &format!("{:.2}", this / other),
            goal,
        );
    };
    let mut small_ms = None;
    for memory in [SMALL, LARGE] {
        let both = stand_in([mvmctl, other], memory)?;
        let of = |what: &str| format!("{what}, a stand-in for Firecracker, {memory} MiB, p50");
        let each = |figure: fn(&Figures) -> f64| [figure(&both[0]), figure(&both[1])];
        let goal = if memory == LARGE { "at most 0.3" } else { "" };
        pair(&of("`vm snapshot`"), each(|of| of.snapshot_ms), "ms", goal);
        pair(
            &of("what it takes on the disk"),
            each(|of| of.disk_mib),
            "MiB",
            "",
        );
        let goal = if memory == LARGE { "at most 0.15" } else { "" };
        let restore = each(|of| of.restore_ms);
        pair(&of("`vm restore`"), restore, "ms", goal);
        let small_ms = *small_ms.get_or_insert(restore[0]);
        if memory == LARGE {
            pair(
                "the same, to one of 256 MiB",
                [restore[0], small_ms],
                "ms",
                "at most 1.2",
            );
        }
    }
    let Some(image) = image else {
        return Ok(());
    };
    let both = qemu([mvmctl, other], image)?;
    let each = |figure: fn(&Figures) -> f64| [figure(&both[0]), figure(&both[1])];
    pair(
        "`vm snapshot --stop`, QEMU, 256 MiB, p50",
        each(|of| of.snapshot_ms),
        "ms",
        "",
    );
    pair(
        "what it takes on the disk",
        each(|of| of.disk_mib),
        "MiB",
        "",
    );
    let restore = each(|of| of.restore_ms);
    pair(
        "`vm restore`, QEMU, 256 MiB, p50",
        restore,
        "ms",
        "at most 0.55",
    );
    if let [Some(this), Some(other)] = both.map(|of| of.clones) {
        for (what, figures) in [
            ("one alone", [this.one_ms, other.one_ms]),
            ("twenty at once", [this.at_once_ms, other.at_once_ms]),
        ] {
            pair(
                &format!("`vm restore --clone`, QEMU, 256 MiB, {what}, p50"),
                figures,
                "ms",
                "",
            );
        }
        row(
            "twenty at once, to one alone",
            &format!("{:.1}", this.ratio),
            &format!("{:.1}", other.ratio),
            "",
            "at most 12",
        );
    }
    Ok(())
}

/// Suspends a guest of [`SMALL`] under QEMU and has it continue; then many clones of it.
fn qemu(commands: [&Path; 2], image: &Path) -> Result<[Figures; 2]> {
    let mut revisions = [
        Revision::begin(commands[0], &[], ("qemu", SMALL), image)?,
        Revision::begin(commands[1], &[], ("qemu", SMALL), image)?,
    ];
    for _ in 0..ROUNDS {
        for revision in &mut revisions {
            revision.snapshot(&["--stop"])?;
            revision.restore(&["--name", "web"])?;
        }
    }
    for revision in &mut revisions {
        // It would be in the way of those that are measured.
        revision.snapshot(&["--stop"])?;
    }
    let mut rounds = [Vec::new(), Vec::new()];
    for _ in 0..AT_ONCE_ROUNDS {
        for (revision, rounds) in revisions.iter().zip(&mut rounds) {
            let alone = || (0..ALONE).map(|_| revision.clones(1));
            let mut ones = alone().collect::<Result<Vec<_>>>()?;
            let many = revision.clones(AT_ONCE)?;
            ones.extend(alone().collect::<Result<Vec<_>>>()?);
            rounds.push((median(ones)?, many));
        }
    }
    let [first, second] = revisions;
    let [firsts, seconds] = rounds;
    Ok([
        first.figures(Some(Clones::of(&firsts)?))?,
        second.figures(Some(Clones::of(&seconds)?))?,
    ])
}

/// Snapshots a VM of that size under the stand-in for Firecracker, and makes a clone of each.
fn stand_in(commands: [&Path; 2], memory_mib: u32) -> Result<[Figures; 2]> {
    let (_programs, variables) = mvm_fake_vmm::install();
    let image = TempDir::new()?;
    let manifest = r#"{"version":1,"kernel":"vmlinux","initrd":null,"rootfs":null,"cmdline":"",
        "agent":{"version":"0.1.0","profile":"prod","port":52}}"#;
    std::fs::write(image.path().join("manifest.json"), manifest)?;
    std::fs::write(image.path().join("vmlinux"), "\x7fELF")?;
    let vm = ("firecracker", memory_mib);
    let mut revisions = [
        Revision::begin(commands[0], &variables, vm, image.path())?,
        Revision::begin(commands[1], &variables, vm, image.path())?,
    ];
    for _ in 0..LARGE_ROUNDS {
        for revision in &mut revisions {
            revision.snapshot(&[])?;
            revision.restore(&["--name", "clone", "--clone"])?;
            revision.run(&["rm", "--force", "clone"])?;
        }
    }
    let [first, second] = revisions;
    Ok([first.figures(None)?, second.figures(None)?])
}

impl<'a> Revision<'a> {
    fn begin(
        mvmctl: &'a Path,
        variables: &'a [(&'static str, PathBuf)],
        (backend, memory_mib): (&str, u32),
        image: &Path,
    ) -> Result<Self> {
        let revision = Self {
            mvmctl,
            variables,
            home: TempDir::new()?,
            snapshots: Vec::new(),
            restores: Vec::new(),
            disk_mib: 0.0,
        };
        let vm = revision.home.path().join("vms/web");
        std::fs::create_dir_all(&vm)?;
        // For the stand-in.
        std::fs::write(vm.join("memory-used"), USED.to_string())?;
        let (image, memory) = (image.display().to_string(), memory_mib.to_string());
        let start = ["start", "web", "--image", &image, "--backend", backend];
        revision.run(&[start.as_slice(), &["--memory", &memory]].concat())?;
        Ok(revision)
    }

    fn folder(&self) -> PathBuf {
        self.home.path().join("snapshot")
    }

    fn snapshot(&mut self, options: &[&str]) -> Result<()> {
        let folder = self.folder();
        if folder.exists() {
            std::fs::remove_dir_all(&folder)?;
        }
        let to = folder.display().to_string();
        let took = self.run(&[&["snapshot", "web", "--to", &to], options].concat())?;
        self.snapshots.push(took);
        let mut blocks = 0;
        for entry in std::fs::read_dir(&folder)? {
            blocks += entry?.metadata()?.blocks();
        }
        #[expect(clippy::cast_precision_loss, reason = "small figures")]
        let mib = blocks as f64 / 2048.0;
        self.disk_mib = mib;
        Ok(())
    }

    fn restore(&mut self, options: &[&str]) -> Result<()> {
        let folder = self.folder().display().to_string();
        let took = self.run(&[&["restore", &folder], options].concat())?;
        self.restores.push(took);
        Ok(())
    }

    /// Restores so many clones at once.
    fn clones(&self, count: usize) -> Result<f64> {
        let folder = self.folder().display().to_string();
        let names: Vec<_> = (0..count).map(|number| format!("c{number}")).collect();
        let begun = Instant::now();
        let mut children = Vec::new();
        for name in &names {
            children.push(self.start(&["restore", &folder, "--name", name, "--clone"])?);
        }
        let ends: Vec<_> = children.into_iter().map(end).collect();
        let took = begun.elapsed().as_secs_f64() * 1e3;
        for name in &names {
            let _ = self.run(&["rm", "--force", name]);
        }
        ends.into_iter().collect::<Result<Vec<_>>>()?;
        Ok(took)
    }

    fn start(&self, arguments: &[&str]) -> Result<Child> {
        let mut command = Command::new(self.mvmctl);
        command
            .arg("vm")
            .args(arguments)
            .env("MVM_HOME", self.home.path())
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Ok(command.spawn()?)
    }

    /// How long `mvmctl vm …` takes, in milliseconds.
    fn run(&self, arguments: &[&str]) -> Result<f64> {
        let begun = Instant::now();
        end(self.start(arguments)?).map_err(|error| format!("vm {arguments:?}: {error}"))?;
        Ok(begun.elapsed().as_secs_f64() * 1e3)
    }

    fn figures(mut self, clones: Option<Clones>) -> Result<Figures> {
        Ok(Figures {
            snapshot_ms: median(std::mem::take(&mut self.snapshots))?,
            restore_ms: median(std::mem::take(&mut self.restores))?,
            disk_mib: self.disk_mib,
            clones,
        })
    }
}

impl Clones {
    /// Of rounds: one alone, and many at once.
    fn of(rounds: &[(f64, f64)]) -> Result<Self> {
        let each = |figure: fn(&(f64, f64)) -> f64| median(rounds.iter().map(figure).collect());
        Ok(Self {
            one_ms: each(|(one, _)| *one)?,
            at_once_ms: each(|(_, many)| *many)?,
            ratio: each(|(one, many)| many / one)?,
        })
    }
}

fn end(child: Child) -> Result<()> {
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{}: {said}", output.status).into())
}

impl Drop for Revision<'_> {
    fn drop(&mut self) {
        // It may never have been started.
        let _ = self.run(&["rm", "--force", "web"]);
    }
}
