//! Snapshots of QEMU: a migration into a file.
//!
//! ```text
//! freeze   device_del vsock0 ─► DEVICE_DELETED ─► stop ─► migrate ─► completed ─► memory copied
//! run_on   (migrate_cancel) ─► cont ─► device_add vsock0 ─► its driver is up
//! restore  QEMU -incoming ─► migrate-incoming ─► completed ─► device_add vsock0, cont ─► …
//!          memory copied ──┘
//! ```
//!
//! A vhost-user device cannot be migrated while it is plugged in: it is taken out before and put
//! back afterwards. To the guest that is what a snapshot is with any VMM, a reset of the transport:
//! its listener stays, its connections end.
//!
//! QEMU is stopped before it migrates, so that the guest does not run on while its memory is
//! written. The memory is not part of what is migrated (`x-ignore-shared`), but copied from the memfd
//! that it is in, and back into one: that costs one copy, without QEMU's loop over single pages, and at
//! a restore it is done while QEMU starts. Zeros are holes in the file. In snapshots of earlier
//! versions, without that file, the memory is in the state.

use super::arguments::{
    Accelerator, Arguments, Begin, Memory, QMP_SOCKET, VSOCK_BUS, VSOCK_CHARDEV, VSOCK_DEVICE,
    VSOCK_SOCKET,
};
use super::memory::{self, GuestMemory};
use super::qmp::Qmp;
use super::{LOG, ROLE, vsock};
use crate::deadline::Deadline;
use crate::driver::{Restore, other_version};
use crate::error::{Error, QmpFault};
use crate::launch::VmProcesses;
use crate::locate::QEMU;
use crate::snapshot::{Snapshot, Verified, Vmm};
use mvm_registry::record::GUEST_CID;
use mvm_registry::{Home, open_regular};
use serde_json::{Value, json};
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// The migrated state in a snapshot folder: devices and memory.
const STATE: &str = "state";

/// The guest's memory there.
const MEMORY: &str = "memory";

/// The capability by which shared memory is not migrated.
const IGNORE_SHARED: &str = "x-ignore-shared";

/// How long a guest may take to let go of its vsock device.
const UNPLUG: Duration = Duration::from_secs(20);

/// How often QEMU is asked whether the guest's driver is up, which is mostly seen without.
const DRIVER_ASKED: Duration = Duration::from_millis(200);

/// In bytes a second. QEMU's own limit is for networks that others use as well.
const BANDWIDTH: u64 = 1 << 40;

/// A clone's vsock address is another than that of the guest that it was: what has bound the old one
/// notices.
const CLONE_CID: u32 = GUEST_CID + 1;

pub(super) fn freeze(
    processes: &mut VmProcesses,
    into: &Path,
    deadline: Deadline<'_>,
) -> Result<Vmm, Error> {
    let mut qmp = connect(processes)?;
    unplug(processes, &mut qmp, deadline)?;
    qmp.execute("stop", &json!({}))?;
    let path = into.join(STATE);
    let file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .map_err(Error::io("create", &path))?;
    qmp.execute(
        "migrate-set-parameters",
        &json!({"max-bandwidth": BANDWIDTH}),
    )?;
    let memory = memory::of_process(processes.pid(ROLE), qmp.version());
    ignore_shared(&mut qmp, memory.is_some())?;
    qmp.give(STATE, &file)?;
    qmp.execute("migrate", &json!({"uri": format!("fd:{STATE}")}))?;
    migrated(processes, &mut qmp, "the end of the snapshot", deadline)?;
    if let Some(memory) = memory {
        memory::save(&memory, &into.join(MEMORY), deadline)?;
    }
    Ok(Vmm {
        name: "qemu".into(),
        version: version(&qmp),
        accelerator: processes.record().accelerator.clone(),
    })
}

pub(super) fn run_on(processes: &mut VmProcesses, deadline: Deadline<'_>) -> Result<(), Error> {
    let mut qmp = connect(processes)?;
    if is_migrating(&migration(&mut qmp)?) {
        qmp.execute("migrate_cancel", &json!({}))?;
        processes.wait_for("the end of the cancelled snapshot", deadline, || {
            let over = !is_migrating(&migration(&mut qmp)?);
            Ok(over.then_some(()))
        })?;
    }
    qmp.execute("cont", &json!({}))?;
    unplug_vsock(processes, &mut qmp, deadline)?;
    // Whoever froze it may have been killed before it had taken away all of the old one, or while it
    // was putting a new one in. It is in use for a moment after the device has gone from the list.
    processes.wait_for("the end of the vsock device", deadline.step(UNPLUG), || {
        let there = has_chardev(&mut qmp)?;
        if there {
            qmp.attempt("chardev-remove", &json!({"id": VSOCK_CHARDEV}))?;
        }
        Ok((!there).then_some(()))
    })?;
    clear_vsock(processes)?;
    vsock::start(processes, deadline)?;
    plug_and_continue(&mut qmp)?;
    wait_until_ready(processes, &mut qmp, deadline)
}

/// Has the guest let go of the vsock device, if there still is one: it may have been asked to already,
/// which cannot be taken back, and be about to. To go on with that one would be to lose it later.
fn unplug_vsock(
    processes: &VmProcesses,
    qmp: &mut Qmp,
    deadline: Deadline<'_>,
) -> Result<(), Error> {
    let mut tries = 2;
    while is_plugged(qmp)? {
        tries -= 1;
        // Refused if the guest has been asked already, or was not to be asked just now.
        qmp.attempt("device_del", &json!({"id": VSOCK_DEVICE}))?;
        let step = deadline.step(UNPLUG / 2);
        let gone = processes.wait_for("the guest to let go of its vsock device", step, || {
            Ok((!is_plugged(qmp)?).then_some(()))
        });
        match gone {
            Err(Error::TimedOut { .. }) if tries > 0 && !deadline.left().is_zero() => {}
            other => return other,
        }
    }
    Ok(())
}

/// With what a VM has to run that goes on from that snapshot.
pub(super) fn accelerator(snapshot: &Snapshot) -> Accelerator {
    match snapshot.manifest.vmm.accelerator.as_deref() {
        Some("kvm") => Accelerator::Kvm,
        _ => Accelerator::Tcg,
    }
}

pub(super) fn restore(restore: &Restore<'_>, processes: &mut VmProcesses) -> Result<(), Error> {
    let Restore {
        snapshot,
        image,
        clone,
        deadline,
    } = *restore;
    let manifest = &snapshot.manifest;
    let accelerator = accelerator(snapshot);
    processes.set_accelerator(accelerator.name());
    // In snapshots of earlier versions it is part of the state.
    let (memory, loading) = match snapshot.find(MEMORY) {
        Some(_) => {
            let (memory, loading) = memory::load(&snapshot.file(MEMORY))?;
            (memory, Some(loading))
        }
        None => (GuestMemory::new(manifest.memory_mib)?, None),
    };
    let arguments = Arguments {
        accelerator,
        cpus: manifest.cpus,
        memory_mib: manifest.memory_mib,
        memory: Memory::File(memory.path()),
        kernel: &image.kernel(),
        initrd: image.initrd().as_deref(),
        rootfs: image.rootfs().as_deref(),
        cmdline: &image.manifest.cmdline,
        begin: Begin::Incoming,
    }
    .to_vec();
    let mut command = Command::new(QEMU.find()?);
    processes.spawn_with_console(ROLE, "QEMU", Some(LOG), command.args(arguments))?;
    // What is needed later comes up meanwhile.
    let cid = if clone { CLONE_CID } else { GUEST_CID };
    processes.set_guest_cid(cid);
    vsock::start(processes, deadline)?;
    let folder = processes.folder().path().to_owned();
    let mut qmp = processes.wait_for("QEMU's control socket", deadline, || {
        Qmp::connect(&folder, QMP_SOCKET)
    })?;
    check_version(&version(&qmp), &manifest.vmm.version)?;
    let path = snapshot.file(STATE);
    let file = open_regular(&path).map_err(Error::io("open", &path))?;
    ignore_shared(&mut qmp, loading.is_some())?;
    qmp.give(STATE, &file)?;
    if let Some(loading) = loading {
        loading.wait(processes, deadline)?;
    }
    qmp.execute("migrate-incoming", &json!({"uri": format!("fd:{STATE}")}))?;
    migrated(
        processes,
        &mut qmp,
        "the end of loading the snapshot",
        deadline,
    )?;
    plug_and_continue(&mut qmp)?;
    wait_until_ready(processes, &mut qmp, deadline)
}

/// By the program that is installed, which need not be asked as long as it is the same file: the one that
/// runs is asked again.
pub(super) fn check_snapshot(home: &Home, snapshot: &Snapshot) -> Result<(), Error> {
    snapshot.need(STATE)?;
    let memory_mib = snapshot.manifest.memory_mib;
    if let Some(memory) = snapshot.find(MEMORY)
        && memory.bytes != u64::from(memory_mib) << 20
    {
        return Err(snapshot.contradicts_itself(format!(
            "the guest has {memory_mib} MiB of memory, and its file {MEMORY:?} {} bytes",
            memory.bytes
        )));
    }
    let program = QEMU.find()?;
    let Ok(said) = Verified::of(home).said(&program, || QEMU.version(&program)) else {
        return Ok(());
    };
    check_version(version_in(&said), &snapshot.manifest.vmm.version)
}

/// What `qemu-system-x86_64 --version` says, less what is around it: `QEMU emulator version 7.2.22
/// (Debian 1:7.2+dfsg-7)`.
fn version_in(said: &str) -> &str {
    let mut words = said.split_whitespace();
    words.find(|word| *word == "version");
    words.next().unwrap_or_default()
}

/// Whether memory that QEMU shares with others is left out of what is migrated.
fn ignore_shared(qmp: &mut Qmp, ignored: bool) -> Result<(), Error> {
    let capability = json!({"capability": IGNORE_SHARED, "state": ignored});
    qmp.execute(
        "migrate-set-capabilities",
        &json!({"capabilities": [capability]}),
    )?;
    Ok(())
}

fn connect(processes: &VmProcesses) -> Result<Qmp, Error> {
    Qmp::connect(processes.folder().path(), QMP_SOCKET)?.ok_or_else(|| Error::Qmp {
        doing: "reach the VM".into(),
        reason: "QEMU does not listen there".into(),
        fault: QmpFault::Gone,
    })
}

fn unplug(processes: &mut VmProcesses, qmp: &mut Qmp, deadline: Deadline<'_>) -> Result<(), Error> {
    qmp.execute("device_del", &json!({"id": VSOCK_DEVICE}))?;
    // Parts of the device are told of too, by their path alone.
    qmp.wait_for_event("DEVICE_DELETED", UNPLUG.min(deadline.left()), |event| {
        event.pointer("/data/device").and_then(Value::as_str) == Some(VSOCK_DEVICE)
    })?;
    qmp.execute("chardev-remove", &json!({"id": VSOCK_CHARDEV}))?;
    clear_vsock(processes)
}

/// Ends vhost-device-vsock, and removes its sockets.
fn clear_vsock(processes: &mut VmProcesses) -> Result<(), Error> {
    processes.terminate(vsock::ROLE)?;
    for socket in [VSOCK_SOCKET, "v.sock"] {
        let path = processes.folder().file(socket);
        match std::fs::remove_file(&path) {
            // The backend may have done so itself.
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(Error::io("remove", &path)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Plugs in the vsock device, whose backend listens, and lets the VM run on: the guest finds the device
/// there when it does.
fn plug_and_continue(qmp: &mut Qmp) -> Result<(), Error> {
    let address = json!({"type": "unix", "data": {"path": VSOCK_SOCKET}});
    qmp.execute_all([
        (
            "chardev-add",
            json!({"id": VSOCK_CHARDEV, "backend": {"type": "socket",
                "data": {"addr": address, "server": false}}}),
        ),
        (
            "device_add",
            json!({"driver": "vhost-user-vsock-pci", "id": VSOCK_DEVICE,
                "chardev": VSOCK_CHARDEV, "bus": VSOCK_BUS}),
        ),
        ("cont", json!({})),
    ])
}

/// Waits until the guest's driver has taken the device, and until its backend can be dialled. A QEMU
/// that cannot tell (before 7.2) leaves the latter alone.
fn wait_until_ready(
    processes: &VmProcesses,
    qmp: &mut Qmp,
    deadline: Deadline<'_>,
) -> Result<(), Error> {
    let device = json!({"path": format!("/machine/peripheral/{VSOCK_DEVICE}/virtio-backend")});
    let pid = processes.pid(vsock::ROLE);
    let mut asked = Instant::now();
    processes.wait_for("the guest's vsock driver", deadline, || {
        // When the driver is up QEMU hands its queues over. To ask QEMU itself holds the guest up.
        if vsock::watches_queues(pid) {
            return Ok(Some(()));
        }
        if asked.elapsed() < DRIVER_ASKED {
            return Ok(None);
        }
        asked = Instant::now();
        let status = match qmp.execute("x-query-virtio-status", &device) {
            Ok(status) => status,
            Err(Error::Qmp {
                fault: QmpFault::Refused,
                ..
            }) => return Ok(Some(())),
            // It is busy, which says nothing about the guest's driver.
            Err(Error::Qmp {
                fault: QmpFault::Silent,
                ..
            }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let statuses = status.pointer("/status/statuses").and_then(Value::as_array);
        let up = statuses.into_iter().flatten().any(|status| {
            let name = status.as_str().unwrap_or_default();
            name.starts_with("VIRTIO_CONFIG_S_DRIVER_OK")
        });
        Ok(up.then_some(()))
    })?;
    vsock::wait_until_ready(processes, deadline)
}

fn is_plugged(qmp: &mut Qmp) -> Result<bool, Error> {
    let devices = qmp.execute("qom-list", &json!({"path": "/machine/peripheral"}))?;
    let named = |device: &Value| device.get("name").and_then(Value::as_str) == Some(VSOCK_DEVICE);
    Ok(devices.as_array().is_some_and(|all| all.iter().any(named)))
}

fn has_chardev(qmp: &mut Qmp) -> Result<bool, Error> {
    let all = qmp.execute("query-chardev", &json!({}))?;
    let named = |one: &Value| one.get("label").and_then(Value::as_str) == Some(VSOCK_CHARDEV);
    Ok(all.as_array().is_some_and(|all| all.iter().any(named)))
}

fn migration(qmp: &mut Qmp) -> Result<Value, Error> {
    qmp.execute("query-migrate", &json!({}))
}

/// As QEMU names the status; none before the first migration.
fn status(migration: &Value) -> &str {
    let status = migration.get("status").and_then(Value::as_str);
    status.unwrap_or("none")
}

fn is_migrating(migration: &Value) -> bool {
    !matches!(
        status(migration),
        "none" | "completed" | "failed" | "cancelled"
    )
}

/// Waits for the end of a migration, which has to be a good one.
fn migrated(
    processes: &VmProcesses,
    qmp: &mut Qmp,
    awaited: &str,
    deadline: Deadline<'_>,
) -> Result<(), Error> {
    processes.wait_for(awaited, deadline, || {
        let migration = migration(qmp)?;
        match status(&migration) {
            "completed" => Ok(Some(())),
            bad @ ("failed" | "cancelled") => {
                let why = migration.get("error-desc").and_then(Value::as_str);
                Err(Error::Qmp {
                    doing: "move the VM's state".into(),
                    reason: format!(
                        "the migration is {bad}: {}",
                        why.unwrap_or("no reason given")
                    ),
                    fault: QmpFault::Refused,
                })
            }
            _ => Ok(None),
        }
    })
}

fn version(qmp: &Qmp) -> String {
    let (major, minor, micro) = qmp.version();
    format!("{major}.{minor}.{micro}")
}

/// What `-M q35` and `-cpu max` mean changes with QEMU's minor version, and a state of one machine
/// does not fit into another.
fn check_version(own: &str, wrote: &str) -> Result<(), Error> {
    let minor = |version: &str| version.rsplit_once('.').map(|(minor, _)| minor.to_owned());
    if minor(own) == minor(wrote) {
        return Ok(());
    }
    Err(other_version("qemu", "QEMU", (own, wrote), &QEMU))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_minor_version_is_another_machine() {
        assert!(check_version("7.2.22", "7.2.17").is_ok());
        let error = check_version("8.2.1", "7.2.22").unwrap_err().to_string();
        assert!(error.contains("QEMU 7.2.22 wrote the snapshot"), "{error}");
        assert!(check_version("7.2.22", "nonsense").is_err());
        let said = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)";
        assert_eq!(version_in(said), "7.2.22");
    }

    /// A QEMU that is held up says nothing about the guest's driver, which is not up yet.
    #[test]
    fn a_qemu_that_does_not_answer_has_no_driver_that_is_up() {
        use std::io::{BufRead as _, BufReader, Write as _};
        use std::os::unix::net::UnixListener;
        let root = tempfile::tempdir().unwrap();
        let processes = VmProcesses::of_nothing(root.path(), "qemu");
        let folder = processes.folder();
        let listener = UnixListener::bind(folder.file("qmp")).unwrap();
        let qemu = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let hello = b"{\"QMP\":{}}\n{\"return\":{},\"id\":1}\n";
            stream.write_all(hello).unwrap();
            BufReader::new(stream).lines().count()
        });
        let at_most = Duration::from_millis(50);
        let qmp = Qmp::connect_within(folder.path(), "qmp", at_most);
        let mut qmp = qmp.unwrap().unwrap();
        let deadline = Deadline::new(Duration::from_secs(1), None);
        let error = wait_until_ready(&processes, &mut qmp, deadline).unwrap_err();
        assert!(
            error.to_string().contains("the guest's vsock driver"),
            "{error}"
        );
        drop(qmp);
        assert!(qemu.join().unwrap() > 1, "it was not asked");
    }

    #[test]
    fn a_migration_that_never_was_is_over() {
        assert!(!is_migrating(&json!({})));
        for (status, is) in [("completed", false), ("active", true), ("device", true)] {
            assert_eq!(is_migrating(&json!({"status": status})), is, "{status}");
        }
    }
}
