//! VMs of which something is left that should not be, and sockets that cannot be used.

use super::{DiscoveredVm, Finding, Level};
use crate::driver::Vmms;
use crate::socket::connect;
use crate::suspend::may_be_broken_off;
use mvm_registry::record::Unwoken;
use mvm_registry::{Home, Inventory, Pause, Vm, VmFolder, VmName, VmState, listed};
use rustix::fs::{Access, access};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

/// How long after its socket is bound a program may take to listen on it: between the two nobody is
/// there, and it is not dead.
const FROM_BIND_TO_LISTEN: Duration = Duration::from_millis(200);

/// How long a VMM may take to say whether its VM is paused.
const ASKED: Duration = Duration::from_secs(2);

/// Those of `$MVM_HOME`.
pub(super) fn own(home: &Home) -> Vec<Finding> {
    let inventory = Inventory::at(home.root()).with_vmms(Arc::new(Vmms));
    // That the folder cannot be read, whoever lists the VMs is told.
    let Ok(entries) = std::fs::read_dir(home.vms()) else {
        return Vec::new();
    };
    let mut names: Vec<_> = entries
        .filter_map(|entry| VmName::new(entry.ok()?.file_name().to_str()?).ok())
        .collect();
    names.sort();
    names
        .iter()
        .filter_map(|name| {
            let folder = home.vm(name);
            vm(&folder, &inventory.ask(folder.vm()?, ASKED))
        })
        .collect()
}

/// One that something else has started.
pub(super) fn discovered(vm: &DiscoveredVm) -> Option<Finding> {
    foreign(&format!("vm {}", vm.name), &vm.socket)
}

fn vm(folder: &VmFolder, vm: &Vm) -> Option<Finding> {
    let name = folder.name();
    let subject = format!("vm {name}");
    let warn =
        |message: String, fix: String| Some(Finding::amiss(Level::Warning, &subject, message, fix));
    let clear = || format!("mvmctl vm stop {name}");
    let broken_off = || {
        warn(
            "a snapshot of it was broken off".into(),
            format!("mvmctl vm wake {name}"),
        )
    };
    let socket = folder.socket();
    match (&vm.state, vm.endpoint()) {
        (VmState::Running, Err(_)) => warn(
            "a process of it has ended that its guest is reached by".into(),
            format!("{}, and start it again", clear()),
        ),
        (VmState::Running, Ok(_)) if is_left_by_a_snapshot(folder, vm) => broken_off(),
        (VmState::Running, Ok(_)) if let Some(unwoken) = not_told(folder, vm) => warn(
            format!(
                "its guest was not told that it was restored; or it could not be personalized, and \
                 `mvmctl vm wake {name} --retry` goes on"
            ),
            if unwoken.payload {
                format!("mvmctl vm wake {name} --payload FILE")
            } else {
                format!("mvmctl vm wake {name}")
            },
        ),
        (VmState::Running, Ok(_)) if vm.loses_console() => warn(
            "what its guest prints is lost: the process that keeps its console has ended".into(),
            format!("{}, and start it again, if its console is needed", clear()),
        ),
        (VmState::Running, Ok(_)) => forbidden(&subject, &socket),
        (VmState::Paused(Pause::BrokenSnapshot), _) => broken_off(),
        (VmState::Paused(Pause::Other), Err(error)) => warn(
            "it is paused, and it was not mvmctl that paused it".into(),
            error.hint(name.as_str()),
        ),
        (VmState::Ended(ending), _) => warn(format!("it has ended by itself: {ending}"), clear()),
        (VmState::StartBrokenOff, _) => warn("its start was broken off".into(), clear()),
        (VmState::Stopped | VmState::Asleep { .. }, _) if socket.exists() => warn(
            "its socket is left, and none of its processes".into(),
            clear(),
        ),
        (
            VmState::Asleep {
                snapshot: Some(slept_in),
            },
            Err(error),
        ) if !slept_in.is_dir() => warn(
            format!(
                "it is asleep in {}, which is not there any more",
                slept_in.display()
            ),
            error.hint(name.as_str()),
        ),
        (VmState::NotOurs { state: None }, _) => foreign(&subject, &socket),
        (VmState::Unknown(_), Err(error)) => warn(error.to_string(), error.hint(name.as_str())),
        _ => None,
    }
}

/// Whether something is left of a snapshot that nobody is taking: the guest may be asleep.
fn is_left_by_a_snapshot(folder: &VmFolder, vm: &Vm) -> bool {
    let may_be = |record| may_be_broken_off(record).unwrap_or_default();
    vm.record().is_some_and(may_be) && !folder.is_locked().unwrap_or(true)
}

/// What its guest is still to be told, if nobody is at it.
fn not_told<'a>(folder: &VmFolder, vm: &'a Vm) -> Option<&'a Unwoken> {
    let unwoken = vm.record()?.unwoken.as_ref()?;
    (!folder.is_locked().unwrap_or(true)).then_some(unwoken)
}

/// A socket that is there, and that its user may not open.
fn forbidden(subject: &str, socket: &Path) -> Option<Finding> {
    let error = access(socket, Access::WRITE_OK).err()?;
    let error = io::Error::from(error);
    (error.kind() == ErrorKind::PermissionDenied).then(|| {
        Finding::amiss(
            Level::Warning,
            subject,
            format!("you may not open its socket, {}", socket.display()),
            "become the VMM's user or root, or have the socket and its folders opened to your group",
        )
    })
}

/// The socket of a VM of which nothing else is known.
fn foreign(subject: &str, socket: &Path) -> Option<Finding> {
    if let Some(finding) = forbidden(subject, socket) {
        return Some(finding);
    }
    let shown = socket.display();
    let warn =
        |message: String, fix: String| Some(Finding::amiss(Level::Warning, subject, message, fix));
    let metadata = match std::fs::metadata(socket) {
        Ok(metadata) => metadata,
        // It has gone meanwhile.
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Err(error) => {
            let fix = "look at it and the folders above it".into();
            return warn(format!("cannot look at {shown}: {error}"), fix);
        }
    };
    if !metadata.file_type().is_socket() {
        return warn(
            format!("{shown} is no socket"),
            "give the VMM's socket that name, or remove it from where sockets are looked for"
                .into(),
        );
    }
    match listens(socket) {
        Ok(true) => None,
        // A socket on a file system that is shared with another kernel looks the same.
        Ok(false) => warn(
            format!("nobody listens on {shown}"),
            format!("see that its VMM does not run, here or discovered; then: rm {shown}"),
        ),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => warn(
            format!("cannot tell whether somebody listens on {shown}: {error}"),
            "leave it as it is, and see whether its VMM runs".into(),
        ),
    }
}

/// Whether somebody listens there. If the kernel's list has such a socket, it is not dialled. That the
/// list does not have it says nothing: sockets are in it by the names under which they were bound,
/// which may be relative or in a chroot, and those of other network namespaces are not. Only a refusal
/// of the kernel's proves that nobody is there. One that is connected after all is closed without a
/// word, so that no guest hears of it.
fn listens(socket: &Path) -> io::Result<bool> {
    if is_listed(socket) {
        return Ok(true);
    }
    if !refuses(socket)? {
        return Ok(true);
    }
    // It may be between bind and listen.
    sleep(FROM_BIND_TO_LISTEN);
    Ok(!refuses(socket)?)
}

fn refuses(socket: &Path) -> io::Result<bool> {
    let (Some(folder), Some(name)) = (socket.parent(), socket.file_name()) else {
        return Err(ErrorKind::NotFound.into());
    };
    let Some(name) = name.to_str() else {
        return Err(io::Error::other("its name is not UTF-8"));
    };
    match connect(folder, name) {
        Ok(_) => Ok(false),
        // Its queue is full.
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(true),
        Err(error) => Err(error),
    }
}

/// Whether the kernel lists one that is listened on under just that name.
fn is_listed(socket: &Path) -> bool {
    listed("self", &socket.to_string_lossy()).is_ok_and(|inodes| !inodes.is_empty())
}

#[cfg(test)]
mod tests;
