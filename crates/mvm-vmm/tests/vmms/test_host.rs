//! What each test has: the VMM's program, an image, a home for VMs.

use mvm_fake_vmm::Subject;
use mvm_protocol::lifecycle::Token;
use mvm_vmm::error::Error;
use mvm_vmm::machine::{self, Spec, Stop};
use mvm_vmm::snapshot::SnapshotDir;
use mvm_vmm::suspend::{self, RestoreSpec, Restored, SnapshotSession};
use mvm_vmm::{Deadline, Home, Record, Recorded, Snapshot, VmFolder, VmName};
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

/// A version that the stand-in of a VMM tells, be it only asked or be it started; the usual one again
/// when this is dropped.
pub(crate) struct Installed(PathBuf);

impl Installed {
    pub(crate) fn version(variable: &str, version: &str) -> Self {
        let program = PathBuf::from(env::var_os(variable).unwrap());
        let file = program.with_extension("version");
        fs::write(&file, version).unwrap();
        Self(file)
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

pub(crate) struct TestHost {
    vmm: Subject,
    root: TempDir,
    home: Home,
}

impl TestHost {
    pub(crate) fn new(vmm: &Subject) -> Self {
        let root = tempfile::tempdir().unwrap();
        let home = Home::at(root.path().join("home"));
        let host = Self {
            vmm: vmm.clone(),
            root,
            home,
        };
        fs::create_dir(host.image()).unwrap();
        put_kernel(vmm, &host.image());
        fs::write(host.image().join("initrd"), "").unwrap();
        // A few sectors, since a real VMM has no disk without any.
        fs::write(host.image().join("rootfs.erofs"), [0; 4096]).unwrap();
        host.write_manifest("null");
        host
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.root.path().join("image")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub(crate) fn write_manifest(&self, rootfs: &str) {
        // The bare guest takes none, and a real VMM refuses an empty one.
        let initrd = if self.vmm.is_real() {
            "null"
        } else {
            "\"initrd\""
        };
        let manifest = format!(
            r#"{{"version":1,"kernel":"vmlinux","initrd":{initrd},"rootfs":{rootfs},
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
            host: self,
            name,
            folder,
        }
    }
}

/// Puts a kernel that this VMM boots into a folder, as `vmlinux`.
pub(crate) fn put_kernel(vmm: &Subject, folder: &Path) {
    if vmm.is_real() {
        mvm_bare_guest::build(folder).unwrap();
    } else {
        fs::write(folder.join(mvm_bare_guest::KERNEL), "\x7fELF").unwrap();
    }
}

pub(crate) struct Vm<'a> {
    host: &'a TestHost,
    name: VmName,
    pub(crate) folder: VmFolder,
}

impl Vm<'_> {
    pub(crate) fn try_start(&self, at_most: Duration) -> Result<Record, Error> {
        self.try_start_with(self.host.vmm.backend, at_most)
    }

    pub(crate) fn try_start_with(&self, backend: &str, at_most: Duration) -> Result<Record, Error> {
        let spec = Spec {
            image: Some(self.host.image()),
            backend: Some(backend.into()),
            // Little, since snapshots are hashed; the bare guest needs some. Of less than 16 MiB all is
            // written.
            memory_mib: Some(if self.host.vmm.is_real() { 64 } else { 16 }),
            ..Spec::default()
        };
        let deadline = Deadline::new(at_most, None);
        let starting = machine::start(&self.host.home, &self.name, &spec, deadline)?;
        starting.wait_for_agent(deadline)?;
        starting.confirm()
    }

    pub(crate) fn started(self) -> Self {
        self.try_start(LONG).unwrap();
        self.forget_calls();
        self
    }

    pub(crate) fn stop(&self, how: Stop) -> machine::Stopped {
        machine::stop(&self.host.home, &self.name, how).unwrap()
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
        let mut calls = mvm_fake_vmm::calls(self.folder.path());
        self.forget_calls();
        // Nobody speaks with the guest here.
        calls.retain(|call| !call.starts_with("guest "));
        calls
    }

    pub(crate) fn forget_calls(&self) {
        mvm_fake_vmm::forget_calls(self.folder.path());
    }

    /// What is asked before the guest is told to sleep.
    pub(crate) fn try_take(&self, to: &Path) -> Result<(), Error> {
        suspend::take(&self.host.home, &self.name, Some(to)).map(drop)
    }

    /// Up to the moment at which the guest would be told to sleep.
    pub(crate) fn take(&self, to: &Path) -> (SnapshotSession, SnapshotDir) {
        suspend::take(&self.host.home, &self.name, Some(to)).unwrap()
    }

    /// Up to the frozen VM: what is to follow is the test's.
    pub(crate) fn freeze(
        &self,
        to: &Path,
        at_most: Duration,
    ) -> (SnapshotSession, Result<suspend::PendingSnapshot, Error>) {
        let (mut session, snapshot_dir) = self.take(to);
        let frozen = session.freeze(snapshot_dir, Deadline::new(at_most, None));
        (session, frozen)
    }

    /// A snapshot after which the VM runs on, or has ended.
    pub(crate) fn snapshot(&self, to: &Path, stop: bool) -> Snapshot {
        let (mut session, frozen) = self.freeze(to, LONG);
        let pending = frozen.unwrap();
        assert_eq!(self.record().state, Recorded::Asleep);
        if stop {
            session.stop(to).unwrap();
        } else {
            session.run_on(Deadline::new(LONG, None)).unwrap();
        }
        let token = Token::new("t0ken").unwrap();
        pending.publish(token, "0.1.0".into()).unwrap();
        Snapshot::open(to).unwrap()
    }

    pub(crate) fn restore(&self, snapshot: &Snapshot, clone: bool) -> Result<Restored, Error> {
        let deadline = Deadline::new(LONG, None);
        let spec = RestoreSpec {
            clone,
            ..RestoreSpec::default()
        };
        suspend::restore(&self.host.home, &self.name, snapshot, &spec, deadline)
    }
}

impl Drop for Vm<'_> {
    fn drop(&mut self) {
        // One that was never started has no record, and nothing to end.
        let _ = machine::stop(&self.host.home, &self.name, Stop::Force);
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
