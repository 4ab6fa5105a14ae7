//! What each test has: the stand-ins as programs, an image, a home for VMs.

use mvm_protocol::lifecycle::Token;
use mvm_vmm::error::Error;
use mvm_vmm::machine::{self, Spec, Stop};
use mvm_vmm::suspend::{self, Restored, Taking};
use mvm_vmm::{Home, Patience, Record, Snapshot, State, VmFolder, VmName};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

/// A deadline that is not meant to be met.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// Has the drivers find this executable under the VMMs' names. To be called before there are
/// threads; the folder that it gives is to be kept.
pub(crate) fn install() -> TempDir {
    let (folder, variables) = mvm_fake_vmm::install();
    for (variable, value) in variables {
        #[expect(unsafe_code, reason = "the drivers look there for their programs")]
        // SAFETY: called first in `main`, before there is another thread.
        unsafe {
            env::set_var(variable, value);
        }
    }
    folder
}

pub(crate) struct World {
    backend: &'static str,
    root: TempDir,
    home: Home,
}

impl World {
    pub(crate) fn new(backend: &'static str) -> Self {
        let root = tempfile::tempdir().unwrap();
        let home = Home::at(root.path().join("home"));
        let world = Self {
            backend,
            root,
            home,
        };
        fs::create_dir(world.image()).unwrap();
        for (file, content) in [("vmlinux", "\x7fELF"), ("initrd", ""), ("rootfs.erofs", "")] {
            fs::write(world.image().join(file), content).unwrap();
        }
        world.write_manifest("null");
        world
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.root.path().join("image")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub(crate) fn write_manifest(&self, rootfs: &str) {
        let manifest = format!(
            r#"{{"version":1,"kernel":"vmlinux","initrd":"initrd","rootfs":{rootfs},
            "cmdline":"init_on_free=1","agent":{{"version":"0.1.0","profile":"dev","port":52}}}}"#
        );
        fs::write(self.image().join("manifest.json"), manifest).unwrap();
    }

    /// A VM that is not there yet. It is ended with this.
    pub(crate) fn vm(&self, name: &str) -> Vm<'_> {
        let name = VmName::new(name).unwrap();
        let folder = self.home.vm(&name);
        fs::create_dir_all(folder.path()).unwrap();
        Vm {
            world: self,
            name,
            folder,
        }
    }
}

pub(crate) struct Vm<'a> {
    world: &'a World,
    name: VmName,
    pub(crate) folder: VmFolder,
}

impl Vm<'_> {
    pub(crate) fn try_start(&self, at_most: Duration) -> Result<Record, Error> {
        self.try_start_with(self.world.backend, at_most)
    }

    pub(crate) fn try_start_with(&self, backend: &str, at_most: Duration) -> Result<Record, Error> {
        let spec = Spec {
            image: Some(self.world.image()),
            backend: Some(backend.into()),
            ..Spec::default()
        };
        let patience = Patience::new(at_most, None);
        let starting = machine::start(&self.world.home, &self.name, &spec, patience)?;
        starting.wait_for_agent(patience)?;
        starting.confirm()
    }

    pub(crate) fn started(self) -> Self {
        self.try_start(LONG).unwrap();
        self.forget_calls();
        self
    }

    pub(crate) fn stop(&self, how: Stop) -> machine::Stopped {
        machine::stop(&self.world.home, &self.name, how).unwrap()
    }

    pub(crate) fn record(&self) -> Record {
        self.folder.record().unwrap()
    }

    pub(crate) fn runs(&self) -> bool {
        !self.record().alive().unwrap().is_empty()
    }

    /// Ends its process as a crash does.
    pub(crate) fn kill(&self) {
        for process in self.record().alive().unwrap() {
            process.signal(rustix::process::Signal::KILL).unwrap();
            assert!(process.wait(LONG).unwrap());
        }
    }

    /// The next request of that kind goes wrong in that way.
    pub(crate) fn inject(&self, fault: &str) {
        fs::write(self.folder.file("fault"), fault).unwrap();
    }

    /// What the VMM was asked since it was last looked, with what it answered.
    pub(crate) fn calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.folder.file("calls.log")).unwrap_or_default();
        self.forget_calls();
        calls.lines().map(str::to_owned).collect()
    }

    pub(crate) fn forget_calls(&self) {
        let _ = fs::remove_file(self.folder.file("calls.log"));
    }

    /// What is asked before the guest is told to sleep.
    pub(crate) fn try_take(&self, to: &Path) -> Result<(), Error> {
        suspend::take(&self.world.home, &self.name, Some(to)).map(drop)
    }

    /// Up to the frozen VM: what is to follow is the test's.
    pub(crate) fn freeze(
        &self,
        to: &Path,
        at_most: Duration,
    ) -> (Taking, Result<suspend::Unnamed, Error>) {
        let (mut taking, draft) = suspend::take(&self.world.home, &self.name, Some(to)).unwrap();
        let frozen = taking.freeze(draft, Patience::new(at_most, None));
        (taking, frozen)
    }

    /// A snapshot after which the VM runs on, or has ended.
    pub(crate) fn snapshot(&self, to: &Path, stop: bool) -> Snapshot {
        let (mut taking, frozen) = self.freeze(to, LONG);
        let unnamed = frozen.unwrap();
        assert_eq!(self.record().state, State::Asleep);
        if stop {
            taking.stop().unwrap();
        } else {
            taking.run_on(Patience::new(LONG, None)).unwrap();
        }
        let token = Token::new("t0ken").unwrap();
        unnamed.publish(token, "0.1.0".into()).unwrap();
        Snapshot::open(to).unwrap()
    }

    pub(crate) fn restore(&self, snapshot: &Snapshot, clone: bool) -> Result<Restored, Error> {
        let patience = Patience::new(LONG, None);
        suspend::restore(&self.world.home, &self.name, snapshot, clone, patience)
    }
}

impl Drop for Vm<'_> {
    fn drop(&mut self) {
        // One that was never started has no record, and nothing to end.
        let _ = machine::stop(&self.world.home, &self.name, Stop::Force);
    }
}

/// The names in a folder, in order.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Each part has to be in the error's text.
pub(crate) fn told(error: &Error, parts: &[&str]) {
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "{text:?} lacks {part:?}");
    }
}
