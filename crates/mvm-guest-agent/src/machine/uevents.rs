//! The kernel's uevents, of which one matters: VMGENID says that the VM was restored or cloned.
//!
//! Linux itself has none: it came into a candidate of 6.9 and was taken back before that. Kernels of
//! some distributions keep it.

use super::polled::{Polled, arrives};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recvfrom, socket_with};
use std::io;
use tokio::io::Interest;

/// The kernel's own group of netlink(7); udev's is another.
const KERNEL_GROUP: u32 = 1;

/// What is read of one message: the one that matters is far shorter.
const AT_MOST: usize = 2048;

/// Notices that the VM's generation id has changed.
#[derive(Debug)]
pub(crate) struct VmgenidWatch(Polled);

impl VmgenidWatch {
    /// Listens to the kernel's uevents: of the few that an idle guest has, each wakes the agent.
    pub(crate) fn new() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (family, kind) = (AddressFamily::NETLINK, SocketType::DGRAM);
        let socket = socket_with(family, kind, flags, Some(KOBJECT_UEVENT))?;
        bind(&socket, &SocketAddrNetlink::new(0, KERNEL_GROUP))?;
        Ok(Self(Polled::new(socket, Interest::READABLE)?))
    }

    /// Waits until a kernel that has it says so, at each restore by a VMM that has the device.
    pub(crate) async fn changed(&self) -> io::Result<()> {
        // Of more than there was room for some are lost.
        arrives(&self.0, Errno::NOBUFS, is_vmgenid_next).await
    }
}

/// Whether the next message is the kernel's word on the VM's generation id.
fn is_vmgenid_next(socket: &OwnedFd) -> Result<bool, Errno> {
    let mut message = [0_u8; AT_MOST];
    let (read, _, from) = recvfrom(socket, &mut message, RecvFlags::empty())?;
    let from = from.and_then(|from| SocketAddrNetlink::try_from(from).ok());
    // Processes with the capability to do so can send to the group as well.
    let is_kernels = from.is_some_and(|from| from.pid() == 0);
    Ok(is_kernels && is_vmgenid(message.get(..read).unwrap_or_default()))
}

/// `change@/devices/…` and then `KEY=value`s, each with a NUL after it (lib/kobject_uevent.c;
/// drivers/virt/vmgenid.c).
fn is_vmgenid(message: &[u8]) -> bool {
    message.starts_with(b"change@")
        && message
            .split(|byte| *byte == 0)
            .any(|line| line == b"NEW_VMGENID=1")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As that candidate sent it.
    const CHANGED: &[u8] = b"change@/devices/LNXSYSTM:00/LNXSYBUS:00/QEMUVGID:00\0ACTION=change\0\
        DEVPATH=/devices/LNXSYSTM:00/LNXSYBUS:00/QEMUVGID:00\0SUBSYSTEM=acpi\0NEW_VMGENID=1\0\
        MODALIAS=acpi:QEMUVGID:VM_GEN_COUNTER:\0SEQNUM=1213\0";

    #[test]
    fn one_message_of_all_is_meant() {
        assert!(is_vmgenid(CHANGED));
        assert!(!is_vmgenid(&CHANGED[..100]));
        for other in [
            &b"add@/devices/virtual/x\0ACTION=add\0NEW_VMGENID=1\0"[..],
            b"change@/devices/virtual/x\0ACTION=change\0NEW_VMGENID=10\0",
            b"change@/devices/virtual/x\0ACTION=change\0XNEW_VMGENID=1\0",
            b"libudev\0",
            b"",
        ] {
            assert!(!is_vmgenid(other));
        }
    }
}
