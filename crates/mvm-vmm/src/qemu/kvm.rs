//! Whether KVM can boot a guest here.
//!
//! That `/dev/kvm` is there and can be opened says little: under a hypervisor that nests badly, QEMU
//! aborts, or the guest hangs in its first instructions. So the image's own kernel is tried, without
//! an initrd, and has to get as far as missing its root file system: a fraction of a second where
//! KVM works. The verdict is kept, since where KVM hangs the trial takes its whole deadline.

use super::arguments::Accelerator;
use crate::brief::end_with_us;
use crate::deadline::Deadline;
use crate::error::Error;
use crate::microvm::{kvm_device, open_kvm};
use mvm_registry::{Home, write_whole};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Where the kernel says that it is through and finds no root file system.
const REACHED: &str = "Unable to mount root fs";

/// How long the trial may take. A kernel that KVM runs is through within one second.
const TRIAL: Duration = Duration::from_secs(8);

/// How long a verdict holds, in seconds: somebody may mend the machine.
const HOLDS_SECS: u64 = 24 * 60 * 60;

/// Whether KVM can be used, and if not why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It booted a kernel.
    Usable,
    /// It cannot be used.
    Unusable(String),
}

/// How many verdicts are remembered: each image may have a kernel of its own.
const REMEMBERED: usize = 32;

/// A verdict with what it was found for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Remembered {
    about: String,
    at_secs: u64,
    unusable_because: Option<String>,
}

/// The verdict on KVM with this QEMU and this kernel: a remembered one, else by trial.
pub fn verdict(
    home: &Home,
    qemu: &Path,
    kernel: &Path,
    deadline: Deadline<'_>,
) -> Result<Verdict, Error> {
    if let Err(error) = open_kvm() {
        let reason = format!("cannot open {}: {error}", kvm_device().display());
        return Ok(Verdict::Unusable(reason));
    }
    let file = home.root().join("kvm.json");
    let about = about(qemu, kernel)?;
    let known = known(&file);
    if let Some(verdict) = recall(&known, &about) {
        return Ok(verdict);
    }
    // All its time, however little the caller has: a verdict that was hurried would be remembered.
    let verdict = boots(Accelerator::Kvm, qemu, kernel, deadline.anew(TRIAL))?;
    let remembered = Remembered {
        about,
        at_secs: now_secs(),
        unusable_because: match &verdict {
            Verdict::Usable => None,
            Verdict::Unusable(reason) => Some(reason.clone()),
        },
    };
    // Where no VM was ever started there is no place to remember it, and no need to.
    if let Ok(content) = serde_json::to_vec_pretty(&with(known, remembered))
        && home.root().is_dir()
    {
        write_whole(&file, &content)?;
    }
    Ok(verdict)
}

/// Boots the kernel as far as it gets without a root file system, within that deadline. With
/// [`Accelerator::Tcg`] it tells whether the trial itself is sound.
pub fn boots(
    accelerator: Accelerator,
    qemu: &Path,
    kernel: &Path,
    deadline: Deadline<'_>,
) -> Result<Verdict, Error> {
    let folder = tempfile::tempdir().map_err(Error::io("make a folder in", Path::new("/tmp")))?;
    let said = folder.path().join("qemu.log");
    let log = File::create(&said).map_err(Error::io("create", &said))?;
    let mut command = Command::new(qemu);
    end_with_us(&mut command);
    let child = command
        .current_dir(folder.path())
        .args(["-M", "q35", "-m", "256", "-display", "none"])
        .args(["-cpu", accelerator.cpu()])
        .args(["-nodefaults", "-no-user-config", "-no-reboot"])
        .args(["-accel", accelerator.name(), "-serial", "file:console.log"])
        .arg("-kernel")
        .arg(kernel)
        .args(["-append", "console=ttyS0 panic=-1"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .map_err(Error::io("start", qemu))?;
    let mut qemu = Trial(child);
    let begun = Instant::now();
    let console = folder.path().join("console.log");
    loop {
        let ended = qemu.0.try_wait().map_err(Error::io("wait for", &said))?;
        let console = std::fs::read(&console).unwrap_or_default();
        if String::from_utf8_lossy(&console).contains(REACHED) {
            return Ok(Verdict::Usable);
        }
        if let Some(status) = ended {
            let said = std::fs::read_to_string(&said).unwrap_or_default();
            let first = said.lines().next().unwrap_or("it said nothing");
            return Ok(Verdict::Unusable(format!("QEMU ended ({status}): {first}")));
        }
        if deadline.left().is_zero() {
            let after = begun.elapsed().as_secs();
            return Ok(Verdict::Unusable(format!(
                "a kernel hung in it for {after} s at its start"
            )));
        }
        if deadline.is_cancelled() {
            return Err(Error::Interrupted);
        }
        sleep(Duration::from_millis(20));
    }
}

/// A QEMU on trial, which does not outlive it.
struct Trial(Child);

impl Drop for Trial {
    fn drop(&mut self) {
        // Both fail only if it has ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The verdicts that hold. One that another program writes at the same time may be lost, and is
/// found anew.
fn known(file: &Path) -> Vec<Remembered> {
    let content = std::fs::read(file).unwrap_or_default();
    let known: Vec<Remembered> = serde_json::from_slice(&content).unwrap_or_default();
    let now = now_secs();
    let holds = |verdict: &Remembered| {
        now.checked_sub(verdict.at_secs)
            .is_some_and(|age| age < HOLDS_SECS)
    };
    known.into_iter().filter(holds).collect()
}

fn recall(known: &[Remembered], about: &str) -> Option<Verdict> {
    let found = known.iter().find(|verdict| verdict.about == about)?;
    let reason = found.unusable_because.clone();
    Some(reason.map_or(Verdict::Usable, Verdict::Unusable))
}

/// Those with one more, the last one first, and no more than are remembered.
fn with(known: Vec<Remembered>, one: Remembered) -> Vec<Remembered> {
    let mut all = vec![one];
    all.extend(known);
    all.truncate(REMEMBERED);
    all
}

/// What a verdict depends on: this boot of the machine, the QEMU and the kernel.
fn about(qemu: &Path, kernel: &Path) -> Result<String, Error> {
    let mut about = mvm_registry::boot_id().map_err(Error::io("read", Path::new("/proc")))?;
    for path in [qemu, kernel] {
        let metadata = std::fs::metadata(path).map_err(Error::io("look at", path))?;
        let (length, changed) = (metadata.len(), metadata.mtime());
        about = format!("{about} {} {length} {changed}", path.display());
    }
    Ok(about)
}

fn now_secs() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn trial(script: &str) -> Verdict {
        let folder = tempfile::tempdir().unwrap();
        let script_file = folder.path().join("script");
        std::fs::write(&script_file, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&script_file, std::fs::Permissions::from_mode(0o755)).unwrap();
        // Written by another process: a program that this one has open for writing, or a fork of
        // another test's that has it too, cannot be run.
        let qemu = folder.path().join("qemu");
        let copied = Command::new("cp")
            .arg(&script_file)
            .arg(&qemu)
            .status()
            .unwrap();
        assert!(copied.success());
        let deadline = Deadline::new(Duration::from_mins(1), None);
        boots(Accelerator::Kvm, &qemu, Path::new("/kernel"), deadline).unwrap()
    }

    #[test]
    fn a_kernel_that_misses_its_root_has_booted() {
        let verdict = trial(
            "echo 'panic: VFS: Unable to mount root fs on (0,0)' >console.log; exec sleep 60",
        );
        assert_eq!(verdict, Verdict::Usable);
    }

    #[test]
    fn a_qemu_that_aborts_gives_its_reason() {
        let Verdict::Unusable(reason) = trial("echo 'failed to set MSR' >&2; kill -6 $$") else {
            panic!("usable");
        };
        assert!(
            reason.contains("signal: 6") && reason.contains("failed to set MSR"),
            "{reason}"
        );
    }

    #[test]
    fn a_verdict_holds_for_a_day_and_for_what_it_was_found_for() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kvm.json");
        let verdict = |about: &str, at_secs| Remembered {
            about: about.into(),
            at_secs,
            unusable_because: Some("MSR".into()),
        };
        let remember = |verdicts: &[Remembered]| {
            std::fs::write(&file, serde_json::to_vec(verdicts).unwrap()).unwrap();
        };
        assert_eq!(known(&file), []);
        let now = now_secs();
        let fresh = [verdict("this", now - 60), verdict("that", now - 90)];
        remember(&fresh);
        assert_eq!(known(&file), fresh);
        for about in ["this", "that"] {
            let recalled = recall(&known(&file), about);
            assert_eq!(recalled, Some(Verdict::Unusable("MSR".into())));
        }
        assert_eq!(recall(&known(&file), "another"), None);
        remember(&[verdict("this", now - HOLDS_SECS - 1)]);
        assert_eq!(known(&file), []);
        remember(&[verdict("this", now + 1000)]);
        assert_eq!(known(&file), [], "the clock was set back");
        std::fs::write(&file, "{").unwrap();
        assert_eq!(known(&file), []);
        // What an earlier version has left: one alone.
        std::fs::write(&file, serde_json::to_vec(&fresh[0]).unwrap()).unwrap();
        assert_eq!(known(&file), []);
    }

    #[test]
    fn verdicts_on_several_kernels_are_remembered_up_to_a_bound() {
        let mut all = Vec::new();
        for kernel in 0..REMEMBERED + 3 {
            let one = Remembered {
                about: kernel.to_string(),
                at_secs: now_secs(),
                unusable_because: None,
            };
            all = with(all, one);
        }
        assert_eq!(all.len(), REMEMBERED);
        assert_eq!(recall(&all, "2"), None);
        assert_eq!(recall(&all, "3"), Some(Verdict::Usable));
    }
}
