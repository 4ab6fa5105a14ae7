//! A VM from start to removal, whichever backend runs it.
//!
//! ```text
//!            start                agent up, confirm()
//! (no VM) ──────────► starting ───────────────────────► running
//!    ▲                 │ dropped, failed, interrupted     │ stop: ask, wait, TERM, KILL
//!    │ remove          ▼                                  ▼
//!    └────────────── stopped ◄────────────────────────────┘
//! ```
//!
//! While it is starting, `vm.json` says so, and nobody dials a guest that is not up; and it has the
//! processes, so that nothing is lost if this program is killed. Each step holds the VM's lock. What a
//! VM is at any moment, `mvm_registry::state` says.

use crate::console::{self, ConsoleKeeper, Follow, LISTENING, Watch};
use crate::deadline::Deadline;
use crate::driver::{self, Driver, Launch};
use crate::error::{Error, Logs};
use crate::image::Image;
use crate::launch::VmProcesses;
use crate::leftovers::sweep_removed;
use crate::making::under_lock;
use crate::pause;
use crate::snapshot;
use mvm_registry::record::VERSION;
use mvm_registry::{Alive, Home, Label, Lock, Record, Recorded, VmFolder, VmName, open_regular};
use serde::Serialize;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Memory of a VM for which none was asked, in MiB.
pub const DEFAULT_MEMORY_MIB: u32 = 256;

/// How long a process has between TERM and KILL.
const TERMINATE_GRACE: Duration = Duration::from_secs(3);

/// What to start. What is not given is taken from the last start of the VM, then from defaults.
#[derive(Debug, Default, Clone)]
pub struct Spec {
    /// The image folder.
    pub image: Option<PathBuf>,
    /// A backend's name; none means that of the last start, then the first that works here.
    pub backend: Option<String>,
    /// Virtual CPUs.
    pub cpus: Option<u32>,
    /// Memory in MiB.
    pub memory_mib: Option<u32>,
    /// The agent's program, for a backend that runs it on this machine.
    pub agent: Option<PathBuf>,
    /// Its settings and drop-ins, likewise.
    pub etc: Option<PathBuf>,
    /// How much of its consoles is kept, in MiB.
    pub console_limit_mib: Option<u32>,
    /// What keeps them within that; without it there is no limit.
    pub console_keeper: Option<ConsoleKeeper>,
    /// Labels that are put on those of the last start.
    pub labels: Vec<Label>,
    /// Whether the fleet is to leave it alone.
    pub pinned: Option<bool>,
    /// Whether one that is asleep in a snapshot is to be booted anew.
    pub discard_state: bool,
}

/// A VM that has been started and whose agent is not yet known to answer. If it is dropped, what
/// was started is ended.
#[derive(Debug)]
pub struct Starting {
    processes: VmProcesses,
    _lock: Lock,
}

/// How a VM is to be stopped.
#[derive(Debug, Clone, Copy)]
pub enum Stop {
    /// Asked to, and forced when it has not gone by then.
    Ask(Duration),
    /// Forced at once.
    Force,
}

/// How it came to stand still.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stopped {
    /// It was not running.
    Already,
    /// It went when asked to.
    Clean,
    /// It had to be ended.
    Forced,
    /// The same, and it was not asked: its snapshot was broken off, and it would not have heard.
    #[serde(rename = "forced")]
    Unasked,
    /// The same: its restore was broken off, and it sleeps on.
    #[serde(rename = "forced")]
    Unrestored,
}

/// Starts a VM's processes. What remains is to wait for its agent, and to
/// [`confirm`](Starting::confirm).
pub fn start(
    home: &Home,
    name: &VmName,
    spec: &Spec,
    deadline: Deadline<'_>,
) -> Result<Starting, Error> {
    sweep_removed(home);
    // Where a program has said something, `vm logs` is to have it.
    let has_logs = |error: &Error| error.logs().is_some();
    let started = under_lock(home, name, has_logs, |folder| {
        launch(home, name, folder, spec, deadline)
    });
    let (processes, lock) = started?;
    Ok(Starting {
        processes,
        _lock: lock,
    })
}

/// The same under the VM's lock.
fn launch(
    home: &Home,
    name: &VmName,
    folder: &VmFolder,
    spec: &Spec,
    deadline: Deadline<'_>,
) -> Result<VmProcesses, Error> {
    let last = folder.last_record()?;
    if let Some(last) = &last
        && !spec.discard_state
    {
        refuse_suspended(last)?;
    }
    let driver = match spec
        .backend
        .as_deref()
        .or(last.as_ref().map(|record| record.backend.as_str()))
    {
        None | Some("auto") => {
            let last = last.as_ref().and_then(|record| record.image.as_deref());
            let image = spec.image.as_deref().or(last).map(Image::open);
            let kernel = image.transpose()?.map(|image| image.kernel());
            driver::auto(home, kernel.as_deref(), deadline)?
        }
        Some(backend) => driver::by_name(backend)?,
    };
    let record = plan(name, spec, last.as_ref(), driver)?;
    let image = record.image.as_deref().map(Image::open).transpose()?;
    driver.check()?;
    if let Some(last) = &last {
        replace_stopped_vm(name, last, folder)?;
    }
    folder.create()?;
    remove_sockets(folder)?;
    let launch = Launch {
        home,
        image: image.as_ref(),
        cpus: record.cpus,
        memory_mib: record.memory_mib,
        agent: record.agent.clone(),
        etc: record.etc.clone(),
        deadline,
    };
    // An image's port is its guest's. An agent on this machine, on a Unix socket, knows one alone.
    let guest = image.as_ref().filter(|_| driver.runs_a_guest());
    let port = guest.map(|image| image.manifest.agent.port);
    let mut processes = VmProcesses::new(
        folder.clone(),
        Record {
            port: port.unwrap_or(mvm_protocol::PORT),
            ..record
        },
        spec.console_keeper,
    )?;
    match driver.launch(&launch, &mut processes) {
        Ok(()) => Ok(processes),
        Err(error) => Err(processes.explained(error)),
    }
}

impl Starting {
    /// Waits for the agent's line on the console. Only then may it be dialled.
    pub fn wait_for_agent(&self, deadline: Deadline<'_>) -> Result<(), Error> {
        let console = self.processes.folder().console();
        let mut watch = Watch::new(self.processes.folder(), LISTENING);
        self.processes
            .wait_for("the agent's line on the console", deadline, || {
                let come = watch.contains().map_err(Error::io("read", &console))?;
                Ok(come.then_some(()))
            })
    }

    /// The socket at which the agent is reached.
    pub fn socket(&self) -> PathBuf {
        self.processes.folder().file("v.sock")
    }

    /// The port at which it is reached there.
    pub fn port(&self) -> u32 {
        self.processes.record().port
    }

    /// An error if one of the VM's processes has ended.
    pub fn check_alive(&self) -> Result<(), Error> {
        self.processes.check_alive()
    }

    /// What its processes and the guest said last.
    pub fn logs(&self) -> Logs {
        self.processes.logs()
    }

    /// The VM is as it should be: it stays, and is from now on `running`.
    pub fn confirm(self) -> Result<Record, Error> {
        self.processes.keep()
    }
}

/// Stops a VM, and clears what is left of one that ended by itself.
pub fn stop(home: &Home, name: &VmName, how: Stop) -> Result<Stopped, Error> {
    let folder = home.vm(name);
    // Looked at before the lock is made, which would stay for a VM that never was.
    folder.record()?;
    let _lock = home.lock(name)?;
    let mut record = folder.record()?;
    let alive = record.alive()?;
    let driver = driver::by_name(&record.backend)?;
    let main = Alive::main(&alive);
    let was_asleep = record.state == Recorded::Asleep;
    // Its restore was broken off: what has begun to run has done nothing yet.
    let is_suspended = record.state == Recorded::Starting && record.suspended_in.is_some();
    if let (Some(main), Stop::Ask(at_most), false) = (main, how, was_asleep || is_suspended) {
        // What stands still hears nothing. If it cannot run on it is forced below.
        let is_recorded = record.state == Recorded::Paused;
        let _ = pause::let_run(driver, &folder, main, is_recorded, at_most);
    }
    if main.is_some() {
        // Before it is asked: one that goes is not taken for one that has ended by itself. Where that
        // cannot be written down, since the disk is full, it is to be ended all the more.
        record.state = Recorded::Stopping;
        let _ = folder.save(&record);
    }
    let stopped = match (main, how) {
        (None, _) => Stopped::Already,
        (Some(_), Stop::Force) => Stopped::Forced,
        // Its snapshot was broken off.
        (Some(_), Stop::Ask(_)) if was_asleep => Stopped::Unasked,
        (Some(_), Stop::Ask(_)) if is_suspended => Stopped::Unrestored,
        (Some(main), Stop::Ask(deadline)) => {
            let until = Instant::now() + deadline;
            // A VMM that cannot even be asked has to be forced all the same.
            let asked = driver.request_stop(&folder, &alive).is_ok();
            let left = until.saturating_duration_since(Instant::now());
            let gone = asked
                && main
                    .wait(left)
                    .map_err(Error::io("wait for", folder.path()))?;
            if gone {
                Stopped::Clean
            } else {
                Stopped::Forced
            }
        }
    };
    end_all(name, &alive)?;
    let cleared = remove_sockets(&folder).and_then(|()| match record.snapshot_dir.take() {
        Some(snapshot_dir) => Ok(snapshot::discard(&snapshot_dir)?),
        None => Ok(()),
    });
    // One that was put to sleep in order stays asleep, also if nobody lived to see the end of it.
    let is_kept = record.processes.is_empty() || record.suspended_in.is_some();
    let stays_asleep = is_suspended || (was_asleep && main.is_none() && is_kept);
    record.state = if stays_asleep {
        record.unwoken = None;
        Recorded::Asleep
    } else {
        Recorded::Stopped
    };
    record.processes.clear();
    let saved = folder.save(&record);
    // First what matters: nothing of it runs, whatever is left of its files.
    saved.map_err(|source| Error::EndedUnrecorded { source })?;
    cleared?;
    Ok(stopped)
}

/// Notes whether the fleet is to leave a VM alone, whatever that is doing.
///
/// # Errors
///
/// Those of the record, and [`mvm_registry::Error::Locked`] while something is being done to the VM.
pub fn pin(home: &Home, name: &VmName, pinned: bool) -> Result<(), Error> {
    let folder = home.vm(name);
    folder.record()?;
    let _lock = home.lock(name)?;
    let record = folder.record()?;
    Ok(folder.save(&Record { pinned, ..record })?)
}

/// One that is asleep in a snapshot, or whose restore was broken off, is not booted anew for nothing.
fn refuse_suspended(last: &Record) -> Result<(), Error> {
    let is_asleep = last.state == Recorded::Asleep && last.processes.is_empty();
    if is_asleep || last.suspended_in.is_some() {
        return Err(Error::Suspended {
            name: last.name.clone(),
            snapshot: last.suspended_in.clone(),
        });
    }
    Ok(())
}

/// What will be in `vm.json`: what was asked for, else what was there, else the default.
fn plan(
    name: &VmName,
    spec: &Spec,
    last: Option<&Record>,
    driver: &dyn Driver,
) -> Result<Record, Error> {
    let absolute = |path: &Path| std::path::absolute(path).map_err(Error::io("resolve", path));
    let pick = |given: &Option<PathBuf>, last: Option<PathBuf>| match given {
        Some(path) => absolute(path).map(Some),
        None => Ok(last),
    };
    Ok(Record {
        version: VERSION,
        name: name.to_string(),
        backend: driver.name().to_owned(),
        state: Recorded::Starting,
        since: None,
        started_at: None,
        image: pick(&spec.image, last.and_then(|r| r.image.clone()))?,
        cpus: spec.cpus.or(last.map(|r| r.cpus)).unwrap_or(1),
        memory_mib: spec
            .memory_mib
            .or(last.map(|r| r.memory_mib))
            .unwrap_or(DEFAULT_MEMORY_MIB),
        port: mvm_protocol::PORT,
        agent: pick(&spec.agent, last.and_then(|r| r.agent.clone()))?,
        etc: pick(&spec.etc, last.and_then(|r| r.etc.clone()))?,
        console_limit_mib: spec
            .console_limit_mib
            .or(last.and_then(|r| r.console_limit_mib)),
        labels: last
            .map(|r| r.labels.clone())
            .unwrap_or_default()
            .with(&spec.labels)?,
        pinned: spec.pinned.or(last.map(|r| r.pinned)).unwrap_or(false),
        paused_by_fleet: false,
        accelerator: None,
        guest_cid: None,
        boot_id: String::new(),
        snapshot_dir: None,
        suspended_in: None,
        unwoken: None,
        processes: Vec::new(),
    })
}

/// A VM that runs is in the way, one that is frozen too; what else is left of one (it has ended, or its
/// start was broken off) is ended. Whoever calls this holds the VM's lock.
pub(crate) fn replace_stopped_vm(
    name: &VmName,
    record: &Record,
    folder: &VmFolder,
) -> Result<(), Error> {
    let alive = record.alive()?;
    let was_up = matches!(
        record.state,
        Recorded::Running | Recorded::Stopping | Recorded::Paused | Recorded::Asleep
    );
    if was_up && let Some(main) = Alive::main(&alive) {
        return Err(Error::Running {
            name: name.to_string(),
            pid: main.pid,
        });
    }
    end_all(name, &alive)?;
    if let Some(snapshot_dir) = &record.snapshot_dir {
        snapshot::discard(snapshot_dir)?;
    }
    if folder.path().exists() {
        remove_sockets(folder)?;
    }
    Ok(())
}

/// Ends processes, the one that was started last first.
pub(crate) fn end_all(name: &VmName, processes: &[Alive]) -> Result<(), Error> {
    for process in processes.iter().rev() {
        let gone = process
            .end(TERMINATE_GRACE)
            .map_err(Error::io("end a process of", Path::new(&name.to_string())))?;
        if !gone {
            return Err(Error::Unkillable {
                name: name.to_string(),
                role: process.role,
                pid: process.pid,
            });
        }
    }
    Ok(())
}

/// Removes the sockets of processes that are gone; a VMM refuses to start over them. Those named
/// `v.sock_PORT` stay: somebody on the host listens there for what the guest dials.
pub(crate) fn remove_sockets(folder: &VmFolder) -> Result<(), Error> {
    let failed = || Error::io("clear", folder.path());
    for entry in std::fs::read_dir(folder.path()).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        let is_socket = entry.file_type().is_ok_and(|kind| kind.is_socket());
        let is_listener = entry.file_name().to_string_lossy().starts_with("v.sock_");
        if is_socket && !is_listener {
            match std::fs::remove_file(entry.path()) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed()(error)),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Ends what is left of a VM that has ended by itself, such as the backend of its vsock device. Its
/// record goes on saying how it ended.
pub fn end_left_over(home: &Home, name: &VmName) -> Result<(), Error> {
    let folder = home.vm(name);
    folder.record()?;
    let _lock = home.lock(name)?;
    let alive = folder.record()?.alive()?;
    if Alive::main(&alive).is_some() {
        // Somebody has started it again.
        return Ok(());
    }
    end_all(name, &alive)
}

/// Notes other labels of a VM, and whether the fleet is to leave it alone.
pub fn mark(
    home: &Home,
    name: &VmName,
    labels: &[Label],
    pinned: Option<bool>,
) -> Result<(), Error> {
    let _lock = home.lock(name)?;
    let folder = home.vm(name);
    let mut record = folder.record()?;
    record.labels = record.labels.with(labels)?;
    record.pinned = pinned.unwrap_or(record.pinned);
    Ok(folder.save(&record)?)
}

/// Ends a VM that went on from its own snapshot and could not be woken: it is asleep in that snapshot
/// again, as it was.
pub fn sleep_again(home: &Home, name: &VmName, snapshot: &Path) -> Result<(), Error> {
    let _lock = home.lock(name)?;
    let folder = home.vm(name);
    let mut record = folder.record()?;
    end_all(name, &record.alive()?)?;
    remove_sockets(&folder)?;
    record.state = Recorded::Asleep;
    record.suspended_in = Some(snapshot.to_owned());
    record.processes.clear();
    Ok(folder.save(&record)?)
}

/// What the guest wrote to its console, to be read as it grows.
pub fn console(home: &Home, name: &VmName) -> Result<Follow, Error> {
    let folder = home.vm(name);
    folder.record()?;
    need_console(&folder, console::LOG, |name| Error::NoConsole { name })?;
    Ok(Follow::new(&folder))
}

/// What the guest wrote to its console the last time that the VM was up, before it was started.
pub fn last_console(home: &Home, name: &VmName) -> Result<File, Error> {
    let folder = home.vm(name);
    folder.record()?;
    need_console(&folder, console::LAST_LOG, |name| Error::NoLastConsole {
        name,
    })
}

fn need_console(folder: &VmFolder, log: &str, missing: fn(String) -> Error) -> Result<File, Error> {
    let path = folder.file(log);
    match open_regular(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Err(missing(folder.name().to_string()))
        }
        opened => opened.map_err(Error::io("read", &path)),
    }
}
