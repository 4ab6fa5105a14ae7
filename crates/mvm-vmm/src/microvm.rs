//! What Firecracker and Cloud Hypervisor have in common: one process a VM, which owns `v.sock`, is
//! told what to do over an API socket, and runs guests by KVM alone. And what all guests have.

use crate::deadline::Deadline;
use crate::error::{Error, Logs, Standing};
use crate::http::{Api, HttpError, Method};
use crate::launch::VmProcesses;
use mvm_registry::{Role, VmFolder};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// The one process of the VM.
pub(crate) const ROLE: Role = Role::Vmm;

/// The API socket in the VM's folder.
pub(crate) const API_SOCKET: &str = "api.sock";

/// The hybrid vsock socket, relative to the VM's folder, in which the VMM runs.
pub(crate) const VSOCK_SOCKET: &str = "v.sock";

/// How long one request may take that moves no memory.
pub(crate) const ANSWER: Duration = Duration::from_secs(10);

/// How long a VMM that answered with an error may take to end, if it is going to.
const LAST_GASP: Duration = Duration::from_millis(500);

/// The device by which guests are run.
pub(crate) fn kvm_device() -> PathBuf {
    std::env::var_os("MVM_KVM")
        .filter(|path| !path.is_empty())
        .map_or_else(|| PathBuf::from("/dev/kvm"), PathBuf::from)
}

/// Whether the device can be opened. Whether it then boots a kernel, only a trial would tell.
pub(crate) fn open_kvm() -> io::Result<()> {
    let mut options = File::options();
    options.read(true).write(true).open(kvm_device()).map(drop)
}

/// The same for a backend that can do nothing without.
pub(crate) fn check_kvm(backend: &'static str) -> Result<(), Error> {
    open_kvm().map_err(|error| Error::Unsupported {
        backend,
        reason: format!(
            "it runs guests by KVM alone, and {} cannot be opened: {error}",
            kvm_device().display()
        ),
        hint: "`mvmctl doctor` says how to get KVM; --backend qemu can do without".into(),
    })
}

/// A VMM that is told what to do over an API.
#[derive(Debug)]
pub(crate) struct Vmm {
    /// What people call it.
    pub(crate) name: &'static str,
    /// What all paths of its API begin with.
    pub(crate) root: &'static str,
}

impl Vmm {
    /// The one that runs in a VM's folder.
    pub(crate) fn in_folder<'a>(
        &self,
        folder: &'a VmFolder,
        processes: Option<&'a VmProcesses>,
        deadline: Deadline<'a>,
    ) -> VmmApi<'a> {
        VmmApi {
            name: self.name,
            root: self.root,
            api: Api {
                folder: folder.path(),
                socket: API_SOCKET,
            },
            processes,
            deadline,
        }
    }
}

/// One VMM that is told what to do. Paths are below the root of its API; what is being done stands
/// in an error behind "cannot".
#[derive(Debug)]
pub(crate) struct VmmApi<'a> {
    name: &'static str,
    root: &'static str,
    api: Api<'a>,
    /// Those that were started, to be looked at when something fails.
    pub(crate) processes: Option<&'a VmProcesses>,
    deadline: Deadline<'a>,
}

impl VmmApi<'_> {
    /// What is at `path`, once it answers; there must be something there from its start on.
    pub(crate) fn wait_until_up<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        let doing = "say who it is";
        let Some(processes) = self.processes else {
            return self.get(path, doing);
        };
        let awaited = format!("{}'s API socket", self.name);
        processes.wait_for(&awaited, self.deadline, || {
            match self.try_to_get(path, self.deadline.step(ANSWER)) {
                Ok(answer) => Ok(Some(answer)),
                // It has not made its socket yet; or has ended, which is looked at next.
                Err(HttpError::NotListening | HttpError::Closed) => Ok(None),
                Err(error) => Err(self.failed(doing)(error)),
            }
        })
    }

    /// Reads something that is told at once.
    pub(crate) fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        doing: &'static str,
    ) -> Result<T, Error> {
        self.try_to_get(path, self.deadline.step(ANSWER))
            .map_err(self.failed(doing))
    }

    /// Reads something that may have to wait for what was asked before, with all the time that there
    /// is.
    pub(crate) fn try_to_get_at_length<T: DeserializeOwned>(
        &self,
        path: &str,
    ) -> Result<T, HttpError> {
        self.try_to_get(path, self.deadline)
    }

    fn try_to_get<T: DeserializeOwned>(
        &self,
        path: &str,
        deadline: Deadline<'_>,
    ) -> Result<T, HttpError> {
        self.api.get(&self.path(path), deadline)
    }

    /// An action that takes nothing.
    pub(crate) fn act(&self, path: &str, doing: &'static str) -> Result<(), Error> {
        self.try_to_act(path).map_err(self.failed(doing))
    }

    pub(crate) fn try_to_act(&self, path: &str) -> Result<(), HttpError> {
        let deadline = self.deadline.step(ANSWER);
        self.api.act(&self.path(path), deadline)
    }

    pub(crate) fn put(
        &self,
        path: &str,
        request: &impl Serialize,
        doing: &'static str,
    ) -> Result<(), Error> {
        let deadline = self.deadline.step(ANSWER);
        self.ask(Method::Put, path, request, doing, deadline)
    }

    pub(crate) fn try_to_put(&self, path: &str, request: &impl Serialize) -> Result<(), HttpError> {
        let deadline = self.deadline.step(ANSWER);
        self.api
            .ask(Method::Put, &self.path(path), request, deadline)
    }

    /// What moves the guest's memory may take all the time that there is.
    pub(crate) fn put_at_length(
        &self,
        path: &str,
        request: &impl Serialize,
        doing: &'static str,
    ) -> Result<(), Error> {
        self.ask(Method::Put, path, request, doing, self.deadline)
    }

    pub(crate) fn patch(
        &self,
        path: &str,
        request: &impl Serialize,
        doing: &'static str,
    ) -> Result<(), Error> {
        let deadline = self.deadline.step(ANSWER);
        self.ask(Method::Patch, path, request, doing, deadline)
    }

    fn ask(
        &self,
        method: Method,
        path: &str,
        request: &impl Serialize,
        doing: &'static str,
        deadline: Deadline<'_>,
    ) -> Result<(), Error> {
        let asked = self.api.ask(method, &self.path(path), request, deadline);
        asked.map_err(self.failed(doing))
    }

    fn path(&self, path: &str) -> String {
        format!("{}{path}", self.root)
    }

    /// What was asked of it could not be done. With the processes that were started it is told, too,
    /// whether it ended over it.
    pub(crate) fn failed(&self, doing: &'static str) -> impl FnOnce(HttpError) -> Error {
        let (vmm, processes, deadline) = (self.name, self.processes, self.deadline);
        move |source| {
            if let HttpError::Interrupted = source {
                return Error::Interrupted;
            }
            // It was its own step's time that passed, then.
            let hangs = !deadline.left().is_zero();
            let ended = processes.and_then(ended);
            Error::Api {
                vmm,
                doing,
                source,
                standing: match (processes, &ended) {
                    (None, _) => Standing::Started,
                    (Some(_), None) => Standing::Starting,
                    (Some(_), Some(_)) => Standing::EndedAtStart,
                },
                hangs,
                ended,
                logs: processes.map_or_else(Logs::default, VmProcesses::logs),
            }
        }
    }
}

/// How the VMM ended, if it does so right after its answer.
fn ended(processes: &VmProcesses) -> Option<String> {
    match processes.ended_within(LAST_GASP) {
        Some(Error::EndedEarly { how, .. }) => Some(how),
        _ => None,
    }
}
