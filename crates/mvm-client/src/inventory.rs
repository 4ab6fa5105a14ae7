//! Which VMs there are on this host, from folders and files alone: nothing is dialled here.

use crate::settings::{Pattern, Settings, xdg};
use crate::{Endpoint, Error};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// The longest name of a VM in bytes.
const MAX_NAME: usize = 64;

/// The largest `vm.json` that is read, in bytes.
const MAX_RECORD: u64 = 1 << 20;

/// The VMs of `$MVM_HOME`, and those that `mvmctl.toml` adds.
#[derive(Debug, Clone)]
pub struct Inventory {
    home: PathBuf,
    settings: Settings,
}

/// A VM, and whether and where its agent may be dialled.
#[derive(Debug, Clone)]
pub struct Vm {
    /// Its name, or the address by which it was asked for.
    pub name: String,
    /// What runs it, as its record says: `firecracker`, `qemu`, `local`…
    pub backend: Option<String>,
    /// Whether it runs.
    pub state: State,
    endpoint: Endpoint,
}

/// What was found where VMs are looked for.
#[derive(Debug)]
pub struct Listing {
    /// The VMs in name order.
    pub vms: Vec<Vm>,
    /// Where there may be more.
    pub unseen: Vec<Unseen>,
}

/// A folder that could not be looked at.
#[derive(Debug)]
pub struct Unseen {
    /// The folder.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
    /// Whether a pattern of the settings leads there. Otherwise it is `$MVM_HOME/vms`.
    pub is_discovered: bool,
}

impl fmt::Display for Unseen {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let path = self.path.display();
        write!(f, "cannot look for VMs in {path}: {}", self.source)
    }
}

impl Unseen {
    /// What to do next.
    pub fn hint(&self) -> &'static str {
        if self.is_discovered {
            "become a user who may read the folder, or take it out of `discover` in mvmctl.toml"
        } else {
            "set MVM_HOME to the folder in which the VMs are kept, or become a user who may read it"
        }
    }
}

/// A VM's state as its record has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Its record says so, or it has none.
    Running,
    /// It was snapshotted and its VMM has ended.
    Asleep,
    /// It was stopped.
    Stopped,
    /// Something that this version does not know.
    Other(String),
    /// This user may not read its record.
    Closed {
        /// The record's path.
        path: PathBuf,
    },
    /// Its record cannot be read.
    Unreadable {
        /// The record's path.
        path: PathBuf,
        /// Why.
        problem: String,
    },
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Asleep => "asleep",
            Self::Stopped => "stopped",
            Self::Other(state) => state,
            Self::Closed { .. } | Self::Unreadable { .. } => "unknown",
        })
    }
}

impl Vm {
    /// Where to dial it.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`], or [`Error::BadRecord`] or [`Error::PermissionDenied`] if its record does
    /// not tell whether it is: a CONNECT to a paused VM can wedge its vsock backend for good.
    pub fn endpoint(&self) -> Result<&Endpoint, Error> {
        match &self.state {
            State::Running => Ok(&self.endpoint),
            State::Closed { path } => Err(Error::PermissionDenied { path: path.clone() }),
            State::Unreadable { path, problem } => Err(Error::BadRecord {
                path: path.clone(),
                problem: problem.clone(),
            }),
            state => Err(Error::NotRunning {
                state: state.to_string(),
            }),
        }
    }

    /// One that is known by its endpoint alone.
    fn running(name: &str, endpoint: Endpoint) -> Self {
        Self {
            name: name.to_owned(),
            backend: None,
            state: State::Running,
            endpoint,
        }
    }
}

/// What is read of `vm.json`; whoever starts the VM writes more into it.
#[derive(Debug, Default, Deserialize)]
struct Record {
    backend: Option<String>,
    state: Option<String>,
    /// Where the agent is reached, if not at `v.sock`: `vsock:CID`, or `unix:PATH`.
    address: Option<String>,
    /// The agent's port in the guest, if not 52.
    port: Option<u32>,
}

impl Inventory {
    /// As the environment says: VMs in `$MVM_HOME`, which is by default `/var/lib/mvm` for root and
    /// `$XDG_DATA_HOME/mvm` for others; settings from `config`, else `$MVM_CONFIG`, else
    /// `$XDG_CONFIG_HOME/mvm/mvmctl.toml` or `/etc/mvm/mvmctl.toml`.
    pub fn from_env(config: Option<&Path>) -> Result<Self, Error> {
        let env = |name: &str| std::env::var_os(name);
        Ok(Self {
            home: home(env, rustix::process::geteuid().is_root())?,
            settings: Settings::load(config, env)?,
        })
    }

    /// The same without `mvmctl.toml`, for when that cannot be read: the VMs in `$MVM_HOME` alone.
    pub fn without_settings() -> Result<Self, Error> {
        let env = |name: &str| std::env::var_os(name);
        home(env, rustix::process::geteuid().is_root()).map(Self::at)
    }

    /// The VMs in `home` alone.
    pub fn at(home: impl Into<PathBuf>) -> Self {
        Self {
            home: home.into(),
            settings: Settings::default(),
        }
    }

    /// `$MVM_HOME`.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// The folder of a VM with that name, whether it is there or not.
    pub fn folder(&self, name: &str) -> PathBuf {
        self.home.join("vms").join(name)
    }

    /// All VMs in name order. Of two with one name that in `$MVM_HOME` stands, or the one that the
    /// first pattern of the settings found.
    ///
    /// # Errors
    ///
    /// [`Error::NoInventory`] if there is no folder that could be looked at.
    pub fn list(&self) -> Result<Listing, Error> {
        let mut vms = BTreeMap::new();
        let mut unseen = Vec::new();
        let mut names = Vec::new();
        if let Err(source) = self.own_names(&mut names) {
            unseen.push(self.own_unseen(source));
        }
        for name in names {
            // One that has gone meanwhile is none.
            if let Ok(Some(vm)) = self.own(&name) {
                vms.insert(name, vm);
            }
        }
        for pattern in &self.settings.discover {
            let mut names = Vec::new();
            if let Err(source) = pattern.names(&mut names) {
                unseen.push(discovered_unseen(pattern, source));
            }
            for name in names.into_iter().filter(|name| is_name(name)) {
                let endpoint = Endpoint::unix(pattern.path_of(&name));
                vms.entry(name.clone())
                    .or_insert_with(|| Vm::running(&name, endpoint));
            }
        }
        let none_seen = vms.is_empty() && unseen.len() > self.settings.discover.len();
        if none_seen {
            let Unseen { path, source, .. } = unseen.swap_remove(0);
            return Err(Error::NoInventory { path, source });
        }
        Ok(Listing {
            vms: vms.into_values().collect(),
            unseen,
        })
    }

    fn own_unseen(&self, source: io::Error) -> Unseen {
        Unseen {
            path: self.home.join("vms"),
            source,
            is_discovered: false,
        }
    }

    /// The VM of that name, or at that address. An address is not looked at: whether there is a VM
    /// shows when it is dialled.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchVm`] with the nearest name that there is, and the folders in which it may be
    /// after all.
    pub fn find(&self, name: &str) -> Result<Vm, Error> {
        if let Some(endpoint) = Endpoint::parse(name) {
            return Ok(Vm::running(name, endpoint));
        }
        if !is_name(name) {
            return Err(Error::BadName {
                name: name.to_owned(),
            });
        }
        let mut unseen = Vec::new();
        match self.own(name) {
            Ok(Some(vm)) => return Ok(vm),
            Ok(None) => {}
            Err(source) => unseen.push(self.own_unseen(source)),
        }
        for pattern in &self.settings.discover {
            match pattern.has(name) {
                Ok(true) => {
                    return Ok(Vm::running(name, Endpoint::unix(pattern.path_of(name))));
                }
                Ok(false) => {}
                Err(source) => unseen.push(discovered_unseen(pattern, source)),
            }
        }
        let vms = self.list()?.vms;
        if let Some(vm) = vms.iter().find(|vm| vm.name == name) {
            return Ok(vm.clone());
        }
        Err(Error::NoSuchVm {
            name: name.to_owned(),
            home: self.home.clone(),
            nearest: nearest(name, vms.iter().map(|vm| vm.name.as_str())).map(str::to_owned),
            unseen,
        })
    }

    /// The names of folders in `$MVM_HOME/vms`. Where that is not there, no VM was started yet.
    fn own_names(&self, names: &mut Vec<String>) -> io::Result<()> {
        let entries = match std::fs::read_dir(self.home.join("vms")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            match entry?.file_name().into_string() {
                Ok(name) if is_name(&name) => names.push(name),
                _ => {}
            }
        }
        Ok(())
    }

    /// The VM in the folder of that name, if it is one: there is a socket or a record in it. An error
    /// if even that there is such a folder cannot be told.
    fn own(&self, name: &str) -> io::Result<Option<Vm>> {
        let folder = self.folder(name);
        let socket = folder.join("v.sock");
        let path = folder.join("vm.json");
        let (record, unread) = match read_record(&path) {
            Ok(Some(record)) => (record, None),
            Ok(None) if socket.symlink_metadata().is_ok() => (Record::default(), None),
            Ok(None) => return Ok(None),
            Err(error) => {
                folder.symlink_metadata()?;
                (Record::default(), Some(unreadable(&path, &error)))
            }
        };
        let address = record.address.as_deref();
        let (endpoint, bad_address) = match (address, address.map(Endpoint::parse)) {
            (_, Some(Some(endpoint))) => (endpoint, None),
            (Some(text), _) => (
                Endpoint::unix(socket),
                Some(State::Unreadable {
                    path,
                    problem: format!("`address` is neither unix:PATH nor vsock:CID: `{text}`"),
                }),
            ),
            (None, _) => (Endpoint::unix(socket), None),
        };
        let endpoint = match record.port {
            Some(port) => endpoint.with_port(port),
            None => endpoint,
        };
        let state = match (unread.or(bad_address), record.state.as_deref()) {
            (Some(unread), _) => unread,
            (None, None | Some("running")) => State::Running,
            (None, Some("asleep")) => State::Asleep,
            (None, Some("stopped")) => State::Stopped,
            (None, Some(other)) => State::Other(other.to_owned()),
        };
        Ok(Some(Vm {
            name: name.to_owned(),
            backend: record.backend,
            state,
            endpoint,
        }))
    }
}

fn discovered_unseen(pattern: &Pattern, source: io::Error) -> Unseen {
    Unseen {
        path: pattern.folder().to_owned(),
        source,
        is_discovered: true,
    }
}

/// The state of a VM whose record cannot be read.
fn unreadable(path: &Path, error: &io::Error) -> State {
    let path = path.to_owned();
    match error.kind() {
        io::ErrorKind::PermissionDenied => State::Closed { path },
        _ => State::Unreadable {
            path,
            problem: error.to_string(),
        },
    }
}

/// Reads a record leniently: fields that are not ours are passed over. `None` if there is no file.
fn read_record(path: &Path) -> io::Result<Option<Record>> {
    let file = match std::fs::File::open(path) {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(None);
        }
        file => file?,
    };
    let mut bytes = Vec::new();
    file.take(MAX_RECORD).read_to_end(&mut bytes)?;
    Ok(Some(serde_json::from_slice(&bytes)?))
}

/// Whether it is a name that a VM can have: `[A-Za-z0-9._-]{1,64}`, and no folder's way to itself
/// or its parent.
pub fn is_name(text: &str) -> bool {
    (1..=MAX_NAME).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        && text != "."
        && text != ".."
}

/// The name that was probably meant: at most a third of it mistyped.
pub fn nearest<'a>(typed: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    names
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(typed, name), name))
        .filter(|(distance, name)| *distance <= (typed.len().max(name.len()) / 3).max(1))
        .min()
        .map(|(_, name)| name)
}

fn home(env: impl Fn(&str) -> Option<OsString>, is_root: bool) -> Result<PathBuf, Error> {
    if let Some(home) = env("MVM_HOME").filter(|home| !home.is_empty()) {
        // Programs are started with it in folders of their own.
        return std::path::absolute(&home).map_err(|source| Error::NoInventory {
            path: home.into(),
            source,
        });
    }
    if is_root {
        return Ok("/var/lib/mvm".into());
    }
    xdg(env, "XDG_DATA_HOME", ".local/share")
        .map(|folder| folder.join("mvm"))
        .ok_or_else(|| Error::NoInventory {
            path: "$MVM_HOME".into(),
            source: io::Error::other("neither MVM_HOME, XDG_DATA_HOME nor HOME is set"),
        })
}

#[cfg(test)]
mod tests;
