//! vhost-device-vsock: the process that a guest's vsock device is joined to.

use crate::deadline::Deadline;
use crate::detach::raise_descriptors;
use crate::error::Error;
use crate::launch::VmProcesses;
use crate::locate::VHOST_DEVICE_VSOCK;
use crate::process::listens;
use crate::qemu::arguments::VSOCK_SOCKET;
use mvm_registry::record::GUEST_CID;
use mvm_registry::{Record, Role};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Its role in `vm.json`.
pub(super) const ROLE: Role = Role::Vsock;

/// How long it is waited for until it is ready. That this is not seen may mean that it cannot be, since
/// another version numbers its queues otherwise or its `/proc/PID` is closed to us.
const SEEN: Duration = Duration::from_secs(5);

/// How long it is left alone if it could not be seen.
const UNSEEN: Duration = Duration::from_millis(300);

/// How long it is left alone if it watches its queues, and what it waits for may not be seen.
const NOT_ALLOWED: Duration = Duration::from_millis(50);

/// What an epoll descriptor is called in `/proc/PID/fd`.
const EPOLL: &str = "anon_inode:[eventpoll]";

/// Starts it and waits until it listens on its socket, to which QEMU will connect. The guest gets the
/// address that the VM's record has: a guest that runs on finds the one that it had, since to a guest
/// another one means that it was restored.
pub(super) fn start(processes: &mut VmProcesses, deadline: Deadline<'_>) -> Result<(), Error> {
    let cid = cid(processes.record());
    let mut command = Command::new(VHOST_DEVICE_VSOCK.find()?);
    command.args(["--guest-cid", &cid.to_string()]).args([
        "--socket",
        VSOCK_SOCKET,
        "--uds-path",
        "v.sock",
    ]);
    raise_descriptors(&mut command);
    processes.spawn(ROLE, "vhost-device-vsock", "vsock.log", &mut command)?;
    let pid = processes.pid(ROLE);
    processes.wait_for("vhost-device-vsock's socket", deadline, || {
        // It may have ended: that is found, with its reason, by whoever waits.
        let listens = listens(pid, VSOCK_SOCKET).unwrap_or(false);
        Ok(listens.then_some(()))
    })
}

/// The guest's vsock address.
fn cid(record: &Record) -> u32 {
    record.guest_cid.unwrap_or(GUEST_CID)
}

/// Waits until it can be dialled, once the guest's driver is up.
///
/// A dial that finds a queue not ready ends its only thread (vhost-device-vsock 0.3.0, `process_tx`
/// in its `handle_event`), and from then on it is silent. On a busy machine that can be a second
/// after the driver is up.
pub(super) fn wait_until_ready(
    processes: &VmProcesses,
    deadline: Deadline<'_>,
) -> Result<(), Error> {
    let pid = processes.pid(ROLE);
    let step = deadline.step(SEEN);
    let seen = processes.wait_for("vhost-device-vsock's queues", step, || Ok(ready_after(pid)));
    match seen {
        Ok(pause) => processes.pause(pause),
        Err(Error::TimedOut { .. }) if !deadline.left().is_zero() => processes.pause(UNSEEN),
        Err(error) => Err(error),
    }
}

/// After which time it can be dialled, once it watches both queues: at once if it has done all that QEMU
/// has asked since. That a queue is watched is not enough: it is made ready right after that, by the
/// thread that takes QEMU's messages and then waits for the next one. `None` if it is not as far yet.
pub fn ready_after(pid: i32) -> Option<Duration> {
    // In this order: what it waited for before says nothing.
    if !watches_queues(pid) {
        return None;
    }
    match takes_messages(pid) {
        Some(true) => Some(Duration::ZERO),
        Some(false) => None,
        None => Some(NOT_ALLOWED),
    }
}

/// Whether the process watches both queues of a guest's driver: one that it has taken over is in its
/// epoll set, with the queue's number.
pub(super) fn watches_queues(pid: i32) -> bool {
    let Ok(descriptors) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    // It is asked again and again: of the others nothing is read.
    let epolls = descriptors.filter_map(|descriptor| {
        let descriptor = descriptor.ok()?;
        let target = std::fs::read_link(descriptor.path()).ok()?;
        (target.as_os_str() == EPOLL).then(|| descriptor.file_name())
    });
    let texts = epolls.filter_map(|descriptor| {
        let path = Path::new("/proc").join(pid.to_string()).join("fdinfo");
        std::fs::read_to_string(path.join(descriptor)).ok()
    });
    let watched: Vec<u64> = texts.flat_map(|text| epoll_data(&text)).collect();
    [0, 1].iter().all(|queue| watched.contains(queue))
}

/// Whether a thread of the process waits in recvmsg(2), which only the one for QEMU's messages calls
/// (proc_pid_syscall(5): the call's number, and what it was called with). `None` if nobody may see that,
/// as with a strict Yama.
fn takes_messages(pid: i32) -> Option<bool> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let calls = threads
        .filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("syscall")).ok());
    let receives = calls.map(|text| {
        let number = text.split_whitespace().next();
        number.and_then(|number| number.parse().ok()) == Some(libc::SYS_recvmsg)
    });
    receives.reduce(|one, other| one || other)
}

/// The numbers under which an epoll descriptor watches others (proc_pid_fdinfo(5)):
/// `tfd: 9 events: 19 data: 0 pos:0 ino:61 sdev:9`, the data in hexadecimal.
fn epoll_data(fdinfo: &str) -> Vec<u64> {
    let watched = fdinfo
        .lines()
        .filter_map(|line| line.strip_prefix("tfd:")?.split_once("data:"));
    watched
        .filter_map(|(_, rest)| u64::from_str_radix(rest.split_whitespace().next()?, 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guest that finds another one takes itself for restored.
    #[test]
    fn a_clone_that_runs_on_keeps_the_address_that_it_was_given() {
        let root = tempfile::tempdir().unwrap();
        // As earlier ones wrote it.
        let mut processes = VmProcesses::of_nothing(root.path(), "qemu");
        assert_eq!(cid(processes.record()), GUEST_CID);
        for given in [GUEST_CID + 1, GUEST_CID] {
            processes.set_guest_cid(given);
            processes.set_suspended(None).unwrap();
            // As another mvmctl finds it, which freezes the VM and has it run on.
            assert_eq!(cid(&processes.folder().record().unwrap()), given);
        }
    }

    #[test]
    fn what_an_epoll_descriptor_watches() {
        let fdinfo = "pos:\t0\nflags:\t02\nmnt_id:\t15\nino:\t1057\n\
                      tfd:       17 events:       19 data:                1  pos:0 ino:421 sdev:f\n\
                      tfd:       15 events:       19 data:               1f  pos:0 ino:421 sdev:f\n";
        assert_eq!(epoll_data(fdinfo), [1, 31]);
        assert!(epoll_data("pos:\t0\n").is_empty());
    }

    #[test]
    fn a_process_that_watches_both_queues() {
        use rustix::event::{EventfdFlags, epoll, eventfd};
        let own = i32::try_from(std::process::id()).unwrap();
        let watching = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let queues = [0, 1].map(|queue| (queue, eventfd(0, EventfdFlags::CLOEXEC).unwrap()));
        for (queue, kicked) in &queues {
            assert!(!watches_queues(own), "before queue {queue}");
            let data = epoll::EventData::new_u64(*queue);
            epoll::add(&watching, kicked, data, epoll::EventFlags::IN).unwrap();
        }
        assert!(watches_queues(own));
    }

    #[test]
    fn a_thread_that_waits_for_a_message_is_told_from_others() {
        use rustix::net::{RecvAncillaryBuffer, RecvFlags, recvmsg};
        use std::os::unix::net::UnixStream;
        let mut other = Command::new("sleep").arg("600").spawn().unwrap();
        let id = i32::try_from(other.id()).unwrap();
        assert_eq!(takes_messages(id), Some(false));
        other.kill().unwrap();
        other.wait().unwrap();
        assert_eq!(takes_messages(id), None);

        let (ours, theirs) = UnixStream::pair().unwrap();
        let receiving = std::thread::spawn(move || {
            let (mut byte, mut control) = ([0], RecvAncillaryBuffer::default());
            let mut into = [std::io::IoSliceMut::new(&mut byte)];
            recvmsg(&ours, &mut into, &mut control, RecvFlags::empty()).unwrap();
        });
        let own = i32::try_from(std::process::id()).unwrap();
        let until = std::time::Instant::now() + Duration::from_secs(20);
        while takes_messages(own) != Some(true) {
            assert!(std::time::Instant::now() < until, "it is not seen");
            std::thread::yield_now();
        }
        drop(theirs);
        receiving.join().unwrap();
    }
}
