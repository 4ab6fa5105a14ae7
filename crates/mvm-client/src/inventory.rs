//! Which VMs there are on this host, from folders and files alone: nothing is dialled here.

use crate::settings::{Settings, may_exist, xdg};
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
            Self::Unreadable { .. } => "unknown",
        })
    }
}

impl Vm {
    /// Where to dial it.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`] or [`Error::BadRecord`] if it must not be dialled: a CONNECT to a
    /// paused VM can wedge its vsock backend for good.
    pub fn endpoint(&self) -> Result<&Endpoint, Error> {
        match &self.state {
            State::Running => Ok(&self.endpoint),
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
    pub fn list(&self) -> Result<Vec<Vm>, Error> {
        let mut vms = BTreeMap::new();
        for name in self.own_names()? {
            if let Some(vm) = self.own(&name) {
                vms.insert(name, vm);
            }
        }
        for pattern in &self.settings.discover {
            let names = pattern.names().map_err(|source| Error::NoInventory {
                path: pattern.path_of("*"),
                source,
            })?;
            for name in names.into_iter().filter(|name| is_name(name)) {
                let endpoint = Endpoint::unix(pattern.path_of(&name));
                vms.entry(name.clone())
                    .or_insert_with(|| Vm::running(&name, endpoint));
            }
        }
        Ok(vms.into_values().collect())
    }

    /// The VM of that name, or at that address. An address is not looked at: whether there is a VM
    /// shows when it is dialled.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchVm`] with the nearest name that there is.
    pub fn find(&self, name: &str) -> Result<Vm, Error> {
        if let Some(endpoint) = Endpoint::parse(name) {
            return Ok(Vm::running(name, endpoint));
        }
        if !is_name(name) {
            return Err(Error::BadName {
                name: name.to_owned(),
            });
        }
        if let Some(vm) = self.own(name) {
            return Ok(vm);
        }
        for pattern in &self.settings.discover {
            let path = pattern.path_of(name);
            if may_exist(&path) {
                return Ok(Vm::running(name, Endpoint::unix(path)));
            }
        }
        let vms = self.list()?;
        Err(Error::NoSuchVm {
            name: name.to_owned(),
            home: self.home.clone(),
            nearest: nearest(name, vms.iter().map(|vm| vm.name.as_str())).map(str::to_owned),
        })
    }

    /// The names of folders in `$MVM_HOME/vms`. Where that is not there, no VM was started yet.
    fn own_names(&self) -> Result<Vec<String>, Error> {
        let folder = self.home.join("vms");
        let read = || -> io::Result<Vec<String>> {
            let entries = match std::fs::read_dir(&folder) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                entries => entries?,
            };
            let mut names = Vec::new();
            for entry in entries {
                match entry?.file_name().into_string() {
                    Ok(name) if is_name(&name) => names.push(name),
                    _ => {}
                }
            }
            Ok(names)
        };
        read().map_err(|source| Error::NoInventory {
            path: folder.clone(),
            source,
        })
    }

    /// The VM in the folder of that name, if it is one: there is a socket or a record in it.
    fn own(&self, name: &str) -> Option<Vm> {
        let folder = self.folder(name);
        let socket = folder.join("v.sock");
        let path = folder.join("vm.json");
        let (record, unreadable) = match read_record(&path) {
            Ok(Some(record)) => (record, None),
            Ok(None) if socket.symlink_metadata().is_ok() => (Record::default(), None),
            Ok(None) => return None,
            Err(problem) => (Record::default(), Some(problem)),
        };
        let address = record.address.as_deref();
        let (endpoint, bad_address) = match (address, address.map(Endpoint::parse)) {
            (_, Some(Some(endpoint))) => (endpoint, None),
            (Some(text), _) => (
                Endpoint::unix(socket),
                Some(format!(
                    "`address` is neither unix:PATH nor vsock:CID: `{text}`"
                )),
            ),
            (None, _) => (Endpoint::unix(socket), None),
        };
        let endpoint = match record.port {
            Some(port) => endpoint.with_port(port),
            None => endpoint,
        };
        let state = match (unreadable.or(bad_address), record.state.as_deref()) {
            (Some(problem), _) => State::Unreadable { path, problem },
            (None, None | Some("running")) => State::Running,
            (None, Some("asleep")) => State::Asleep,
            (None, Some("stopped")) => State::Stopped,
            (None, Some(other)) => State::Other(other.to_owned()),
        };
        Some(Vm {
            name: name.to_owned(),
            backend: record.backend,
            state,
            endpoint,
        })
    }
}

/// Reads a record leniently: fields that are not ours are passed over. `None` if there is no file.
fn read_record(path: &Path) -> Result<Option<Record>, String> {
    let file = match std::fs::File::open(path) {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(None);
        }
        file => file.map_err(|error| error.to_string())?,
    };
    let mut bytes = Vec::new();
    file.take(MAX_RECORD)
        .read_to_end(&mut bytes)
        .map_err(|error| error.to_string())?;
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| error.to_string())
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
mod tests {
    use super::*;

    /// A home with folders of the given names; in each a `v.sock` if there is no record, else the
    /// record.
    fn home_with(vms: &[(&str, Option<&str>)]) -> (tempfile::TempDir, Inventory) {
        let home = tempfile::tempdir().unwrap();
        for (name, record) in vms {
            let folder = home.path().join("vms").join(name);
            std::fs::create_dir_all(&folder).unwrap();
            match record {
                Some(record) => std::fs::write(folder.join("vm.json"), record).unwrap(),
                None => std::fs::write(folder.join("v.sock"), "").unwrap(),
            }
        }
        let inventory = Inventory::at(home.path());
        (home, inventory)
    }

    #[test]
    fn a_vm_is_a_folder_with_a_socket_or_a_record() {
        let (home, inventory) = home_with(&[
            ("b", None),
            ("a", Some(r#"{"backend":"qemu","state":"running","pid":7}"#)),
            ("not a name", None),
        ]);
        std::fs::create_dir(home.path().join("vms/empty")).unwrap();
        std::fs::write(home.path().join("vms/file"), "").unwrap();
        let vms = inventory.list().unwrap();
        let names: Vec<_> = vms.iter().map(|vm| vm.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(vms[0].backend.as_deref(), Some("qemu"));
        let socket = home.path().join("vms/a/v.sock");
        assert_eq!(vms[0].endpoint().unwrap(), &Endpoint::unix(socket));
    }

    #[test]
    fn no_folder_means_no_vm() {
        assert!(Inventory::at("/nonexistent").list().unwrap().is_empty());
    }

    #[test]
    fn what_does_not_run_is_never_dialled() {
        let (_home, inventory) = home_with(&[
            ("asleep", Some(r#"{"state":"asleep"}"#)),
            ("stopped", Some(r#"{"state":"stopped"}"#)),
            ("newer", Some(r#"{"state":"hovering"}"#)),
            ("broken", Some("{")),
            ("mistyped", Some(r#"{"state":1}"#)),
            ("elsewhere", Some(r#"{"address":"nowhere"}"#)),
        ]);
        let error = |name| inventory.find(name).unwrap().endpoint().unwrap_err();
        for name in ["asleep", "stopped"] {
            assert!(
                matches!(error(name), Error::NotRunning { state, .. } if state == name),
                "{name}"
            );
        }
        assert!(matches!(error("newer"), Error::NotRunning { state, .. } if state == "hovering"));
        for name in ["broken", "mistyped", "elsewhere"] {
            assert!(matches!(error(name), Error::BadRecord { .. }), "{name}");
        }
    }

    #[test]
    fn a_record_can_say_where_the_agent_is() {
        let (_home, inventory) = home_with(&[("a", Some(r#"{"address":"vsock:7","port":1024}"#))]);
        let vm = inventory.find("a").unwrap();
        assert_eq!(
            vm.endpoint().unwrap(),
            &Endpoint::vsock(7).unwrap().with_port(1024)
        );
    }

    #[test]
    fn addresses_need_no_folder() {
        let vm = Inventory::at("/nonexistent")
            .find("unix:/run/v.sock")
            .unwrap();
        assert_eq!(vm.name, "unix:/run/v.sock");
        assert_eq!(vm.endpoint().unwrap(), &Endpoint::unix("/run/v.sock"));
    }

    #[test]
    fn a_typo_gets_the_nearest_name() {
        let (_home, inventory) = home_with(&[("web-1", None), ("web-2", None), ("db", None)]);
        let nearest = |typed| match inventory.find(typed) {
            Err(Error::NoSuchVm { nearest, .. }) => nearest,
            other => panic!("{other:?}"),
        };
        assert_eq!(nearest("wbe-1").as_deref(), Some("web-1"));
        assert_eq!(nearest("web2").as_deref(), Some("web-2"));
        assert_eq!(nearest("bd").as_deref(), Some("db"));
        assert_eq!(nearest("mail"), None);
    }

    #[test]
    fn names_do_not_lead_out_of_the_folder() {
        let inventory = Inventory::at("/nonexistent");
        for name in [
            ".",
            "..",
            "",
            "a/b",
            "/run/v.sock",
            "é",
            "a b",
            &"x".repeat(65),
            "vsock:1",
        ] {
            assert!(
                matches!(inventory.find(name), Err(Error::BadName { .. })),
                "{name}"
            );
        }
        assert!(is_name(&"x".repeat(64)) && is_name("...") && is_name("-"));
    }

    #[test]
    fn settings_add_vms_and_do_not_replace_any() {
        let (home, mut inventory) = home_with(&[("a", None)]);
        let jailer = home.path().join("jailer");
        for name in ["a", "c"] {
            std::fs::create_dir_all(jailer.join(name)).unwrap();
            std::fs::write(jailer.join(name).join("v.sock"), "").unwrap();
        }
        let config = home.path().join("mvmctl.toml");
        std::fs::write(
            &config,
            format!("discover = [\"{}/*/v.sock\"]", jailer.display()),
        )
        .unwrap();
        inventory.settings = Settings::load(Some(&config), |_| None).unwrap();
        let vms = inventory.list().unwrap();
        let ends: Vec<_> = vms
            .iter()
            .map(|vm| vm.endpoint().unwrap().clone())
            .collect();
        assert_eq!(
            ends,
            [
                Endpoint::unix(home.path().join("vms/a/v.sock")),
                Endpoint::unix(jailer.join("c/v.sock"))
            ]
        );
        assert_eq!(inventory.find("c").unwrap().endpoint().unwrap(), &ends[1]);
    }

    #[test]
    fn home_by_the_book() {
        let at = |variables: &[(&str, &str)], is_root| {
            home(
                |name| {
                    let value = variables.iter().find(|(variable, _)| *variable == name);
                    value.map(|(_, value)| (*value).into())
                },
                is_root,
            )
            .ok()
            .map(|path| path.display().to_string())
        };
        let user = [("HOME", "/home/u")];
        assert_eq!(at(&[("MVM_HOME", "/m")], true).as_deref(), Some("/m"));
        let here = std::env::current_dir().unwrap().join("m");
        assert_eq!(
            at(&[("MVM_HOME", "m")], true).as_deref(),
            here.to_str(),
            "absolute once it is read"
        );
        assert_eq!(at(&user, true).as_deref(), Some("/var/lib/mvm"));
        assert_eq!(
            at(&user, false).as_deref(),
            Some("/home/u/.local/share/mvm")
        );
        let xdg = [("XDG_DATA_HOME", "/d"), ("HOME", "/home/u")];
        assert_eq!(at(&xdg, false).as_deref(), Some("/d/mvm"));
        let relative = [("XDG_DATA_HOME", "d"), ("HOME", "/home/u")];
        assert_eq!(
            at(&relative, false).as_deref(),
            Some("/home/u/.local/share/mvm")
        );
        assert_eq!(at(&[], false), None);
    }
}
