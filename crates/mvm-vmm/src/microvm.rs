//! What Firecracker and Cloud Hypervisor have in common: one process a VM, which owns `v.sock`, is
//! told what to do over an API socket, and runs guests by KVM alone.

use crate::driver::Launch;
use crate::error::{Error, Logs};
use crate::http::{Api, HttpError};
use crate::image::Image;
use crate::launch::{Crew, Patience};
use crate::record::VmFolder;
use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The one process of the VM.
pub(crate) const ROLE: &str = "vmm";

/// The API socket in the VM's folder.
pub(crate) const API_SOCKET: &str = "api.sock";

/// The hybrid vsock socket, relative to the VM's folder, in which the VMM runs.
pub(crate) const VSOCK_SOCKET: &str = "v.sock";

/// The guest's own vsock address. Each VM has a vsock device of its own, so that it need not differ
/// between them.
pub(crate) const GUEST_CID: u32 = 3;

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
pub(crate) fn check_kvm(backend: &'static str) -> Result<(), Error> {
    let device = kvm_device();
    match File::options().read(true).write(true).open(&device) {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::Unsupported {
            backend,
            reason: format!(
                "it runs guests by KVM alone, and {} cannot be opened: {error}",
                device.display()
            ),
            hint: "`mvmctl doctor` says how to get KVM; --backend qemu can do without".into(),
        }),
    }
}

/// The image, without which there is no guest.
pub(crate) fn image<'a>(launch: &Launch<'a>, backend: &'static str) -> Result<&'a Image, Error> {
    launch.image.ok_or_else(|| Error::Unsupported {
        backend,
        reason: "no image was given".into(),
        hint: "give --image DIR; `mvmctl image build --out DIR` makes one".into(),
    })
}

/// A VMM, and how to speak of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Vmm<'a> {
    /// What people call it.
    pub(crate) name: &'static str,
    /// Its API.
    pub(crate) api: Api<'a>,
}

impl<'a> Vmm<'a> {
    pub(crate) fn of(name: &'static str, folder: &'a VmFolder) -> Self {
        let api = Api {
            folder: folder.path(),
            socket: API_SOCKET,
        };
        Self { name, api }
    }

    /// Waits until it answers, which it does by what `probe` asks of it.
    pub(crate) fn wait_until_up<T>(
        &self,
        crew: &Crew,
        patience: Patience<'_>,
        probe: impl Fn(Patience<'_>) -> Result<T, HttpError>,
    ) -> Result<T, Error> {
        let awaited = format!("{}'s API socket", self.name);
        crew.wait_for(&awaited, patience, || match probe(patience.step(ANSWER)) {
            Ok(answer) => Ok(Some(answer)),
            // It has not made its socket yet; or has ended, which is looked at next.
            Err(HttpError::NotListening | HttpError::Closed) => Ok(None),
            Err(error) => Err(self.failed(Some(crew), "say who it is", error)),
        })
    }

    /// What was asked of it could not be done. With the processes that were started it is told, too,
    /// whether it ended over it.
    pub(crate) fn failed(
        &self,
        crew: Option<&Crew>,
        doing: &'static str,
        source: HttpError,
    ) -> Error {
        if let HttpError::Interrupted = source {
            return Error::Interrupted;
        }
        let ended = crew.and_then(ended);
        Error::Api {
            vmm: self.name,
            doing,
            source,
            ended,
            logs: crew.map_or_else(Logs::default, Crew::logs),
        }
    }
}

/// How the VMM ended, if it does so right after its answer.
fn ended(crew: &Crew) -> Option<String> {
    let until = Instant::now() + LAST_GASP;
    loop {
        match crew.check_alive() {
            Err(Error::EndedEarly { how, .. }) => return Some(how),
            Err(_) => return None,
            Ok(()) if Instant::now() >= until => return None,
            Ok(()) => crew.pause(Duration::from_millis(20)).ok()?,
        }
    }
}
