//! By what a guest can tell that it was restored: vmclock's generation counter, and its vsock CID.

use super::polled::Polled;
use crate::core::signs::Marks;
use rustix::fd::AsFd;
use rustix::fs::{Mode, OFlags, open};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use tokio::io::Interest;

/// Where the marks are read. `None` for what is not to be read.
#[derive(Debug, Clone)]
pub(crate) struct MarkReader {
    /// The vmclock device.
    pub(crate) vmclock: Option<PathBuf>,
    /// The vsock device.
    pub(crate) vsock: Option<PathBuf>,
}

impl MarkReader {
    /// The guest's own; the CID only if the agent uses vsock, since asking for it may load the
    /// module.
    pub(crate) fn of_guest(uses_vsock: bool) -> Self {
        Self {
            vmclock: Some("/dev/vmclock0".into()),
            vsock: uses_vsock.then(|| "/dev/vsock".into()),
        }
    }

    /// Nothing: the agent runs outside of a guest.
    pub(crate) fn none() -> Self {
        Self {
            vmclock: None,
            vsock: None,
        }
    }

    /// Reads them. The devices are opened each time, since they may come and go.
    pub(crate) fn read(&self) -> Marks {
        let read = |path: &Option<PathBuf>| File::open(path.as_ref()?).ok();
        Marks {
            vmclock: read(&self.vmclock).and_then(|device| generation(&device)),
            cid: read(&self.vsock).and_then(|device| cid(&device)),
        }
    }
}

/// How much of vmclock's page is read: up to and with its generation counter.
const VMCLOCK: usize = 112;

/// `VMCLOCK_MAGIC`, `VCLK` in the order of the bytes.
const MAGIC: u32 = 0x4b4c_4356;

/// `VMCLOCK_FLAG_VM_GEN_COUNTER_PRESENT`.
const HAS_GENERATION: u64 = 1 << 8;

/// The kernel reads the page between two updates of it, or gives up after 100 ms
/// (drivers/ptp/ptp_vmclock.c).
fn generation(device: impl AsFd) -> Option<u64> {
    let mut page = [0_u8; VMCLOCK];
    let read = rustix::io::pread(device, &mut page, 0).ok()?;
    parse_generation(page.get(..read)?)
}

/// The generation counter of a vmclock page that has one (include/uapi/linux/vmclock-abi.h).
fn parse_generation(page: &[u8]) -> Option<u64> {
    let u32_at = |at: usize| Some(u32::from_le_bytes(page.get(at..at + 4)?.try_into().ok()?));
    let u64_at = |at: usize| Some(u64::from_le_bytes(page.get(at..at + 8)?.try_into().ok()?));
    let version = u16::from_le_bytes(page.get(8..10)?.try_into().ok()?);
    let is_known = u32_at(0)? == MAGIC && version == 1;
    let is_there = u32_at(4)? as usize >= VMCLOCK && u64_at(24)? & HAS_GENERATION != 0;
    (is_known && is_there).then(|| u64_at(104)).flatten()
}

/// The guest's CID (vsock(7)). Those up to 2 are no guest's, and without a device there is none.
#[expect(unsafe_code, reason = "no safe binding knows this ioctl")]
fn cid(device: &File) -> Option<u32> {
    /// `_IO(7, 0xb9)` of linux/vm_sockets.h
    const IOCTL_VM_SOCKETS_GET_LOCAL_CID: nix::libc::Ioctl = 0x7b9;
    const HOST: u32 = 2;
    const ANY: u32 = u32::MAX;
    let mut cid = ANY;
    // SAFETY: the kernel writes an `unsigned int`, for which there is room.
    let result = unsafe {
        nix::libc::ioctl(
            device.as_raw_fd(),
            IOCTL_VM_SOCKETS_GET_LOCAL_CID,
            &raw mut cid,
        )
    };
    (result == 0 && cid > HOST && cid != ANY).then_some(cid)
}

/// Notices changes of vmclock's page, where the kernel and the hypervisor tell of them.
#[derive(Debug)]
pub(crate) struct VmclockWatch(Polled);

impl VmclockWatch {
    /// Watches a device. An error where there is none, or where the kernel does not tell.
    pub(crate) fn new(device: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let device = open(device, flags, Mode::empty())?;
        // What is not read yet counts as a change.
        let _ = generation(&device);
        Ok(Self(Polled::new(device, Interest::READABLE)?))
    }

    /// Waits for a change. An error when no more will come: the hypervisor
    /// does not tell.
    pub(crate) async fn changed(&self) -> io::Result<()> {
        let mut guard = self.0.readable().await?;
        if guard.ready().is_read_closed() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        guard.clear_ready();
        // What is read is no change any more.
        let _ = generation(self.0.get_ref());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page as Linux 7.0 has it, whose counter is that.
    fn page(generation: u64) -> Vec<u8> {
        let mut page = vec![0; 4096];
        page[..4].copy_from_slice(b"VCLK");
        page[4..8].copy_from_slice(&4096_u32.to_le_bytes());
        page[8] = 1;
        page[24..32].copy_from_slice(&0x181_u64.to_le_bytes());
        page[104..112].copy_from_slice(&generation.to_le_bytes());
        page
    }

    #[test]
    fn the_counter_of_a_page_that_has_one() {
        assert_eq!(parse_generation(&page(7)), Some(7));
        assert_eq!(parse_generation(&page(u64::MAX)), Some(u64::MAX));
        let changes: [(usize, u8); 4] = [
            (0, b'X'), // no vmclock
            (5, 0),    // a page of 0 bytes: it has not got as far as the counter
            (8, 2),    // another version
            (25, 0),   // before Firecracker 1.15: no counter
        ];
        for (at, byte) in changes {
            let mut page = page(7);
            page[at] = byte;
            assert_eq!(parse_generation(&page), None, "{at}");
        }
        for cut in 0..VMCLOCK {
            assert_eq!(parse_generation(&page(7)[..cut]), None);
        }
    }

    #[test]
    fn marks_are_read_of_devices_that_are_there() {
        let dir = tempfile::tempdir().unwrap();
        let reader = MarkReader {
            vmclock: Some(dir.path().join("vmclock0")),
            vsock: Some(dir.path().join("vsock")),
        };
        assert_eq!(reader.read(), Marks::default());
        std::fs::write(dir.path().join("vmclock0"), page(41)).unwrap();
        // One that knows nothing of CIDs.
        std::fs::write(dir.path().join("vsock"), "").unwrap();
        let marks = Marks {
            vmclock: Some(41),
            cid: None,
        };
        assert_eq!(reader.read(), marks);
        assert_eq!(MarkReader::none().read(), Marks::default());
    }

    #[tokio::test]
    async fn a_device_that_cannot_be_waited_for_is_read_with_each_sample() {
        // As a vmclock device of a kernel that does not tell, a file knows no poll(2).
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vmclock0");
        assert!(VmclockWatch::new(&path).is_err());
        std::fs::write(&path, page(1)).unwrap();
        let error = VmclockWatch::new(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
    }
}
