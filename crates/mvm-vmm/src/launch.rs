//! The processes of a VM while it is being started: recorded as they come, ended again unless the
//! start succeeds.

use crate::console::{self, ConsoleKeeper, Share};
use crate::deadline::Deadline;
use crate::error::{Error, Logs};
use crate::process::spawn_detached;
use mvm_registry::record::GUEST_CID;
use mvm_registry::{Alive, GONE, Record, Recorded, Role, VmFolder, boot_id};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How often something is looked at that gives no event, such as a socket that is to appear: often at
/// first, since most come soon, and less and less. The end of a process is seen at once.
const FIRST_TICK: Duration = Duration::from_millis(1);
const TICK: Duration = Duration::from_millis(20);

/// How long a process that is not wanted after all has to go by itself.
const TERMINATE_GRACE: Duration = Duration::from_secs(2);

/// How much of the console may wait to be kept, in bytes.
const PIPE: usize = 1 << 20;

/// How what keeps the console ends that has done its work.
const DONE: &str = "exit status 0";

/// How long the last that a guest has said may take to be in its console.
const LAST_WORDS: Duration = Duration::from_millis(500);

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
    /// Without one, consoles are written without a limit.
    keeper: Option<ConsoleKeeper>,
    kept: bool,
}

impl VmProcesses {
    pub(crate) fn new(
        folder: VmFolder,
        record: Record,
        keeper: Option<ConsoleKeeper>,
    ) -> Result<Self, Error> {
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
            keeper,
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
            keeper: None,
            kept: true,
        }
    }

    /// The process with that role that was started last; 0 if there is none.
    pub(crate) fn pid(&self, role: Role) -> i32 {
        let mut processes = self.record.processes.iter().rev();
        let own = processes.find(|process| process.role == role);
        own.map_or(0, |process| process.pid)
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

    /// Notes the guest's vsock address, with the next process that is started. Only one that others do
    /// not have, so that an earlier mvmctl reads the records of most VMs.
    pub(crate) fn set_guest_cid(&mut self, cid: u32) {
        self.record.guest_cid = (cid != GUEST_CID).then_some(cid);
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
        let output = self.create_log(log)?;
        let errors = output
            .try_clone()
            .map_err(Error::io("open", log.as_ref()))?;
        self.start(
            role,
            program,
            command,
            (Stdio::null(), output.into(), errors.into()),
        )
    }

    /// The same of the process whose standard output the guest's console is, and of one that keeps
    /// that, within its limit. `log` has what it says itself, on standard error; without one that is in
    /// the console too.
    pub(crate) fn spawn_with_console(
        &mut self,
        role: Role,
        program: &'static str,
        log: Option<&'static str>,
        command: &mut Command,
    ) -> Result<(), Error> {
        let console = self.keep_console()?;
        let errors = match log {
            Some(log) => self.create_log(log)?.into(),
            None => console
                .try_clone()
                .map_err(Error::io("open", console::LOG.as_ref()))?
                .into(),
        };
        self.add_log(console::LOG);
        self.start(
            role,
            program,
            command,
            (Stdio::null(), console.into(), errors),
        )
    }

    /// Begins the console, and gives where to write it to: a pipe to what keeps it, which ends when
    /// nobody has its other end any more.
    fn keep_console(&mut self) -> Result<OwnedFd, Error> {
        let limit = self.record.console_limit_mib;
        let path = self.folder.console();
        let begun = console::begin(self.folder.path(), Share::of(limit));
        begun.map_err(Error::io("begin", &path))?;
        let Some(keeper) = self.keeper else {
            let opened = console::open(self.folder.path());
            return Ok(opened.map_err(Error::io("open", &path))?.into());
        };
        let (reader, writer) = io::pipe().map_err(Error::io("make a pipe to", &path))?;
        // What is printed at once waits there, and not in the guest. Without leave to, it is smaller.
        let _ = rustix::pipe::fcntl_setpipe_size(&writer, PIPE);
        let streams = (reader.into(), Stdio::null(), Stdio::null());
        let mut command = console::keeper(keeper, limit);
        self.start(
            Role::Console,
            "what keeps the console",
            &mut command,
            streams,
        )?;
        Ok(writer.into())
    }

    fn create_log(&mut self, log: &'static str) -> Result<File, Error> {
        self.add_log(log);
        let path = self.folder.file(log);
        File::create(&path).map_err(Error::io("create", &path))
    }

    fn start(
        &mut self,
        role: Role,
        program: &'static str,
        command: &mut Command,
        streams: (Stdio, Stdio, Stdio),
    ) -> Result<(), Error> {
        command.current_dir(self.folder.path());
        let before = self.record.processes.len();
        let (folder, record) = (&self.folder, &mut self.record);
        let started = spawn_detached(role, command, streams, |process| {
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
        let mut tick = FIRST_TICK;
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
            self.pause(tick)?;
            tick = (tick + tick / 16).min(TICK);
        }
    }

    /// An error if one of the processes has ended.
    pub fn check_alive(&self) -> Result<(), Error> {
        for (member, program) in &self.members {
            let ending = member
                .ending()
                .map_err(Error::io("look at a process of", self.folder.path()))?;
            // What keeps the console ends with the others, in order, and a moment before them. At the
            // second look that is not told any more.
            let in_order =
                member.role == Role::Console && matches!(ending.as_deref(), Some(DONE | GONE));
            if let Some(how) = ending.filter(|_| !in_order) {
                return Err(Error::EndedEarly {
                    program,
                    how,
                    logs: self.logs(),
                });
            }
        }
        Ok(())
    }

    /// What a failure is due to: a QEMU that has ended, or is just ending, is first noticed by its
    /// connections. Its own last words say more than that those broke off.
    pub(crate) fn explained(&self, error: Error) -> Error {
        match error {
            Error::Qmp { .. } => self.ended_within(LAST_WORDS).unwrap_or(error),
            other => other,
        }
    }

    /// That one of the processes has ended, or does so within that time; `None` if all live on.
    pub(crate) fn ended_within(&self, at_most: Duration) -> Option<Error> {
        let until = Instant::now() + at_most;
        loop {
            match self.check_alive() {
                Err(ended) => return Some(ended),
                Ok(()) if Instant::now() >= until => return None,
                Ok(()) => self.pause(TICK).ok()?,
            }
        }
    }

    /// The ends of the logs, for an error message.
    pub fn logs(&self) -> Logs {
        self.await_last_words();
        let tails = self.logs.iter().map(|log| {
            let tail = console::tail(&self.folder.file(log));
            ((*log).to_owned(), tail)
        });
        Logs {
            parts: tails.filter(|(_, tail)| !tail.is_empty()).collect(),
        }
    }

    /// Where a process has ended, waits until what it said last is in the console.
    fn await_last_words(&self) {
        let mut others = self
            .members
            .iter()
            .filter(|(member, _)| member.role != Role::Console);
        let keeper = self
            .members
            .iter()
            .find(|(member, _)| member.role == Role::Console);
        let Some((keeper, _)) = keeper else { return };
        if others.any(|(other, _)| matches!(other.ending(), Ok(Some(_)))) {
            // If it takes longer, the end of the log is told as far as it has come.
            let _ = keeper.wait(LAST_WORDS);
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

#[cfg(test)]
impl VmProcesses {
    /// Those of a VM `web` below that folder, of which none was started.
    pub(crate) fn of_nothing(home: &Path, backend: &str) -> Self {
        use mvm_registry::{Home, VmName};
        let folder = Home::at(home).vm(&VmName::new("web").unwrap());
        folder.create().unwrap();
        let record = serde_json::json!({
            "version": 1, "name": "web", "backend": backend, "state": "running", "cpus": 1,
            "memory_mib": 256, "port": 52, "boot_id": "", "processes": [],
        });
        Self::attach(folder, serde_json::from_value(record).unwrap())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mvm_registry::Process;

    /// The guest's program is about to be found to have ended, and its end is the reason.
    #[test]
    fn what_keeps_the_console_may_end_before_the_others_however_often_that_is_looked_at() {
        let root = tempfile::tempdir().unwrap();
        let mut processes = VmProcesses::of_nothing(root.path(), "local");
        #[expect(clippy::zombie_processes, reason = "it is reaped by its pidfd")]
        let keeper = Command::new("true").spawn().unwrap();
        let (_, alive) = Process::identify(Role::Console, keeper.id()).unwrap();
        assert!(alive.wait(Duration::from_secs(20)).unwrap());
        processes.members.push((alive, "what keeps the console"));
        for _ in 0..3 {
            processes.check_alive().unwrap();
        }
    }
}
