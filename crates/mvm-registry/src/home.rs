//! `$MVM_HOME`: its folders, and the lock on each VM.
//!
//! ```text
//! $MVM_HOME/vms/<name>/   vm.json        how it was started, its state, its processes
//!                         v.sock         the hybrid vsock socket (the VMM's, or the agent's)
//!                         console.log    what the guest wrote to its console, and .1 the time before
//!                         vmm.log, …     what each process of it wrote
//!                         fleet.json     what whoever serves the fleet has noted of it
//!                         touched.json   what hosts have said that use it
//! $MVM_HOME/fleet.lock    held by whoever serves the fleet
//! $MVM_HOME/failed-clones.json    what that has noted of clones that there are not
//! $MVM_HOME/locks/<name>  held while a VM is started, stopped, snapshotted or removed
//! $MVM_HOME/locks/<name>+run  held by the program that supervises the VM, as long as it does
//! $MVM_HOME/locks/+emulated-<number>  held while an emulated guest is restored: so many at once
//! ```
//!
//! Locks lie outside the VM's folder: a lock inside one that is being removed protects nothing. They
//! are those of open files (`F_OFD_SETLK`): the kernel gives them back when whoever holds one dies,
//! and anybody can ask whether one is held without taking it, which would be in the others' way. The
//! file says who holds it, so that the end of that process can be waited for.

use crate::files::{make_private, open_regular, read_bounded};
use crate::process::ProcessId;
use crate::settings::xdg;
use crate::trust::{ANYBODY_ELSE, THE_WORLD, check_folder, check_parent};
use crate::{Error, VmName};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io::{self, ErrorKind, Seek as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the content of a lock's file can be.
const MAX_HOLDER: u64 = 64;

/// How long a lock may outlive who holds it. What that one was just starting has inherited it, and
/// ends as soon as it sees that it is alone, on a busy machine a little later.
const INHERITED: Duration = Duration::from_secs(5);

/// What the name of the lock of a VM's supervisor ends with; no VM's name has that in it.
const SUPERVISION: &str = "+run";

/// What the names of the locks begin with of which there is one for each emulated guest that may be
/// restored at the same time; no VM's name does.
const EMULATED: &str = "+emulated-";

/// How often it is tried again meanwhile: a lock gives no event.
const TICK: Duration = Duration::from_millis(5);

/// `$MVM_HOME`.
#[derive(Debug, Clone)]
pub struct Home {
    root: PathBuf,
}

impl Home {
    /// That folder; nothing is made yet.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the VMs are.
    pub fn vms(&self) -> PathBuf {
        self.root.join("vms")
    }

    /// Where folders of VMs are while they are being removed.
    pub fn removing(&self) -> PathBuf {
        self.root.join("removing")
    }

    /// The folder of one VM, whether it is there or not.
    pub fn vm(&self, name: &VmName) -> VmFolder {
        VmFolder {
            path: self.vms().join(name.as_str()),
            lock: self.root.join("locks").join(name.as_str()),
            supervision: self.root.join("locks").join(format!("{name}{SUPERVISION}")),
            name: name.clone(),
        }
    }

    /// Takes the lock on a VM. It is given back on drop, and by the kernel if this process dies.
    ///
    /// # Errors
    ///
    /// [`Error::Locked`] if another process has it; [`Error::NotTrusted`], [`Error::Io`].
    pub fn lock(&self, name: &VmName) -> Result<Lock, Error> {
        self.take(&self.vm(name).lock)
    }

    /// Takes the place of the one program that supervises a VM for as long as it runs. It keeps nobody
    /// from starting, stopping or snapshotting the VM.
    ///
    /// # Errors
    ///
    /// Those of [`Home::lock`].
    pub fn lock_supervision(&self, name: &VmName) -> Result<Lock, Error> {
        self.take(&self.vm(name).supervision)
    }

    /// Gives the lock of a VM up whose folder was removed, and removes the files of its locks: clones come
    /// and go under ever new names. Whoever has opened one of them just before looks whether it is still
    /// there once it has the lock.
    pub fn remove_lock(&self, name: &VmName, lock: Lock) {
        let VmFolder {
            lock: path,
            supervision,
            ..
        } = self.vm(name);
        // Somebody supervises it still: the file goes with the next VM of that name.
        if supervision.exists()
            && let Ok(_alone) = self.take(&supervision)
        {
            let _ = std::fs::remove_file(&supervision);
        }
        let _ = std::fs::remove_file(&path);
        drop(lock);
    }

    fn take(&self, path: &Path) -> Result<Lock, Error> {
        self.locks()?;
        take(path)
    }

    /// Where the locks are, which is there then, and nobody else's.
    fn locks(&self) -> Result<PathBuf, Error> {
        let locks = self.root.join("locks");
        make_private(&locks)?;
        // It is written to, whatever others have put there.
        check_parent(&self.root)?;
        check_folder(&locks, THE_WORLD)?;
        Ok(locks)
    }

    /// So many places for those who restore emulated guests, each of which keeps a CPU busy.
    ///
    /// # Errors
    ///
    /// [`Error::NotTrusted`], [`Error::Io`].
    pub fn emulated_places(&self, places: usize) -> Result<Places, Error> {
        let locks = self.locks()?;
        let open = |number: usize| {
            let path = locks.join(format!("{EMULATED}{number}"));
            let (file, mode) = open_lock(&path)?;
            Ok((file, path, mode))
        };
        let files = (0..places).map(open).collect::<Result<_, Error>>()?;
        Ok(Places { files })
    }

    /// Takes the lock that whoever serves the fleet of this folder holds, likewise.
    ///
    /// # Errors
    ///
    /// Those of [`Home::lock`].
    pub fn lock_fleet(&self) -> Result<Lock, Error> {
        make_private(&self.root)?;
        check_parent(&self.root)?;
        take(&self.root.join("fleet.lock"))
    }
}

/// Opens a lock's file, and tells how it can be locked.
fn open_lock(path: &Path) -> Result<(File, Mode), Error> {
    let mut options = File::options();
    options
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let mut writing = options.clone();
    writing.write(true).create(true).truncate(false);
    let opened = match writing.open(path) {
        // A disk that failed is made read-only, and its VMs are to be stopped all the same. Whoever
        // has held the lock since before keeps us out, and nobody else can change anything either.
        Err(error) if error.kind() == ErrorKind::ReadOnlyFilesystem => options
            .open(path)
            .map(|file| (file, Mode::Shared))
            .map_err(|_| error),
        opened => opened.map(|file| (file, Mode::Exclusive)),
    };
    opened.map_err(Error::io("open", path))
}

/// How a lock is taken.
#[derive(Debug, Clone, Copy)]
enum Mode {
    Exclusive,
    /// Others who read may have it too: only who may write a file can lock it for itself alone.
    Shared,
}

/// Takes the lock in that file, and says whether it could: somebody else may have it.
fn try_lock(file: &File, path: &Path, mode: Mode) -> Result<bool, Error> {
    let kind = match mode {
        Mode::Exclusive => flag::WRITE,
        Mode::Shared => flag::READ,
    };
    match fcntl(file, FcntlArg::F_OFD_SETLK(&whole_file(kind))) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(error) => Err(Error::io("lock", path)(error.into())),
    }
}

fn take(path: &Path) -> Result<Lock, Error> {
    let until = Instant::now() + INHERITED;
    loop {
        let (file, mode) = open_lock(path)?;
        if try_lock(&file, path, mode)? {
            // Whoever removed the VM has removed this as well, and the next one locks another file.
            if is_at(&file, path) || Instant::now() >= until {
                return Ok(Lock::signed(file));
            }
            continue;
        }
        let holder = holder(path);
        let has_died = holder.is_some_and(|holder| matches!(holder.open(), Ok(None)));
        if !has_died || Instant::now() >= until {
            return Err(Error::Locked {
                by: holder.map(|holder| holder.pid),
            });
        }
        std::thread::sleep(TICK);
    }
}

/// Whether that file is the one that its path leads to.
fn is_at(file: &File, path: &Path) -> bool {
    let same =
        |file: &Metadata, there: &Metadata| (file.dev(), file.ino()) == (there.dev(), there.ino());
    match (file.metadata(), path.symlink_metadata()) {
        (Ok(file), Ok(there)) => same(&file, &there),
        _ => false,
    }
}

/// Where `$MVM_HOME` is: what the environment says, else a default.
pub(crate) fn home(
    env: impl Fn(&str) -> Option<OsString>,
    is_root: bool,
) -> Result<PathBuf, Error> {
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

/// Held while a VM is started, stopped, snapshotted or removed.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    /// The one in that file, which was just taken. It holds whether anybody can be told who has it or
    /// not: on a file system that is full a VM is to be stopped and removed all the same.
    fn signed(file: File) -> Self {
        let lock = Self { file };
        let _ = lock.sign();
        lock
    }

    /// Writes down who holds it.
    fn sign(&self) -> io::Result<()> {
        let own = ProcessId::own()?;
        let mut file = &self.file;
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{} {}", own.pid, own.start_ticks)
    }
}

#[cfg(test)]
impl Lock {
    /// What is locked, for another process to hold.
    pub(crate) fn into_file(self) -> File {
        self.file
    }
}

/// So many locks of which any one will do.
#[derive(Debug)]
pub struct Places {
    files: Vec<(File, PathBuf, Mode)>,
}

impl Places {
    /// Takes one of them; `None` if all are taken just now. It is given back as any lock is.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn take(&mut self) -> Result<Option<Lock>, Error> {
        let mut taken = None;
        for (number, (file, path, mode)) in self.files.iter().enumerate() {
            if try_lock(file, path, *mode)? {
                taken = Some(number);
                break;
            }
        }
        let taken = taken.map(|number| self.files.swap_remove(number));
        Ok(taken.map(|(file, ..)| Lock::signed(file)))
    }
}

/// The system's numbers as its structure has them.
#[expect(clippy::cast_possible_truncation, reason = "they are 0 to 2")]
mod flag {
    use nix::libc::{self, c_short};

    pub(super) const READ: c_short = libc::F_RDLCK as c_short;
    pub(super) const WRITE: c_short = libc::F_WRLCK as c_short;
    pub(super) const NOT_LOCKED: c_short = libc::F_UNLCK as c_short;
    pub(super) const FROM_START: c_short = libc::SEEK_SET as c_short;
}

fn whole_file(kind: libc::c_short) -> libc::flock {
    libc::flock {
        l_type: kind,
        l_whence: flag::FROM_START,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// Whether somebody holds the lock in that file.
fn is_held(path: &Path) -> io::Result<bool> {
    let file = match open_regular(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        file => file?,
    };
    let mut lock = whole_file(flag::WRITE);
    fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock))?;
    Ok(lock.l_type != flag::NOT_LOCKED)
}

/// Who signed the lock's file last.
fn holder(path: &Path) -> Option<ProcessId> {
    let content = read_bounded(path, MAX_HOLDER).ok()?;
    let (pid, start_ticks) = std::str::from_utf8(&content).ok()?.trim().split_once(' ')?;
    Some(ProcessId {
        pid: pid.parse().ok()?,
        start_ticks: start_ticks.parse().ok()?,
    })
}

/// The folder of one VM.
#[derive(Debug, Clone)]
pub struct VmFolder {
    path: PathBuf,
    lock: PathBuf,
    supervision: PathBuf,
    name: VmName,
}

impl VmFolder {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whose it is.
    pub fn name(&self) -> &VmName {
        &self.name
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// What the guest wrote to its console.
    pub fn console(&self) -> PathBuf {
        self.file("console.log")
    }

    /// The hybrid vsock socket.
    pub fn socket(&self) -> PathBuf {
        self.file("v.sock")
    }

    /// Makes the folder, for its owner alone: who can open `v.sock` owns the guest.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::NotTrusted`] of one that is there, and is another user's.
    pub fn create(&self) -> Result<(), Error> {
        make_private(&self.path)?;
        // Now that there is room for it: a VM is to be removed from a disk that is full.
        if let Some(root) = self.path.parent().and_then(Path::parent) {
            make_private(&Home::at(root).removing())?;
        }
        self.check_trust()
    }

    /// An error unless this folder and those above it, up to `$MVM_HOME`, are root's or one's own.
    pub(crate) fn check_trust(&self) -> Result<(), Error> {
        let vms = self.path.parent();
        for parent in vms.and_then(Path::parent).into_iter().chain(vms) {
            check_parent(parent)?;
        }
        check_folder(&self.path, ANYBODY_ELSE)
    }

    /// Whether somebody is starting, stopping, snapshotting or removing the VM just now.
    ///
    /// # Errors
    ///
    /// Those of the system.
    pub fn is_locked(&self) -> io::Result<bool> {
        is_held(&self.lock)
    }

    /// Who does, by what the lock's file says.
    pub(crate) fn lock_holder(&self) -> Option<ProcessId> {
        holder(&self.lock)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_asking_takes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path());
        let web = VmName::new("web").unwrap();
        let vm = home.vm(&web);
        assert!(!vm.is_locked().unwrap(), "there is no such file yet");
        let held = home.lock(&web).unwrap();
        assert!(vm.is_locked().unwrap());
        assert_eq!(vm.lock_holder(), Some(ProcessId::own().unwrap()));
        let own = i32::try_from(std::process::id()).unwrap();
        let refused = home.lock(&web).unwrap_err();
        assert!(matches!(refused, Error::Locked { by: Some(pid) } if pid == own));
        assert!(home.lock(&VmName::new("db").unwrap()).is_ok());
        // Who supervises it keeps nobody from that, and nobody it.
        let supervised = home.lock_supervision(&web).unwrap();
        let refused = home.lock_supervision(&web).unwrap_err();
        assert!(matches!(refused, Error::Locked { by: Some(pid) } if pid == own));
        drop(held);
        assert!(!vm.is_locked().unwrap());
        assert!(home.lock(&web).is_ok());
        drop(supervised);
        assert!(home.lock_supervision(&web).is_ok());
    }

    #[test]
    fn one_serves_the_fleet() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path().join("mvm"));
        let held = home.lock_fleet().unwrap();
        assert!(matches!(home.lock_fleet(), Err(Error::Locked { .. })));
        assert!(home.lock(&VmName::new("fleet").unwrap()).is_ok());
        drop(held);
        assert!(home.lock_fleet().is_ok());
    }

    #[test]
    fn so_many_emulated_guests_are_restored_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path().join("mvm"));
        let take = || home.emulated_places(2).unwrap().take().unwrap();
        let first = take();
        let second = take();
        assert!(first.is_some() && second.is_some());
        let mut waiting = home.emulated_places(2).unwrap();
        assert!(waiting.take().unwrap().is_none());
        drop(first);
        assert!(waiting.take().unwrap().is_some());
    }
}
