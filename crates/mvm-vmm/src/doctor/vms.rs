//! VMs of which something is left that should not be, and sockets that cannot be used.

use super::{DiscoveredVm, Finding, Level};
use crate::driver::{self, Driver};
use crate::error::Error;
use crate::record::{Home, Record, State, VmName};
use crate::socket::{connect, listed};
use crate::suspend::may_be_broken_off;
use rustix::fs::{Access, access};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

/// How long after its socket is bound a program may take to listen on it: between the two nobody is
/// there, and it is not dead.
const FROM_BIND_TO_LISTEN: Duration = Duration::from_millis(200);

/// Those of `$MVM_HOME`.
pub(super) fn own(home: &Home) -> Vec<Finding> {
    // That the folder cannot be read, whoever lists the VMs is told.
    let Ok(entries) = std::fs::read_dir(home.vms()) else {
        return Vec::new();
    };
    let mut names: Vec<_> = entries
        .filter_map(|entry| VmName::new(entry.ok()?.file_name().to_str()?).ok())
        .collect();
    names.sort_by_key(ToString::to_string);
    names
        .iter()
        .filter_map(|name| vm(name, &home.vm(name).record(), &home.vm(name).file("v.sock")))
        .collect()
}

/// One that something else has started.
pub(super) fn discovered(vm: &DiscoveredVm) -> Option<Finding> {
    foreign(&format!("vm {}", vm.name), &vm.socket)
}

fn vm(name: &VmName, record: &Result<Record, Error>, socket: &Path) -> Option<Finding> {
    let subject = format!("vm {name}");
    let warn =
        |message: String, fix: String| Some(Finding::amiss(Level::Warning, &subject, message, fix));
    match record {
        Ok(record) => {
            let main = driver::by_name(&record.backend).map(Driver::main_role);
            let (runs, all) = match (main, record.alive()) {
                (Ok(main), Ok(alive)) => (
                    alive.iter().any(|process| process.role == main),
                    alive.len() == record.processes.len(),
                ),
                (Err(error), _) | (_, Err(error)) => {
                    return warn(error.to_string(), "use the mvmctl that started it".into());
                }
            };
            let clear = || format!("mvmctl vm stop {name}");
            match record.state {
                State::Running if !runs => warn("it has ended by itself".into(), clear()),
                State::Running if !all => {
                    let again = format!("mvmctl vm stop {name}, and start it again");
                    warn(
                        "a process of it has ended that its guest is reached by".into(),
                        again,
                    )
                }
                _ if may_be_broken_off(record).unwrap_or_default() => warn(
                    "a snapshot of it is being taken, or was broken off".into(),
                    format!("if nobody is taking one: mvmctl vm wake {name}"),
                ),
                // Which of the two, only the lock would tell, and taking it would be in the way.
                State::Stopped if runs => warn(
                    "it is being started, or its start was broken off".into(),
                    format!("if nobody is starting it: {}", clear()),
                ),
                State::Stopped | State::Asleep if socket.exists() && !runs => warn(
                    "its socket is left, and none of its processes".into(),
                    clear(),
                ),
                State::Running => forbidden(&subject, socket),
                _ => None,
            }
        }
        Err(Error::NotOurs { may_run: true, .. }) => foreign(&subject, socket),
        Err(Error::NotOurs { may_run: false, .. } | Error::NoSuchVm { .. }) => None,
        Err(error) => warn(error.to_string(), error.hint()),
    }
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
