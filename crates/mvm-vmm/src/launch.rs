//! The processes of a VM while it is being started: recorded as they come, ended again unless the
//! start succeeds.

use crate::console;
use crate::deadline::Deadline;
use crate::error::{Error, Logs};
use crate::process::spawn_detached;
use mvm_registry::{Alive, Record, Recorded, Role, VmFolder, boot_id};
use std::fs::File;
use std::io;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// How often something is looked at that gives no event, such as a socket that is to appear. The
/// end of a process is seen at once.
const TICK: Duration = Duration::from_millis(20);

/// How long a process that is not wanted after all has to go by itself.
const TERMINATE_GRACE: Duration = Duration::from_secs(2);

/// Why there is no process.
enum Failed {
    Starting(io::Error),
    Recording(mvm_registry::Error),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Starting(error)
    }
}

/// The processes of a VM that is being started.
#[derive(Debug)]
pub struct VmProcesses {
    folder: VmFolder,
    record: Record,
    members: Vec<(Alive, &'static str)>,
    logs: Vec<&'static str>,
    kept: bool,
}

impl VmProcesses {
    pub(crate) fn new(folder: VmFolder, record: Record) -> Result<Self, Error> {
        let processes = Self {
            folder,
            record: Record {
                state: Recorded::Starting,
                boot_id: boot_id().map_err(Error::io("read", Path::new("/proc")))?,
                processes: Vec::new(),
                ..record
            },
            members: Vec::new(),
            logs: Vec::new(),
            kept: false,
        };
        processes.folder.save(&processes.record)?;
        Ok(processes)
    }

    /// The processes of a VM that runs already, to which others may be added. They stay when this
    /// is dropped.
    pub(crate) fn attach(folder: VmFolder, record: Record) -> Self {
        Self {
            folder,
            record,
            members: Vec::new(),
            logs: Vec::new(),
            kept: true,
        }
    }

    /// Ends the process with that role, if there is one.
    pub(crate) fn terminate(&mut self, role: Role) -> Result<(), Error> {
        for process in self.record.alive()?.iter().filter(|p| p.role == role) {
            let gone = process
                .end(TERMINATE_GRACE)
                .map_err(Error::io("end a process of", self.folder.path()))?;
            if !gone {
                return Err(Error::Unkillable {
                    name: self.record.name.clone(),
                    role: process.role,
                    pid: process.pid,
                });
            }
        }
        self.record.processes.retain(|process| process.role != role);
        self.members.retain(|(member, _)| member.role != role);
        Ok(self.folder.save(&self.record)?)
    }

    /// Notes in `vm.json` how the VM is left.
    pub(crate) fn set_state(&mut self, state: Recorded) -> Result<(), Error> {
        self.record.state = state;
        Ok(self.folder.save(&self.record)?)
    }

    /// Notes that the VM stands still, and whether by the fleet; or that it runs.
    pub(crate) fn set_paused(&mut self, by_fleet: Option<bool>) -> Result<(), Error> {
        self.record.paused_by_fleet = by_fleet == Some(true);
        self.set_state(match by_fleet {
            Some(_) => Recorded::Paused,
            None => Recorded::Running,
        })
    }

    /// Notes in which snapshot the VM is asleep, as soon as it has ended.
    pub(crate) fn set_suspended(&mut self, snapshot: Option<&Path>) -> Result<(), Error> {
        self.record.suspended_in = snapshot.map(Path::to_owned);
        Ok(self.folder.save(&self.record)?)
    }

    /// Notes that its guest knows that it was restored.
    pub(crate) fn set_woken(&mut self) -> Result<(), Error> {
        self.record.unwoken = None;
        Ok(self.folder.save(&self.record)?)
    }

    /// Notes where a snapshot is being written.
    pub(crate) fn set_snapshot_dir(&mut self, snapshot_dir: Option<&Path>) -> Result<(), Error> {
        self.record.snapshot_dir = snapshot_dir.map(Path::to_owned);
        Ok(self.folder.save(&self.record)?)
    }

    /// The VM's folder.
    pub fn folder(&self) -> &VmFolder {
        &self.folder
    }

    /// What will be its `vm.json`.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Notes how the backend runs the VM.
    pub(crate) fn set_accelerator(&mut self, name: &str) {
        self.record.accelerator = Some(name.to_owned());
    }

    /// Starts a process in the VM's folder, so that its paths are short whatever the folder's own
    /// is (a socket's may have 107 bytes), with its output in `log`. It is recorded before it begins
    /// to run: whenever this program is killed, the next one finds what it left.
    pub(crate) fn spawn(
        &mut self,
        role: Role,
        program: &'static str,
        log: &'static str,
        command: &mut Command,
    ) -> Result<(), Error> {
        let path = self.folder.file(log);
        let file = File::create(&path).map_err(Error::io("create", &path))?;
        command.current_dir(self.folder.path());
        if !self.logs.contains(&log) {
            self.logs.push(log);
        }
        let before = self.record.processes.len();
        let (folder, record) = (&self.folder, &mut self.record);
        let started = spawn_detached(role, command, file, |process| {
            record.processes.push(process.clone());
            folder.save(record).map_err(Failed::Recording)
        });
        match started {
            Ok((_, alive)) => {
                self.members.push((alive, program));
                Ok(())
            }
            Err(failed) => {
                // It was noted, and is gone.
                self.record.processes.truncate(before);
                Err(match failed {
                    Failed::Recording(error) => error.into(),
                    Failed::Starting(error) => {
                        // The first error says more than one of this would.
                        let _ = self.folder.save(&self.record);
                        Error::io("start", command.get_program().as_ref())(error)
                    }
                })
            }
        }
    }

    /// Another log that explains a failure, the most telling last.
    pub(crate) fn add_log(&mut self, log: &'static str) {
        if !self.logs.contains(&log) {
            self.logs.push(log);
        }
    }

    /// Waits until `probe` gives something, all processes staying alive meanwhile.
    pub fn wait_for<T>(
        &self,
        awaited: &str,
        deadline: Deadline<'_>,
        mut probe: impl FnMut() -> Result<Option<T>, Error>,
    ) -> Result<T, Error> {
        loop {
            if let Some(found) = probe()? {
                return Ok(found);
            }
            if deadline.is_cancelled() {
                return Err(Error::Interrupted);
            }
            self.check_alive()?;
            if deadline.left().is_zero() {
                return Err(Error::TimedOut {
                    awaited: awaited.to_owned(),
                    after: deadline.whole(),
                    logs: self.logs(),
                });
            }
            self.pause(TICK)?;
        }
    }

    /// An error if one of the processes has ended.
    pub fn check_alive(&self) -> Result<(), Error> {
        for (member, program) in &self.members {
            let ending = member
                .ending()
                .map_err(Error::io("look at a process of", self.folder.path()))?;
            if let Some(how) = ending {
                return Err(Error::EndedEarly {
                    program,
                    how,
                    logs: self.logs(),
                });
            }
        }
        Ok(())
    }

    /// The ends of the logs, for an error message.
    pub fn logs(&self) -> Logs {
        let tails = self.logs.iter().map(|log| {
            let tail = console::tail(&self.folder.file(log));
            ((*log).to_owned(), tail)
        });
        Logs {
            parts: tails.filter(|(_, tail)| !tail.is_empty()).collect(),
        }
    }

    /// The VM is up: its processes stay, and `vm.json` says `running`.
    pub(crate) fn keep(mut self) -> Result<Record, Error> {
        self.record.state = Recorded::Running;
        self.record.suspended_in = None;
        self.folder.save(&self.record)?;
        self.kept = true;
        Ok(self.record.clone())
    }

    /// Waits a little, or until the last process that was started ends.
    pub(crate) fn pause(&self, duration: Duration) -> Result<(), Error> {
        let Some((member, _)) = self.members.last() else {
            std::thread::sleep(duration);
            return Ok(());
        };
        member
            .wait(duration)
            .map(|_| ())
            .map_err(Error::io("wait for a process of", self.folder.path()))
    }
}

impl Drop for VmProcesses {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        for (member, _) in self.members.iter().rev() {
            // One that cannot be ended stays in the record for the next `stop`.
            if matches!(member.end(TERMINATE_GRACE), Ok(true)) {
                self.record.processes.retain(|p| p.pid != member.pid);
            }
        }
        // Also if one of them cannot be ended: nobody is starting it any more.
        self.record.state = Recorded::Stopped;
        // The start has failed already, with an error that says more than this one would.
        let _ = self.folder.save(&self.record);
    }
}
