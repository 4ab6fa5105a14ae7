//! One QEMU and its vsock device, driven step by step: booted, unplugged, kept, continued.

use crate::parts::Parts;
use mvm_vmm::console::{LISTENING, tail};
use mvm_vmm::image::Image;
use mvm_vmm::process::listens;
use mvm_vmm::qemu::arguments::{
    Accelerator, Arguments, Begin, Memory, QMP_SOCKET, VSOCK_BUS, VSOCK_CHARDEV, VSOCK_DEVICE,
    VSOCK_SOCKET,
};
use mvm_vmm::qemu::qmp::Qmp;
use mvm_vmm::qemu::vsock;
use serde_json::{Value, json};
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long a guest may take to boot: emulated, on a busy machine.
const BOOT: Duration = Duration::from_mins(1);

/// How long one step of a VMM may take.
const STEP: Duration = Duration::from_secs(20);

/// Memory of a guest in MiB. Copied for each clone.
const MEMORY_MIB: u32 = 128;

/// A guest's memory, in the machine's folder.
pub(crate) const MEMORY_FILE: &str = "ram";

/// A process that does not outlive its owner.
#[derive(Debug)]
struct Owned(Child);

impl Drop for Owned {
    fn drop(&mut self) {
        // Both fail only if it has ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The guest's vsock address.
pub(crate) const GUEST_CID: u32 = 3;

/// A running QEMU.
#[derive(Debug)]
pub(crate) struct Machine {
    folder: PathBuf,
    parts: Parts,
    qmp: Qmp,
    // Ended in this order: a backend whose QEMU is there complains.
    _qemu: Owned,
    vsock: Option<Owned>,
}

impl Machine {
    /// Boots an image, and waits for its agent to listen.
    pub(crate) fn boot(parts: &Parts, image: &Image, folder: &Path) -> Self {
        let vsock = start_vsock(parts, folder, GUEST_CID);
        let machine = Self::launch(parts, image, folder, Begin::Boot, Some(vsock));
        machine.wait_for_agent(1);
        machine
    }

    /// Continues a guest that was kept, with its vsock device plugged in anew.
    pub(crate) fn resume(parts: &Parts, image: &Image, folder: &Path, state: &Path) -> Self {
        let mut machine = Self::launch(parts, image, folder, Begin::Incoming, None);
        machine.shared_memory_stays();
        let uri = format!("exec:cat {}", state.display());
        machine.qmp("migrate-incoming", &json!({"uri": uri}));
        machine.await_event("RESUME", |_| true);
        // The address that the guest had: by another one its agent would notice that it was restored.
        machine.plug(GUEST_CID);
        machine
    }

    fn launch(
        parts: &Parts,
        image: &Image,
        folder: &Path,
        begin: Begin,
        vsock: Option<Owned>,
    ) -> Self {
        let (kernel, initrd) = (image.kernel(), image.initrd());
        let arguments = Arguments {
            accelerator: Accelerator::Tcg,
            cpus: 1,
            memory_mib: MEMORY_MIB,
            memory: Memory::File(MEMORY_FILE.into()),
            kernel: &kernel,
            initrd: initrd.as_deref(),
            rootfs: None,
            cmdline: &image.manifest.cmdline,
            begin,
        };
        let mut command = Command::new(&parts.qemu);
        // The console is its standard output.
        let console = File::create(folder.join("console.log")).expect("create a log");
        let command = command.args(arguments.to_vec());
        let qemu = start(command, folder, "vmm.log", console.into());
        let qmp = wait("QEMU's control socket", folder, || {
            Qmp::connect(folder, QMP_SOCKET).unwrap_or_else(|error| panic!("{error}"))
        });
        Self {
            folder: folder.to_owned(),
            parts: parts.clone(),
            qmp,
            _qemu: qemu,
            vsock,
        }
    }

    /// Where the guest is reached.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.join("v.sock")
    }

    /// What the guest wrote to its console since this QEMU was started.
    pub(crate) fn console(&self) -> String {
        let bytes = std::fs::read(self.folder.join("console.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until an agent has said that often on the console that it listens.
    pub(crate) fn wait_for_agent(&self, times: usize) {
        let until = Instant::now() + BOOT;
        while self.console().matches(LISTENING).count() < times {
            assert!(
                Instant::now() < until,
                "no agent within {BOOT:?}\n{}",
                logs(&self.folder)
            );
            sleep(Duration::from_millis(20));
        }
    }

    /// Takes the vsock device out, as a snapshot does: all its connections are reset.
    pub(crate) fn unplug(&mut self) {
        self.qmp("device_del", &json!({"id": VSOCK_DEVICE}));
        self.await_event("DEVICE_DELETED", |event| {
            event["data"]["device"] == VSOCK_DEVICE
        });
        self.qmp("chardev-remove", &json!({"id": VSOCK_CHARDEV}));
        self.vsock = None;
        for socket in [VSOCK_SOCKET, "v.sock"] {
            match std::fs::remove_file(self.folder.join(socket)) {
                // The backend may have done so itself.
                Err(error) if error.kind() != ErrorKind::NotFound => panic!("{socket}: {error}"),
                _ => {}
            }
        }
    }

    /// Plugs a vsock device in, with that address for the guest.
    pub(crate) fn plug(&mut self, cid: u32) {
        self.vsock = Some(start_vsock(&self.parts, &self.folder, cid));
        let address = json!({"type": "unix", "data": {"path": VSOCK_SOCKET}});
        self.qmp(
            "chardev-add",
            &json!({"id": VSOCK_CHARDEV, "backend": {"type": "socket",
                "data": {"addr": address, "server": false}}}),
        );
        self.qmp(
            "device_add",
            &json!({"driver": "vhost-user-vsock-pci", "id": VSOCK_DEVICE,
                "chardev": VSOCK_CHARDEV, "bus": VSOCK_BUS}),
        );
        self.wait_for_queues();
    }

    /// Waits until the backend can be dialled.
    fn wait_for_queues(&self) {
        let backend = self.vsock.as_ref().expect("plugged in").0.id();
        let backend = i32::try_from(backend).expect("a pid");
        let pause = wait("the guest's vsock driver", &self.folder, || {
            vsock::ready_after(backend)
        });
        sleep(pause);
    }

    /// Keeps the guest, unplugged, in `state` and in its memory file, and ends QEMU.
    pub(crate) fn keep(mut self, state: &Path) {
        self.unplug();
        self.shared_memory_stays();
        let uri = format!("exec:cat >{}", state.display());
        self.qmp("migrate", &json!({"uri": uri}));
        self.await_event("MIGRATION", |event| {
            match event["data"]["status"].as_str() {
                Some("completed") => true,
                Some(bad @ ("failed" | "cancelled")) => panic!("the snapshot {bad}"),
                _ => false,
            }
        });
    }

    /// The memory is in a file that stays: it need not be written out with the state.
    fn shared_memory_stays(&mut self) {
        let capabilities: Vec<Value> = ["x-ignore-shared", "events"]
            .iter()
            .map(|name| json!({"capability": name, "state": true}))
            .collect();
        self.qmp(
            "migrate-set-capabilities",
            &json!({"capabilities": capabilities}),
        );
    }

    fn qmp(&mut self, command: &str, arguments: &Value) {
        if let Err(error) = self.qmp.execute(command, arguments) {
            panic!("{error}\n{}", logs(&self.folder));
        }
    }

    fn await_event(&mut self, name: &str, wanted: impl FnMut(&Value) -> bool) {
        if let Err(error) = self.qmp.wait_for_event(name, STEP, wanted) {
            panic!("no {name}: {error}\n{}", logs(&self.folder));
        }
    }
}

/// The ends of all logs in a machine's folder.
pub(crate) fn logs(folder: &Path) -> String {
    ["vsock.log", "vmm.log", "console.log"]
        .iter()
        .map(|log| format!("--- {log}\n{}\n", tail(&folder.join(log))))
        .collect::<Vec<_>>()
        .concat()
}

fn start_vsock(parts: &Parts, folder: &Path, cid: u32) -> Owned {
    let mut command = Command::new(&parts.vsock_backend);
    command.args(["--guest-cid", &cid.to_string()]).args([
        "--socket",
        VSOCK_SOCKET,
        "--uds-path",
        "v.sock",
    ]);
    let vsock = start(&mut command, folder, "vsock.log", Stdio::null());
    wait("vhost-device-vsock's socket", folder, || {
        let pid = i32::try_from(vsock.0.id()).expect("a pid");
        listens(pid, VSOCK_SOCKET)
            .expect("look at its sockets")
            .then_some(())
    });
    vsock
}

fn start(command: &mut Command, folder: &Path, log: &str, stdout: Stdio) -> Owned {
    let log = File::create(folder.join(log)).expect("create a log");
    command
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(log);
    Owned(command.spawn().expect("start a VMM"))
}

fn wait<T>(what: &str, folder: &Path, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + STEP;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(
            Instant::now() < until,
            "{what} does not appear\n{}",
            logs(folder)
        );
        sleep(Duration::from_millis(10));
    }
}
