//! QEMU's command line.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

/// The vsock device's name in QEMU's control socket.
pub const VSOCK_DEVICE: &str = "vsock0";

/// The chardev over which QEMU talks to vhost-device-vsock.
pub const VSOCK_CHARDEV: &str = "vs";

/// The slot that the vsock device is in. A port of its own lets it be unplugged and plugged in
/// again; the root bus does not.
pub const VSOCK_BUS: &str = "rp0";

/// The socket between QEMU and vhost-device-vsock, in the VM's folder.
pub const VSOCK_SOCKET: &str = "vhu.sock";

/// QEMU's control socket, in the VM's folder.
pub const QMP_SOCKET: &str = "qmp";

/// Who runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The machine's own CPU.
    Kvm,
    /// QEMU's emulation, about ten times slower.
    Tcg,
}

impl Accelerator {
    /// As `-accel` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }

    /// The CPU that the guest sees: all that this one, or the emulation, has.
    pub(super) fn cpu(self) -> &'static str {
        match self {
            Self::Kvm => "host",
            Self::Tcg => "max",
        }
    }
}

/// Where the guest's memory is. It has to be shared in any case: the vsock device is another
/// process.
#[derive(Debug, Clone)]
pub enum Memory {
    /// In no file.
    Anonymous,
    /// In a file, where it outlives QEMU.
    File(PathBuf),
}

/// How a guest begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// It boots, its vsock device plugged in.
    Boot,
    /// It waits for a migrated state. That has to be of a machine without the vsock device, which
    /// blocks migration: it is plugged in afterwards.
    Incoming,
}

/// What a guest is made of.
#[derive(Debug, Clone)]
pub struct Arguments<'a> {
    /// Who runs its instructions.
    pub accelerator: Accelerator,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Where the memory is.
    pub memory: Memory,
    /// The kernel.
    pub kernel: &'a Path,
    /// The initrd, if there is one.
    pub initrd: Option<&'a Path>,
    /// The root file system, if there is one: the guest's first virtio block device. Read-only,
    /// since other VMs run from the same file.
    pub rootfs: Option<&'a Path>,
    /// The guest's part of the kernel command line.
    pub cmdline: &'a str,
    /// How it begins.
    pub begin: Begin,
}

impl Arguments<'_> {
    /// The command line. Paths of sockets and logs are relative to the VM's folder, in which QEMU
    /// is to be started: they stay short, and a comma in a folder's name cannot break an option.
    pub fn to_vec(&self) -> Vec<OsString> {
        let mut line: Vec<OsString> = Vec::new();
        let mut add = |flag: &str, value: OsString| {
            line.push(flag.into());
            line.push(value);
        };
        let size = self.memory_mib;
        add("-M", "q35,memory-backend=mem".into());
        add("-accel", self.accelerator.name().into());
        add("-cpu", self.accelerator.cpu().into());
        add("-smp", self.cpus.to_string().into());
        add("-m", size.to_string().into());
        add("-object", self.memory_object());
        add("-display", "none".into());
        // Its standard output is what keeps the console.
        add("-serial", "file:/dev/stdout".into());
        add(
            "-qmp",
            format!("unix:{QMP_SOCKET},server=on,wait=off").into(),
        );
        // Into its log, for those who are to say how the VM ended. Where QEMU has no such event it
        // warns, and runs.
        add("-trace", "qemu_system_shutdown_request".into());
        // A guest that continues has read them, and never will again: QEMU ends when it is reset.
        if self.begin == Begin::Boot {
            self.add_kernel(&mut add);
        }
        add(
            "-device",
            format!("pcie-root-port,id={VSOCK_BUS},chassis=1,slot=1").into(),
        );
        // Another id each time that QEMU is started: the kernel of a guest that is restored reseeds
        // itself by that, and tells of it, even if nobody wakes the guest.
        add("-device", "vmgenid,guid=auto".into());
        if let Some(rootfs) = self.rootfs {
            let mut file = OsString::from("driver=file,node-name=rootfs,read-only=on,filename=");
            file.push(option_value(rootfs));
            add("-blockdev", file);
            add("-device", "virtio-blk-pci,drive=rootfs".into());
        }
        match self.begin {
            Begin::Boot => {
                add(
                    "-chardev",
                    format!("socket,id={VSOCK_CHARDEV},path={VSOCK_SOCKET}").into(),
                );
                let device = format!(
                    "vhost-user-vsock-pci,id={VSOCK_DEVICE},chardev={VSOCK_CHARDEV},bus={VSOCK_BUS}"
                );
                add("-device", device.into());
            }
            Begin::Incoming => add("-incoming", "defer".into()),
        }
        for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
            line.push(flag.into());
        }
        line
    }

    /// What is booted, which QEMU keeps in memory of its own.
    fn add_kernel(&self, add: &mut impl FnMut(&str, OsString)) {
        add("-kernel", self.kernel.into());
        if let Some(initrd) = self.initrd {
            add("-initrd", initrd.into());
        }
        // For a kernel that mounts it itself; an initrd that does so reads what it likes.
        let root = if self.rootfs.is_some() {
            "root=/dev/vda ro "
        } else {
            ""
        };
        // Linux looks at its boot whether the timer ticks while it waits for ten ticks, and panics if
        // not ("IO-APIC + timer doesn't work!"). Emulated on a busy machine a guest may get no CPU in
        // just that time. Under KVM Linux leaves that out by itself (arch/x86/kernel/kvm.c).
        let timer = match self.accelerator {
            Accelerator::Tcg => "no_timer_check ",
            Accelerator::Kvm => "",
        };
        // A guest that panics or reboots ends QEMU: both mean that it will not come up.
        add(
            "-append",
            format!("console=ttyS0 panic=-1 quiet {timer}{root}{}", self.cmdline).into(),
        );
    }

    fn memory_object(&self) -> OsString {
        let size = self.memory_mib;
        match &self.memory {
            Memory::Anonymous => {
                format!("memory-backend-memfd,id=mem,size={size}M,share=on").into()
            }
            Memory::File(path) => {
                let mut object = OsString::from(format!(
                    "memory-backend-file,id=mem,size={size}M,share=on,mem-path="
                ));
                object.push(path);
                object
            }
        }
    }
}

/// A path as one value of an option with several: there a comma is written twice.
fn option_value(path: &Path) -> OsString {
    let mut value = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        value.extend(std::iter::repeat_n(
            *byte,
            if *byte == b',' { 2 } else { 1 },
        ));
    }
    OsString::from_vec(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(begin: Begin, memory: Memory) -> String {
        line(None, begin, memory)
    }

    fn line(rootfs: Option<&Path>, begin: Begin, memory: Memory) -> String {
        let arguments = Arguments {
            accelerator: Accelerator::Tcg,
            cpus: 1,
            memory_mib: 256,
            memory,
            kernel: Path::new("/img/vmlinuz"),
            initrd: Some(Path::new("/img/initrd")),
            rootfs,
            cmdline: "init_on_free=1",
            begin,
        };
        let line: Vec<_> = arguments
            .to_vec()
            .into_iter()
            .map(|word| word.into_string().unwrap())
            .collect();
        line.join(" ")
    }

    #[test]
    fn a_guest_that_boots() {
        assert_eq!(
            arguments(Begin::Boot, Memory::Anonymous),
            "-M q35,memory-backend=mem -accel tcg -cpu max -smp 1 -m 256 \
             -object memory-backend-memfd,id=mem,size=256M,share=on -display none \
             -serial file:/dev/stdout -qmp unix:qmp,server=on,wait=off \
             -trace qemu_system_shutdown_request \
             -kernel /img/vmlinuz -initrd /img/initrd \
             -append console=ttyS0 panic=-1 quiet no_timer_check init_on_free=1 \
             -device pcie-root-port,id=rp0,chassis=1,slot=1 \
             -device vmgenid,guid=auto \
             -chardev socket,id=vs,path=vhu.sock \
             -device vhost-user-vsock-pci,id=vsock0,chardev=vs,bus=rp0 \
             -nodefaults -no-user-config -no-reboot"
        );
    }

    #[test]
    fn a_root_file_system_is_a_disk_that_nobody_writes() {
        let rootfs = Path::new("/a,b/rootfs.erofs");
        let line = line(Some(rootfs), Begin::Boot, Memory::Anonymous);
        let disk = "-blockdev driver=file,node-name=rootfs,read-only=on,filename=/a,,b/rootfs.erofs \
                    -device virtio-blk-pci,drive=rootfs ";
        assert!(line.contains(disk), "{line}");
        assert!(
            line.contains(" quiet no_timer_check root=/dev/vda ro init_on_free=1 "),
            "{line}"
        );
    }

    #[test]
    fn a_guest_that_waits_for_its_state_has_no_vsock_device_yet() {
        let line = arguments(Begin::Incoming, Memory::File("ram".into()));
        assert!(line.contains("-incoming defer"), "{line}");
        assert!(line.contains("memory-backend-file,id=mem,size=256M,share=on,mem-path=ram"));
        for absent in ["vsock", "-kernel", "-initrd", "-append"] {
            assert!(!line.contains(absent), "{absent} in {line}");
        }
    }
}
