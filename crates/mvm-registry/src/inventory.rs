//! Which VMs there are on this host, and what each is now. From folders, files and processes; the VMM
//! of one that runs is asked where that is said. No agent is dialled here.

mod candidates;

use crate::ask::AskVmm;
use crate::ending::{self, Ending};
use crate::files::read_tail;
use crate::home::home;
use crate::judge::{Main, now};
use crate::labels::{Labels, Selector, pool_by_name};
use crate::name::nearest;
use crate::process::{Alive, Role};
use crate::record::{Foreign, Found, Record};
use crate::settings::{Pattern, Settings};
use crate::state::{Pause, Untold, VmState};
use crate::unreadable_dir::UnreadableDir;
use crate::{Endpoint, Error, Home, VmFolder, VmName};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use candidates::{Candidate, Candidates};

/// How long the last that a guest has said may take to be in its console.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// How long a VMM may take to end that hears nobody any more.
const VMM_ENDS: Duration = Duration::from_millis(500);

/// How often a VM is looked at whose record changes meanwhile.
const LOOKS: usize = 3;

/// The VMs of `$MVM_HOME`, and those that `mvmctl.toml` adds.
#[derive(Debug, Clone)]
pub struct Inventory {
    home: Home,
    settings: Settings,
    vmms: Option<Arc<dyn AskVmm>>,
}

/// A VM, what it is, and whether and where its agent may be dialled.
#[derive(Debug, Clone)]
pub struct Vm {
    /// Its name, or the address by which it was asked for.
    pub name: String,
    /// What runs it, as its record says: `firecracker`, `qemu`, `local`…
    pub backend: Option<String>,
    /// What it is.
    pub state: VmState,
    /// By which it is grouped and chosen.
    pub labels: Labels,
    /// Whether the fleet is to leave it alone.
    pub pinned: bool,
    endpoint: Endpoint,
    /// Where it is kept, if mvmctl started it.
    own: Option<Box<Own>>,
}

/// How a VM that nobody stopped has ended.
fn ending_of(record: &Record, folder: &VmFolder, alive: &[Alive]) -> Result<Ending, Error> {
    let failed = Error::io("read the boot id of", Path::new("/proc"));
    if record.is_of_another_boot().map_err(failed)? {
        return Ok(Ending::HostRestarted);
    }
    // What the guest said last may be on its way.
    for keeper in alive.iter().filter(|one| one.role == Role::Console) {
        let ended = keeper.wait(LAST_WORDS);
        ended.map_err(Error::io("wait for a process of", folder.path()))?;
    }
    // One that cannot be read says nothing.
    let tail = |name: &str| {
        let bytes = read_tail(&folder.file(name), ending::TAIL).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    Ok(ending::of_logs(&tail("console.log"), &tail("vmm.log")))
}

/// A VM that mvmctl started.
#[derive(Debug, Clone)]
struct Own {
    record: Record,
    folder: VmFolder,
    /// The process by which its guest is reached has ended, and the VM has not.
    vsock_ended: bool,
    /// The process that keeps its guest's console has.
    console_ended: bool,
}

/// What was found where VMs are looked for.
#[derive(Debug)]
pub struct Listing {
    /// The VMs in name order.
    pub vms: Vec<Vm>,
    /// Where there may be more.
    pub unreadable: Vec<UnreadableDir>,
}

impl Vm {
    /// Where to dial it. That it is not paused by something else is known only of one that was
    /// [asked](Inventory::asked).
    ///
    /// # Errors
    ///
    /// [`Error::Ended`], [`Error::NotRunning`], [`Error::VsockEnded`]; and if it cannot be told whether
    /// it runs, [`Error::BadRecord`], [`Error::PermissionDenied`] or [`Error::SilentVmm`]. A CONNECT to
    /// a paused VM can wedge its vsock backend for good.
    pub fn endpoint(&self) -> Result<&Endpoint, Error> {
        match &self.state {
            VmState::Running if self.own.as_ref().is_some_and(|own| own.vsock_ended) => {
                Err(Error::VsockEnded)
            }
            VmState::Running | VmState::NotOurs { state: None } => Ok(&self.endpoint),
            VmState::Ended(ending) => Err(Error::Ended(ending.clone())),
            VmState::Unknown(why) => Err(match why.clone() {
                Untold::Forbidden { path } => Error::PermissionDenied { path },
                Untold::Unreadable { path, problem } => Error::BadRecord { path, problem },
                Untold::NotTrusted { path, problem } => Error::NotTrusted { path, problem },
                Untold::SilentVmm { problem } => Error::SilentVmm { problem },
            }),
            state => Err(Error::NotRunning {
                state: state.clone(),
            }),
        }
    }

    /// Its address, for those who are shown it. It may not be one to dial.
    pub fn address(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Its record, if mvmctl started it.
    pub fn record(&self) -> Option<&Record> {
        self.own.as_ref().map(|own| &own.record)
    }

    /// Whether what its guest prints is lost: the process that keeps its console has ended.
    pub fn loses_console(&self) -> bool {
        self.own.as_ref().is_some_and(|own| own.console_ended)
    }

    /// Its folder, if mvmctl started it.
    pub fn folder(&self) -> Option<&VmFolder> {
        self.own.as_ref().map(|own| &own.folder)
    }

    /// The group to which it belongs: its label `pool`, else its name up to the last `-` and digits.
    pub fn pool(&self) -> &str {
        let label = self.labels.get(crate::labels::POOL);
        label.unwrap_or_else(|| pool_by_name(&self.name))
    }

    /// Whether all of these mean it.
    pub fn is_meant_by(&self, selectors: &[Selector]) -> bool {
        let mut all = selectors.iter();
        all.all(|selector| selector.matches(&self.labels, self.pool()))
    }

    /// One that is known by its endpoint alone.
    fn stranger(name: &str, endpoint: Endpoint) -> Self {
        Self {
            name: name.to_owned(),
            backend: None,
            state: VmState::NotOurs { state: None },
            labels: Labels::default(),
            pinned: false,
            endpoint,
            own: None,
        }
    }

    /// One of which this alone is known.
    fn unknown(folder: &VmFolder, why: Untold) -> Self {
        Self {
            state: VmState::Unknown(why),
            ..Self::stranger(folder.name().as_str(), Endpoint::unix(folder.socket()))
        }
    }

    /// One whose record something else has written.
    fn foreign(folder: &VmFolder, mut record: Foreign) -> Self {
        let address = record.address.as_deref();
        let endpoint = match (address, address.map(Endpoint::parse)) {
            (_, Some(Some(endpoint))) => endpoint,
            (Some(text), _) => {
                let why = Untold::Unreadable {
                    path: folder.file("vm.json"),
                    problem: format!("`address` is neither unix:PATH nor vsock:CID: `{text}`"),
                };
                return Self {
                    backend: record.backend,
                    ..Self::unknown(folder, why)
                };
            }
            (None, _) => Endpoint::unix(folder.socket()),
        };
        let endpoint = match record.port {
            Some(port) => endpoint.with_port(port),
            None => endpoint,
        };
        Self {
            labels: record.labels(),
            backend: record.backend,
            state: VmState::NotOurs {
                state: record.state.filter(|state| state != "running"),
            },
            pinned: record.pinned,
            ..Self::stranger(folder.name().as_str(), endpoint)
        }
    }

    /// One that mvmctl started.
    fn own(folder: &VmFolder, record: Record) -> Result<Self, Error> {
        let alive = record.alive()?;
        let failed = || Error::io("look at a process of", folder.path());
        let main = match Alive::main(&alive) {
            None => Main::Gone,
            Some(main) if main.is_stopped().map_err(failed())? => Main::Stopped,
            Some(_) => Main::Runs,
        };
        let state = now(
            &record,
            main,
            || {
                folder
                    .is_locked()
                    .map_err(Error::io("look at the lock of", folder.path()))
            },
            || ending_of(&record, folder, &alive),
        )?;
        let has_ended = |role| {
            let recorded = record.processes.iter().any(|one| one.role == role);
            recorded && !alive.iter().any(|alive| alive.role == role)
        };
        let (vsock_ended, console_ended) = (has_ended(Role::Vsock), has_ended(Role::Console));
        Ok(Self {
            backend: Some(record.backend.clone()),
            state,
            labels: record.labels.clone(),
            pinned: record.pinned,
            endpoint: Endpoint::unix(folder.socket()).with_port(record.port),
            own: Some(Box::new(Own {
                record,
                folder: folder.clone(),
                vsock_ended,
                console_ended,
            })),
            ..Self::stranger(folder.name().as_str(), Endpoint::unix(folder.socket()))
        })
    }
}

impl VmFolder {
    /// What the VM in the folder is now, as far as files and processes say: its VMM is not asked.
    /// `None` if there is neither a record nor a socket in it.
    pub fn vm(&self) -> Option<Vm> {
        let vm = match self.look() {
            Ok(Found::Nothing) => return None,
            Ok(Found::Socket) => {
                let endpoint = Endpoint::unix(self.socket());
                Ok(Vm::stranger(self.name().as_str(), endpoint))
            }
            Ok(Found::Foreign(record)) => Ok(Vm::foreign(self, *record)),
            Ok(Found::Ours(record)) => self.own_vm(*record),
            Err(error) => Err(error),
        };
        Some(vm.unwrap_or_else(|error| {
            let why = match error {
                Error::PermissionDenied { path } => Untold::Forbidden { path },
                Error::BadRecord { path, problem } => Untold::Unreadable { path, problem },
                Error::NotTrusted { path, problem } => Untold::NotTrusted { path, problem },
                error => Untold::Unreadable {
                    path: self.file("vm.json"),
                    problem: error.to_string(),
                },
            };
            Vm::unknown(self, why)
        }))
    }

    /// Processes and locks are looked at after the record was read. Where they do not go with it, it
    /// may be that both have changed in between, in order: then the record is another one by now.
    fn own_vm(&self, mut record: Record) -> Result<Vm, Error> {
        for _ in 0..LOOKS {
            let vm = Vm::own(self, record.clone())?;
            let is_sure = !matches!(
                vm.state,
                VmState::Ended(_)
                    | VmState::StartBrokenOff
                    | VmState::Paused(Pause::BrokenSnapshot)
            );
            if is_sure {
                return Ok(vm);
            }
            match self.look() {
                Ok(Found::Ours(now)) if *now != record => record = *now,
                _ => return Ok(vm),
            }
        }
        Vm::own(self, record)
    }
}

impl Inventory {
    /// As the environment says: VMs in `$MVM_HOME`, which is by default `/var/lib/mvm` for root and
    /// `$XDG_DATA_HOME/mvm` for others; settings from `config`, else `$MVM_CONFIG`, else
    /// `$XDG_CONFIG_HOME/mvm/mvmctl.toml` or `/etc/mvm/mvmctl.toml`.
    ///
    /// # Errors
    ///
    /// [`Error::BadSettings`], [`Error::NoInventory`].
    pub fn from_env(config: Option<&Path>) -> Result<Self, Error> {
        let env = |name: &str| std::env::var_os(name);
        Ok(Self {
            settings: Settings::load(config, env)?,
            ..Self::without_settings()?
        })
    }

    /// The same without `mvmctl.toml`, for when that cannot be read: the VMs in `$MVM_HOME` alone.
    ///
    /// # Errors
    ///
    /// [`Error::NoInventory`].
    pub fn without_settings() -> Result<Self, Error> {
        let env = |name: &str| std::env::var_os(name);
        home(env, rustix::process::geteuid().is_root()).map(Self::at)
    }

    /// The VMs in `home` alone.
    pub fn at(home: impl Into<PathBuf>) -> Self {
        Self {
            home: Home::at(home),
            settings: Settings::default(),
            vmms: None,
        }
    }

    /// The same, where VMMs can be [asked](Self::asked).
    #[must_use]
    pub fn with_vmms(self, vmms: Arc<dyn AskVmm>) -> Self {
        Self {
            vmms: Some(vmms),
            ..self
        }
    }

    /// `$MVM_HOME`.
    pub fn home(&self) -> &Home {
        &self.home
    }

    fn own_unreadable(&self, source: io::Error) -> UnreadableDir {
        UnreadableDir {
            path: self.home.vms(),
            source,
            is_discovered: false,
        }
    }

    /// The VM of that name, or at that address, as far as files and processes say. An address is not
    /// looked at: whether there is a VM shows when it is dialled.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchVm`] with the nearest name that there is, and the folders in which it may be
    /// after all.
    pub fn find(&self, name: &str) -> Result<Vm, Error> {
        if let Some(endpoint) = Endpoint::parse(name) {
            return Ok(Vm::stranger(name, endpoint));
        }
        let parsed = VmName::new(name).map_err(|_| Error::NeitherNameNorAddress {
            name: name.to_owned(),
        })?;
        let mut unreadable = Vec::new();
        match self.own(&parsed) {
            Ok(Some(vm)) => return Ok(vm),
            Ok(None) => {}
            Err(source) => unreadable.push(self.own_unreadable(source)),
        }
        for pattern in &self.settings.discover {
            match pattern.has(name) {
                Ok(true) => {
                    return Ok(Vm::stranger(name, Endpoint::unix(pattern.path_of(name))));
                }
                Ok(false) => {}
                Err(source) => unreadable.push(discovered_unreadable(pattern, source)),
            }
        }
        let vms = self.list()?.vms;
        if let Some(vm) = vms.iter().find(|vm| vm.name == name) {
            return Ok(vm.clone());
        }
        Err(Error::NoSuchVm {
            name: name.to_owned(),
            vms: self.home.vms(),
            nearest: nearest(name, vms.iter().map(|vm| vm.name.as_str())).map(str::to_owned),
            unreadable,
        })
    }

    /// The same VM, its VMM asked whether it stands still, if it runs and mvmctl started it. It blocks
    /// for at most that long.
    pub fn ask(&self, vm: Vm, at_most: Duration) -> Vm {
        let (VmState::Running, Some(own), Some(vmms)) = (&vm.state, &vm.own, &self.vmms) else {
            return vm;
        };
        let asked = Instant::now();
        let state = match vmms.is_paused(&own.record, &own.folder, at_most) {
            Ok(false) => return vm,
            Ok(true) => VmState::Paused(Pause::Other),
            Err(problem) => {
                let left = at_most.saturating_sub(asked.elapsed());
                // If that cannot be seen, then what is looked at next cannot either, and says so.
                let _ = own.record.has_vmm_ended(left.min(VMM_ENDS));
                match own.folder.vm() {
                    // It did not answer since it has ended meanwhile, or something is being done to it.
                    Some(now) if now.state != VmState::Running => return now,
                    _ => VmState::Unknown(Untold::SilentVmm { problem }),
                }
            }
        };
        Vm { state, ..vm }
    }

    /// The same for those who may not block: it is done on a thread of its own.
    pub async fn asked(&self, vm: Vm, at_most: Duration) -> Vm {
        if vm.state != VmState::Running || vm.own.is_none() || self.vmms.is_none() {
            return vm;
        }
        let inventory = self.clone();
        match tokio::task::spawn_blocking(move || inventory.ask(vm, at_most)).await {
            Ok(vm) => vm,
            // It was not cancelled, so it panicked.
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }

    /// What the VM of that name, or at that address, is now: [found](Self::find), and its VMM
    /// [asked](Self::asked). To be called before each dial.
    ///
    /// # Errors
    ///
    /// Those of [`Inventory::find`].
    pub async fn now(&self, name: &str, at_most: Duration) -> Result<Vm, Error> {
        let vm = self.find(name)?;
        Ok(self.asked(vm, at_most).await)
    }

    /// The names of folders in `$MVM_HOME/vms`. Where that is not there, no VM was started yet.
    fn own_names(&self, names: &mut Vec<VmName>) -> io::Result<()> {
        let entries = match std::fs::read_dir(self.home.vms()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let name = entry?.file_name();
            names.extend(name.to_str().and_then(|name| VmName::new(name).ok()));
        }
        Ok(())
    }

    /// The VM in the folder of that name, if it is one: there is a socket or a record in it. An error
    /// if even that there is such a folder cannot be told.
    fn own(&self, name: &VmName) -> io::Result<Option<Vm>> {
        let folder = self.home.vm(name);
        let vm = folder.vm();
        if let Some(VmState::Unknown(_)) = vm.as_ref().map(|vm| &vm.state) {
            folder.path().symlink_metadata()?;
        }
        Ok(vm)
    }
}

fn discovered_unreadable(pattern: &Pattern, source: io::Error) -> UnreadableDir {
    UnreadableDir {
        path: pattern.folder().to_owned(),
        source,
        is_discovered: true,
    }
}

#[cfg(test)]
mod tests;
