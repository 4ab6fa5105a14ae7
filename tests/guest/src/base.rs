//! The guests that stories begin with: each booted once a run, and kept as a snapshot.
//!
//! A runner may give each test a process of its own, so the snapshot lies in a folder that they
//! find by the run's id. The first test makes it while it holds the lock; the others wait for it.

use crate::image::{build_dev_image, build_image};
use crate::machine::Machine;
use crate::parts::{Parts, target};
use mvm_client::{Deadlines, Endpoint, Session};
use mvm_protocol::status::Health;
use mvm_vmm::image::Image;
use std::fs::{self, File};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::{env, io};

/// Which build of the agent a guest has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    Prod,
    Dev,
}

/// A folder that all tests of a run share. Nobody removes it while this is held.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) folder: PathBuf,
    _lock: File,
}

impl Shared {
    /// This run's folder of that name, filled by the first test that asks for it.
    pub(crate) fn of_this_run(name: &str, fill: impl FnOnce(&Path) + Send) -> Self {
        let all = target().join("tmp/mvm-guest-tests");
        let run = run_id();
        let folder = all.join(format!("{run}.{name}"));
        fs::create_dir_all(&folder).expect("make a folder");
        let lock = File::create(folder.join("lock")).expect("create a lock");
        lock.lock().expect("lock");
        let failed = folder.join("failed");
        assert!(
            !failed.exists(),
            "the guest of this run did not come up: see the first test that failed"
        );
        if !folder.join("ready").exists() {
            remove_others(&all, &run);
            // On a thread of its own: the test may be in a runtime already.
            let made = std::thread::scope(|scope| scope.spawn(|| fill(&folder)).join());
            let outcome = if made.is_ok() { "ready" } else { "failed" };
            fs::write(folder.join(outcome), "").expect("write a mark");
            if let Err(panic) = made {
                resume_unwind(panic);
            }
        }
        lock.lock_shared().expect("lock");
        Self {
            folder,
            _lock: lock,
        }
    }
}

/// A guest that was kept.
#[derive(Debug)]
pub(crate) struct Base {
    shared: Shared,
    pub(crate) image: Image,
}

impl Base {
    /// This run's guest; boots and keeps it if no test has yet.
    pub(crate) fn of_this_run(parts: &Parts, profile: Profile) -> Self {
        let name = match profile {
            Profile::Prod => "prod",
            Profile::Dev => "dev",
        };
        let shared = Shared::of_this_run(name, |folder| make(parts, profile, folder));
        Self {
            image: Image::open(&shared.folder.join("image")).expect("an image"),
            shared,
        }
    }

    /// Where it is kept.
    pub(crate) fn folder(&self) -> &Path {
        &self.shared.folder
    }

    /// The state of its devices. Its memory is `ram` in the same folder.
    pub(crate) fn state(&self) -> PathBuf {
        self.folder().join("state")
    }
}

fn make(parts: &Parts, profile: Profile, folder: &Path) {
    match profile {
        Profile::Prod => build_image(parts, folder),
        Profile::Dev => build_dev_image(parts, folder),
    };
    let image = Image::open(&folder.join("image")).expect("an image");
    let machine = Machine::boot(parts, &image, folder);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(settle(&machine));
    machine.keep(&folder.join("state"));
}

/// Waits until each check and probe has run once, so that the next run is on demand.
async fn settle(machine: &Machine) {
    let endpoint = Endpoint::unix(machine.socket());
    let mut session = Session::connect(&endpoint, &Deadlines::default())
        .await
        .unwrap_or_else(|error| panic!("{error}\n{}", machine.console()));
    crate::eventually("all checks have run once", async || {
        let inspect = session.inspect().await.expect("inspect");
        let web = inspect
            .status
            .integrations
            .iter()
            .find(|i| i.name == "web")?;
        let all = inspect
            .status
            .integrations
            .iter()
            .all(|i| i.last_check.is_some())
            && inspect.probes.iter().all(|p| p.last_check.is_some());
        (all && web.health == Health::Healthy).then_some(())
    })
    .await;
}

/// The id that the runner gave this run, else what is the same for all tests that one process
/// started.
fn run_id() -> String {
    env::var("NEXTEST_RUN_ID").unwrap_or_else(|_| {
        let parent = std::os::unix::process::parent_id();
        let stat = fs::read_to_string(format!("/proc/{parent}/stat")).unwrap_or_default();
        let started = stat
            .rsplit_once(") ")
            .and_then(|(_, f)| f.split(' ').nth(19));
        format!("{parent}-{}", started.unwrap_or_default())
    })
}

/// Removes what earlier runs have left.
fn remove_others(all: &Path, own: &str) {
    let others = fs::read_dir(all).expect("list earlier runs");
    for other in others.filter_map(|entry| Some(entry.ok()?.path())) {
        let name = other.file_stem().unwrap_or_default();
        if name == own {
            continue;
        }
        let in_use = File::open(other.join("lock")).is_ok_and(|lock| lock.try_lock().is_err());
        if !in_use {
            match fs::remove_dir_all(&other) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    panic!("cannot remove {}: {error}", other.display())
                }
                _ => {}
            }
        }
    }
}
